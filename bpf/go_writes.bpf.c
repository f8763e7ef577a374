/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a Go program writes: reported when Write returns, or by a Read that returns before it does.
 *
 * The answer may be read before the thread that wrote the question has come back from its system call. A Write
 * of up to one record that is under way while a Read returns is therefore reported by that Read, if it is the only
 * one: of several, one may still wait for the lock. Should it fail afterwards, more was reported than was sent;
 * nothing can be sent on such a connection any more. Of a longer one the head went ahead (net/http's buffers).
 *
 * The Write may return meanwhile, on another processor, and the program may then use the buffer for something
 * else. So both go by the call's `claim`: which call it is (its start; entries of the table are used again), and a
 * state. What the Read has copied counts only if the Write has not returned by then; a Write that returns first
 * takes over, and reports it itself. The Write alone moves the stream's offset.
 */

#define GO_MAX_TRANSFER (1 << 30)
#define GO_CLOSING (1ULL << 32) /* Close was called while a Write was under way: the last one ends the connection */
#define GO_WRITERS(state) ((u32)(state)->writers)
#define GO_UNCLAIMED(start) ((start) << 32)
#define GO_CLAIMED 1 /* a Read copies it */
#define GO_REPORTED 2
#define GO_TAKEN_OVER 4 /* the Write has returned */
#define GO_HAND_OVER_NS 10000 /* a Write that has returned needs two us for its record */
#define GO_HAND_OVER_TURNS 256 /* the verifier's bound; so many looks at the clock take longer than that */

/* False if it has begun before: the check that found the stack too small is passed again on the new one. */
static __always_inline bool go_write_begins(struct conn_state *state, struct go_key *key, struct go_call *call) {
  call->claim = GO_UNCLAIMED(call->start);
  if (!state)
    return true;
  struct go_call *before = bpf_map_lookup_elem(MAP_GOROUTINES, key);
  bool counted = before && before->counted && before->conn == call->conn && before->generation == call->generation;
  if (counted && before->buffer == call->buffer && before->room == call->room && before->moves == call->moves)
    return false;
  if (!counted)
    __sync_fetch_and_add(&state->writers, 1);
  call->counted = 1;
  state->writer_g = key->g;
  state->writer_depth = key->depth;
  return true;
}

/* HTTP/2 is walked by the Write alone: its bytes are still there, and it knows how many they are. */
static __always_inline void go_walk_reported(struct conn_state *state, struct go_call *call, u64 from, u64 size) {
  u32 shard = state->shard;
  void *ring = bpf_map_lookup_elem(MAP_RINGS, &shard);
  if (!ring)
    return;
  struct piece piece = {.from = from, .size = size, .start = call->start, .direction = SENT};
  piece.offset = state->conn.offset[SENT];
  walked_over(state, ring, &piece, true);
}

/* At the end of a Write that has moved `size` bytes. */
static __always_inline void go_report_write(struct conn_state *state, struct go_call *call, u64 from, u64 size) {
  if (call->claim & GO_REPORTED) {
    if (state->traffic == TRAFFIC_HTTP2)
      go_walk_reported(state, call, from, size);
    state->conn.offset[SENT] += size;
    return;
  }
  struct call data = {.start = call->start, .op = OP_WRITE, .buffer = from};
  emit_data(state, &data, size);
}

/* The Write took over before all was copied: its record is to be the first in the ring, so it gets a moment. */
static __always_inline void go_hand_over(struct conn_state *state, u64 at) {
  u64 until = bpf_ktime_get_ns() + GO_HAND_OVER_NS;
  for (u32 i = 0; i < GO_HAND_OVER_TURNS; i++) {
    if (*(volatile u64 *)&state->conn.offset[SENT] != at || bpf_ktime_get_ns() > until)
      return;
  }
}

/* At the end of a Read: the Write that is under way, if any. */
static __always_inline void go_report_under_way(struct conn_state *state, void *ring, u64 id) {
  if (GO_WRITERS(state) != 1 || state->left_out || state->spared[SENT])
    return;
  struct go_key key = {.g = state->writer_g, .tgid = id >> 32, .depth = state->writer_depth};
  struct go_call *call = bpf_map_lookup_elem(MAP_GOROUTINES, &key);
  if (!call)
    return;
  u64 start = *(volatile u64 *)&call->start; /* first: whatever is read of another call, the claim will not fit */
  if (call->op != OP_WRITE || call->conn != state->conn.ssl || call->moves)
    return;
  if (call->generation != state->conn.generation || !call->room || call->room > PIECE)
    return;
  if (state->traffic == TRAFFIC_HTTP2 && walk_tells(state, SENT))
    return; /* in the middle of a body that nobody wants: the Write tells what was left out of it first */
  u64 at = *(volatile u64 *)&state->conn.offset[SENT];
  struct piece piece = {.from = call->buffer, .size = call->room, .offset = at, .start = start, .direction = SENT};
  piece.claim = &call->claim;
  piece.claimed = GO_UNCLAIMED(start) | GO_CLAIMED;
  piece.reported = GO_UNCLAIMED(start) | GO_REPORTED;
  if (__sync_val_compare_and_swap(&call->claim, GO_UNCLAIMED(start), piece.claimed) != GO_UNCLAIMED(start))
    return;
  account(state, ACCOUNTED_BYTES);
  u64 skipped = 0;
  bool counted_only = spared(state, SENT, piece.from, piece.size, start);
  if (!counted_only)
    skipped = unwanted(&state->conn, SENT, at, piece.size);
  if (counted_only || skipped >= piece.size) {
    make_good(&piece);
    return;
  }
  advance(&piece, skipped);
  piece.size -= skipped;
  emit_last(state, ring, &piece);
  if (*(volatile u64 *)&call->claim == (piece.claimed | GO_TAKEN_OVER))
    go_hand_over(state, at);
}
