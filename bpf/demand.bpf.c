/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What is wanted of a connection's plaintext, by those who watch and by the metrics.
 *
 * A connection that somebody may watch is delivered in full. One that nobody watches is there for the metrics
 * only: up to a rate every such connection is delivered, beyond it a share of them, whole connections each;
 * of the others exchanges are counted here and nothing is copied. Which ones is a matter of a number that a
 * connection keeps, so a share that stays means that the same connections stay.
 *
 * While a ring is nearly full, connections are left out in the same way whoever watches them, and their exchanges
 * counted and told as lost: a worker that gets whole exchanges of some connections sees as many as it can, one
 * that gets a random half of all records sees a quarter of them, and spends its time on the gaps. Which ones
 * changes every PRESSED_TURN, so that none stays unseen.
 *
 * Only HTTP/1 is ever left out, and only from a request on: there a reader finds its place again when it comes
 * back, because heads stand in the clear. HTTP/2 (its header tables must be followed from the start), what an
 * HTTP/1 connection was upgraded to, and whatever is not recognised are always delivered.
 *
 * Of calls on a connection that is left out the end is not looked at, where the kernel lets a program say so at
 * the beginning (uprobe sessions, 6.13): the return probe is the dearer half. So it is not known how much they
 * move; what comes after is flagged. Heads are seen in what is written: a server's responses are counted there,
 * a client's requests. Of what is read nothing is looked at, but a client's response that may switch protocols.
 */

enum head { HEAD_NONE = 0, HEAD_REQUEST, HEAD_RESPONSE, HEAD_INTERIM, HEAD_SWITCH };

#define HEAD_BYTES 16 /* the shortest request that makes sense: "GET / HTTP/1.1" and an end of line */
#define WINDOW_NS 100000000ULL
#define QUIET_NS 1000000000ULL
#define LOOK_NS 10000000ULL /* at most a tenth of what a ring of the default size takes to fill */
#define PRESSED_TURN 34 /* bits of a time in ns: 17 s */

#define WORD4(a, b, c, d) ((u32)(a) | (u32)(b) << 8 | (u32)(c) << 16 | (u32)(d) << 24)

/* Whether a message begins at `from`, told by 16 bytes: a known method, a space and a path, or HTTP/1. */
static __always_inline u32 head_at(u64 from, u64 size) {
  u64 bytes[2] = {};
  if (size < HEAD_BYTES || bpf_probe_read_user(bytes, sizeof(bytes), (void *)from))
    return HEAD_NONE;
  u64 first = bytes[0];
  u32 four = (u32)first;
  if (four == WORD4('H', 'T', 'T', 'P')) {
    if (((first >> 32) & 0xffffff) != WORD4('/', '1', '.', 0) || ((bytes[1] & 0xff) != ' '))
      return HEAD_NONE;
    u32 status = (bytes[1] >> 8) & 0xffffff;
    if (status == WORD4('1', '0', '1', 0))
      return HEAD_SWITCH;
    return (status & 0xff) == '1' ? HEAD_INTERIM : HEAD_RESPONSE;
  }
  if (first == (WORD4('C', 'O', 'N', 'N') | (u64)WORD4('E', 'C', 'T', ' ') << 32))
    return HEAD_SWITCH;
  u32 length; /* of the method and the space */
  if (four == WORD4('G', 'E', 'T', ' ') || four == WORD4('P', 'U', 'T', ' '))
    length = 4;
  else if (four == WORD4('P', 'O', 'S', 'T') || four == WORD4('H', 'E', 'A', 'D'))
    length = 5;
  else if ((first & 0xffffffffffff) == (WORD4('P', 'A', 'T', 'C') | (u64)WORD4('H', ' ', 0, 0) << 32))
    length = 6;
  else if ((first & 0xffffffffffffff) == (WORD4('D', 'E', 'L', 'E') | (u64)WORD4('T', 'E', ' ', 0) << 32))
    length = 7;
  else if (first == (WORD4('O', 'P', 'T', 'I') | (u64)WORD4('O', 'N', 'S', ' ') << 32))
    length = 8;
  else
    return HEAD_NONE;
  u64 behind = length == 8 ? bytes[1] : first >> (8 * length);
  if (length == 5 && ((first >> 32) & 0xff) != ' ')
    return HEAD_NONE;
  return (behind & 0xff) == '/' ? HEAD_REQUEST : HEAD_NONE;
}

static __always_inline s32 http2_begins(u64 from, u64 size);

static __always_inline bool listed(u32 kind, u64 first, u64 second) {
  struct wanted_key key = {.first = first, .second = second, .kind = kind};
  return bpf_map_lookup_elem(MAP_WANTED, &key) != NULL;
}

/* Whether somebody may want to see this connection. Only facts that it keeps for its whole life are asked, so
 * the answer holds until the watchers change. */
static __always_inline bool watched(struct conn *conn, u64 word) {
  if (word & DEMAND_EVERYBODY)
    return true;
  if ((word & DEMAND_PIDS) && listed(DEMAND_PIDS, conn->tgid, 0))
    return true;
  if ((word & DEMAND_UIDS) && listed(DEMAND_UIDS, conn->uid, 0))
    return true;
  if (word & DEMAND_COMMS) {
    u64 comm[2];
    __builtin_memcpy(comm, conn->comm, sizeof(comm));
    return listed(DEMAND_COMMS, comm[0], comm[1]);
  }
  return false;
}

/* Watchers of units and containers are told apart by cgroup. User space judges each cgroup by its path, which never
 * changes (cgroup v2 knows no rename); names are never compared here. One that is not judged yet is wanted. A process
 * may be moved: an answer "no" holds for the cgroup it was given for, an answer "yes" until the watchers change. */
static __always_inline void ask_cgroup(struct conn_state *state) {
  u64 id = bpf_get_current_cgroup_id();
  if (id == state->cgroup)
    return;
  u8 *wanted = bpf_map_lookup_elem(MAP_JUDGED, &id);
  if (wanted && !*wanted) {
    state->watched = WATCHED_NOT;
    state->cgroup = id;
    return;
  }
  if (!wanted)
    count(COUNTER_UNJUDGED_CALLS, 1);
  state->watched = wanted ? WATCHED : WATCHED_UNJUDGED;
  state->cgroup = 0;
  state->left_out = 0;
}

/* Fits the share of unwatched connections to the rate, once a window: down at once, up by steps. */
static __always_inline void fit_share(struct demand *demand, u64 now) {
  u64 since = demand->since;
  u64 elapsed = now - since;
  if ((s64)elapsed < (s64)WINDOW_NS || __sync_val_compare_and_swap(&demand->since, since, now) != since)
    return;
  u64 taken = demand->taken;
  demand->taken = 0;
  u64 share = demand->share;
  u64 limit = demand->rate;
  if (elapsed > QUIET_NS)
    share = SHARE_ALL;
  else if (taken > limit)
    share = share * limit / taken;
  else if (taken < limit / 4)
    share = share * 2;
  demand->share = share > SHARE_ALL ? SHARE_ALL : share ? share : 1;
}

/* Fits what is left out to the ring, once a while: half of the rest when it is nearly full, back by steps. */
static __always_inline u64 fit_cut(struct demand *demand, u32 shard, u64 now) {
  shard &= MAX_SHARDS - 1;
  volatile struct pressure *pressure = &demand->pressures[shard];
  u64 since = pressure->since, cut = pressure->cut;
  u64 elapsed = now - since;
  if ((s64)elapsed < (s64)LOOK_NS || __sync_val_compare_and_swap(&pressure->since, since, now) != since)
    return cut;
  void *ring = bpf_map_lookup_elem(MAP_RINGS, &shard);
  if (!ring)
    return cut;
  u64 size = bpf_ringbuf_query(ring, BPF_RB_RING_SIZE), held = bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA);
  u64 back = elapsed / LOOK_NS * (SHARE_ALL / 16);
  if (held > size - size / 4)
    cut += (SHARE_ALL - cut) / 2;
  else if (held < size / 2)
    cut = cut > back ? cut - back : 0;
  if (cut && !pressure->cut)
    __sync_fetch_and_or(&demand->pressed, 1ULL << shard);
  else if (!cut && pressure->cut)
    __sync_fetch_and_and(&demand->pressed, ~(1ULL << shard));
  pressure->cut = cut;
  return cut;
}

/* ktime ns as of the last tick (1 to 10 ms): what is fitted once in a while needs no better clock, and a tick is known
 * by one load. Two processors may write at once, and tell the same. */
static __always_inline u64 tick_ns(struct demand *demand) {
  volatile u64 *tick = &demand->tick, *now = &demand->tick_ns;
  u64 jiffies = bpf_jiffies64();
  if (*tick != jiffies) {
    *now = bpf_ktime_get_ns();
    *tick = jiffies;
  }
  return *now;
}

/* A connection's own number, of 10 bits. */
static __always_inline u32 number_of(struct conn *conn, u32 turn) {
  return (((u32)(conn->generation >> 4) ^ (u32)(conn->ssl >> 4) ^ turn) * 0x9e3779b1u) >> 22;
}

/* Why a connection is to be left out now, if it is. */
static __always_inline u8 leave_out(struct conn_state *state, struct demand *demand, u64 cut, u64 now) {
  if (!state->watched && demand->rate && number_of(&state->conn, 0) >= demand->share)
    return LEFT_OUT_UNWATCHED;
  if (cut && number_of(&state->conn, (u32)(now >> PRESSED_TURN) * 0x85ebca6bu) < cut)
    return LEFT_OUT_PRESSED;
  return LEFT_OUT_NOT;
}

/* The records of its packets are not held against its plaintext any more, of which not all will be known. */
static __always_inline void stop_walk(struct conn_state *state) {
  u64 cookie = state->conn.socket_cookie;
  struct flow *flow = state->conn.method == METHOD_NONE ? NULL : bpf_map_lookup_elem(MAP_FLOWS, &cookie);
  if (!flow)
    return;
  *(volatile u64 *)&flow->side[SENT].walk = 0;
  *(volatile u64 *)&flow->side[RECEIVED].walk = 0;
}

static __always_inline void count_left_out(struct conn_state *state) {
  count(state->left_out == LEFT_OUT_PRESSED ? COUNTER_SHED_EXCHANGES : COUNTER_UNSAMPLED_EXCHANGES, 1);
}

/* Whether what a call moved is only counted, not delivered. `now` is when the call began. */
static __always_inline bool spared(struct conn_state *state, u32 direction, u64 from, u64 size, u64 now) {
  u32 zero = 0;
  struct demand *demand = bpf_map_lookup_elem(MAP_DEMAND, &zero);
  if (!demand)
    return false;
  u64 word = *(volatile u64 *)&demand->word;
  if (state->demand != word) {
    state->watched = watched(&state->conn, word) ? WATCHED : WATCHED_NOT;
    if (state->watched)
      state->left_out = 0;
    state->cgroup = 0;
    state->demand = word;
  }
  if ((word & DEMAND_CGROUPS) && state->watched != WATCHED)
    ask_cgroup(state);
  bool first = !state->conn.offset[SENT] && !state->conn.offset[RECEIVED];
  u64 cut = fit_cut(demand, state->shard, now);
  bool all = !cut && (state->watched || !demand->rate);
  if (!first && ((all && !state->left_out) || state->traffic != TRAFFIC_HTTP1))
    return false;
  u32 head = head_at(from, size);
  if (first && (head == HEAD_REQUEST || head == HEAD_RESPONSE))
    state->traffic = TRAFFIC_HTTP1;
  else if (first)
    state->traffic = http2_begins(from, size) < 0 ? TRAFFIC_OTHER : TRAFFIC_HTTP2;
  if (head == HEAD_SWITCH)
    state->traffic = TRAFFIC_OTHER; /* what comes next is something else: from here on all of it is delivered */
  if (state->traffic != TRAFFIC_HTTP1) {
    state->left_out = 0;
    return false;
  }
  bool sampled = !state->watched && demand->rate;
  if (sampled)
    fit_share(demand, now);
  if (head == HEAD_REQUEST) {
    bool before = state->left_out;
    state->left_out = leave_out(state, demand, cut, now);
    if (state->left_out && !before)
      stop_walk(state);
  }
  if (!state->left_out) {
    if (sampled)
      __sync_fetch_and_add(&demand->taken, 1);
    return false;
  }
  state->spared[SENT] = 1;
  state->spared[RECEIVED] = 1;
  if (head == HEAD_REQUEST && direction == SENT)
    state->awaits_response = 1;
  if (head == HEAD_REQUEST)
    state->counted = 0;
  if (head == HEAD_RESPONSE) {
    state->awaits_response = 0;
    if (!state->counted) /* else it was when the request was written, and since then less is left out */
      count_left_out(state);
    state->counted = 0;
  }
  return true;
}

static __always_inline u32 unwanted_slot(struct conn *conn) {
  return ((u32)(conn->ssl >> 4) ^ (u32)(conn->generation >> 8)) & (UNWANTED_SLOTS - 1);
}

/* How many of the bytes at `offset` need not be copied: nobody wants the body that they belong to. */
static __always_inline u64 unwanted(struct conn *conn, u32 direction, u64 offset, u64 size) {
  if (size < UNWANTED_CALL)
    return 0;
  u32 slot = unwanted_slot(conn);
  volatile struct unwanted *entry = bpf_map_lookup_elem(MAP_UNWANTED, &slot);
  if (!entry || entry->generation != conn->generation || entry->ssl != conn->ssl)
    return 0;
  u64 until = direction == RECEIVED ? entry->until[RECEIVED] : entry->until[SENT];
  if (entry->generation != conn->generation || until <= offset)
    return 0;
  u64 spared_bytes = until - offset < size ? until - offset : size;
  count(COUNTER_UNWANTED_BYTES, spared_bytes);
  return spared_bytes;
}

/* Whether a request may ask for another protocol (RFC 9110, 7.8: by a field Upgrade, as h2c does too): "grad", in
 * whatever case, stands in its head; or the head does not end in what is looked at. */
static __always_inline bool may_upgrade(struct calls *calls, u64 from, u64 size) {
  asm volatile("" : "+r"(size));
  if (size > REQUEST_TEXT)
    size = REQUEST_TEXT;
  if (bpf_probe_read_user(calls->text, size, (void *)from))
    return true;
  u32 four = 0;
  for (u32 i = 0; i < REQUEST_TEXT; i++) {
    u32 at = i;
    asm volatile("" : "+r"(at)); /* or LLVM counts in pointers, whose bounds kernel 6.1 does not see */
    if (at >= size)
      break;
    four = four >> 8 | (u32)calls->text[at & (REQUEST_TEXT - 1)] << 24;
    if (four == WORD4('\r', '\n', '\r', '\n'))
      return false;
    if ((four | 0x20202020) == WORD4('g', 'r', 'a', 'd'))
      return true;
  }
  return true;
}

/* What is demanded, while anything is left out for it; else NULL. */
static __always_inline struct demand *leaving_out(void) {
  u32 zero = 0;
  struct demand *demand = bpf_map_lookup_elem(MAP_DEMAND, &zero);
  return demand && (demand->share < SHARE_ALL || *(volatile u64 *)&demand->pressed) ? demand : NULL;
}

/* At the beginning of a call: whether how it ends need not be looked at. `room` is what is to be written. */
static __always_inline bool left_alone(struct demand *demand, struct conn_state *state, struct calls *calls, u32 op,
                                       u64 from, u64 room) {
  if (!state->left_out || state->demand != *(volatile u64 *)&demand->word)
    return false;
  if (!state->watched && state->cgroup && state->cgroup != bpf_get_current_cgroup_id())
    return false; /* the process was moved */
  if (state->conn.method == METHOD_NONE) /* what happens inside the call may name its socket */
    return false;
  u64 now = tick_ns(demand);
  u64 cut = fit_cut(demand, state->shard, now);
  if (!state->watched && demand->rate)
    fit_share(demand, now);
  if (!leave_out(state, demand, cut, now))
    return false;
  if (op == OP_READ)
    return !state->awaits_response;
  u32 head = head_at(from, room);
  if (head == HEAD_SWITCH)
    return false;
  if (head == HEAD_REQUEST && may_upgrade(calls, from, room)) {
    state->awaits_response = 1;
    state->counted = 0;
  } else if (head == HEAD_REQUEST || head == HEAD_RESPONSE) {
    count_left_out(state);
    state->counted = head == HEAD_REQUEST;
  }
  return true;
}
