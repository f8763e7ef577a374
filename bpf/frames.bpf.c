/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * HTTP/2 bodies that nobody wants: their DATA frames are not copied.
 *
 * What the worker says of a body without a known length is some ms behind the stream, so it says whose body it is
 * (struct unwanted, `stream`), and each direction is walked here from frame to frame, from its first byte on. A
 * call is left out as a whole or not at all: when every byte of it is header or payload of DATA frames of such
 * streams, none of them padded or the last of its stream, and no header is cut by its end. So the end of a body, and
 * whatever else moves, comes as ever.
 *
 * What was left out is summed up, and told by one RECORD_SKIPPED before the next record of the direction, or when it
 * is RUN_MOST: the parser then stands in the right frame. While the ring has no room for that, nothing else of the
 * direction is written either: it would come out of order.
 *
 * A walk that meets what is no frame, memory that cannot be read, more than FRAMES_A_CALL frames at once or bytes
 * that it was not shown is given up for good: all is delivered from then on.
 */

#define FRAME_HEADER 9
#define FRAMES_A_CALL 32 /* the verifier walks each turn; 16 KiB of frames below 512 bytes are not worth more */
#define RUN_MOST (1 << 20) /* bytes: so that those who watch an exchange under way see it grow */
#define PREFACE_BYTES 24
#define FRAME_DATA 0
#define FRAME_SETTINGS 4
#define FRAME_END_STREAM 1
#define FRAME_PADDED 8
/* By type, RFC 9113 section 6: frames that belong to a stream, and that never do. */
#define ON_A_STREAM 0x22f
#define ON_THE_CONNECTION 0x0d0

/* What a call moved, or a part of it. */
struct piece {
  u64 from; /* address in the process */
  u64 size;
  u64 offset; /* in the stream */
  u64 start;
  u32 direction;
  u32 flags;
  u64 *claim; /* if any: the record counts only if this is still `claimed` when all is copied, and made `reported` */
  u64 claimed;
  u64 reported;
};

static __always_inline void fill_header(struct record *record, u32 kind, u32 direction, struct conn_state *state);

/* Whether a direction of HTTP/2 begins at `from`: bytes to the first frame header, -1 where none does. */
static __always_inline s32 http2_begins(u64 from, u64 size) {
  u64 bytes[2] = {};
  if (size < HEAD_BYTES - 1 || bpf_probe_read_user(bytes, HEAD_BYTES - 1, (void *)from))
    return -1; /* the shortest first call: SETTINGS with one parameter */
  if (bytes[0] == (WORD4('P', 'R', 'I', ' ') | (u64)WORD4('*', ' ', 'H', 'T') << 32) &&
      bytes[1] == (WORD4('T', 'P', '/', '2') | (u64)WORD4('.', '0', '\r', 0) << 32))
    return PREFACE_BYTES;
  u32 length = (u32)(bytes[0] & 0xff) << 16 | (u32)(bytes[0] >> 8 & 0xff) << 8 | (u32)(bytes[0] >> 16 & 0xff);
  u32 kind = bytes[0] >> 24 & 0xff;
  if (kind != FRAME_SETTINGS || bytes[0] >> 32 || bytes[1] & 0xff || length > 1024 || length % 6)
    return -1;
  return 0;
}

/* Without a branch, like all that is done for each frame: the verifier would follow both ways. LLVM would make one. */
static __always_inline u64 same(u32 first, u32 second) {
  u64 differ = first ^ second;
  asm volatile("" : "+r"(differ));
  return (differ - 1) >> 63;
}

/* Adds to what the call holds: `bytes` of the frame under way, which has begun in it or before. */
static __always_inline void walk_add(struct walk *walk, u64 bytes, u32 begun) {
  u32 found = 0;
  for (u32 i = 0; i < UNWANTED_STREAMS; i++) {
    u64 its = same(walk->permitted[i], walk->stream) & walk->plain;
    walk->call.frames[i] += its * begun;
    walk->call.payload[i] += its * bytes;
    found += its;
  }
  walk->others |= found ^ 1;
}

/* Takes the header that was read: false if a peer cannot mean it. */
static __always_inline bool walk_header(struct walk *walk) {
  volatile u8 *header = walk->header;
  u32 kind = header[3], flags = header[4];
  u32 stream = (u32)(header[5] & 0x7f) << 24 | (u32)header[6] << 16 | (u32)header[7] << 8 | header[8];
  u64 wrong = ON_THE_CONNECTION ^ (same(stream, 0) * (ON_THE_CONNECTION ^ ON_A_STREAM));
  if ((wrong >> (kind & 63)) & same(kind >> 6, 0))
    return false;
  walk->stream = stream;
  walk->plain = same(kind, FRAME_DATA) & same(flags & (FRAME_END_STREAM | FRAME_PADDED), 0);
  walk->left = (u32)header[0] << 16 | (u32)header[1] << 8 | header[2];
  return true;
}

/* Within the frame under way, as far as the call reaches. Where that is goes through memory, and so do all sums: what
 * the verifier does not know it does not tell apart. */
static __always_inline void walk_payload(struct walk *walk, u64 at, u64 size, u32 begun) {
  u64 left = walk->left, rest = size - at;
  s64 beyond = left - rest;
  asm volatile("" : "+r"(beyond));
  u64 take = rest + (beyond & (beyond >> 63)); /* the smaller one */
  walk->left = left - take;
  *(volatile u64 *)&walk->at = at + take;
  walk_add(walk, take, begun);
}

/* Walks through one call; false: the walk ends here. */
static __always_inline bool walk_call(struct walk *walk, u64 from, u64 size) {
  u32 begun = 0;
  u64 at = 0, have = walk->have;
  if (have) {
    u64 needed = FRAME_HEADER - have;
    if (needed > size)
      needed = size;
    asm volatile("" : "+r"(needed), "+r"(have));
    if (have >= FRAME_HEADER || needed > FRAME_HEADER ||
        bpf_probe_read_user(&walk->header[have], needed, (void *)from))
      return false;
    walk->have = have + needed;
    if (have + needed < FRAME_HEADER) {
      walk->others = 1;
      return true;
    }
    walk->have = 0;
    if (!walk_header(walk))
      return false;
    at = needed;
    begun = 1;
  }
  if (begun || walk->left)
    walk_payload(walk, at, size, begun);
  *(volatile u64 *)&walk->size = size;
  for (u32 i = 0; i < FRAMES_A_CALL; i++) {
    at = *(volatile u64 *)&walk->at;
    size = *(volatile u64 *)&walk->size;
    if (at + FRAME_HEADER > size)
      break;
    if (bpf_probe_read_user(walk->header, FRAME_HEADER, (void *)(from + at)) || !walk_header(walk))
      return false;
    walk_payload(walk, at + FRAME_HEADER, size, 1);
  }
  at = *(volatile u64 *)&walk->at;
  if (at >= size)
    return true;
  u64 rest = size - at;
  asm volatile("" : "+r"(rest));
  if (rest >= FRAME_HEADER || bpf_probe_read_user(walk->header, rest, (void *)(from + at)))
    return false;
  walk->have = rest;
  walk->others = 1;
  return true;
}

/* Tells what was left out; false: the ring is full, and it is still to be told. */
static __always_inline bool emit_run(struct conn_state *state, void *ring, u32 direction, struct walk *walk) {
  struct record *record = bpf_ringbuf_reserve(ring, sizeof(struct record) + sizeof(struct skipped), 0);
  if (!record)
    return false;
  fill_header(record, RECORD_SKIPPED, direction, state);
  record->time = walk->run_time;
  record->call_start = walk->run_start;
  record->offset = walk->run_from;
  record->size = walk->run_bytes;
  record->captured = sizeof(struct skipped);
  __builtin_memcpy(record + 1, &walk->run, sizeof(struct skipped));
  walk->run_bytes = 0;
  bpf_ringbuf_submit(record, wakeup(ring, state->shard));
  return true;
}

static __always_inline void walk_key_of(struct walk_key *key, struct conn *conn, u32 direction) {
  key->ssl = conn->ssl;
  key->generation = conn->generation;
  key->tgid = conn->tgid;
  key->direction = direction;
}

static __always_inline struct walk *frames_begin(struct walk_key *key, u64 from, u64 size) {
  u32 zero = 0;
  s32 left = http2_begins(from, size);
  void *blank = bpf_map_lookup_elem(MAP_BLANK, &zero);
  if (left < 0 || !blank || bpf_map_update_elem(MAP_WALKS, key, blank, 0))
    return NULL;
  struct walk *walk = bpf_map_lookup_elem(MAP_WALKS, key);
  if (walk)
    walk->left = left;
  return walk;
}

/* Of which streams nobody wants the body. */
static __always_inline void walk_permitted(struct walk *walk, struct conn *conn, u32 direction) {
  walk->pair[0] = walk->pair[1] = 0;
  u32 slot = unwanted_slot(conn);
  struct unwanted *entry = bpf_map_lookup_elem(MAP_UNWANTED, &slot);
  if (!entry || *(volatile u64 *)&entry->generation != conn->generation || entry->ssl != conn->ssl)
    return;
  volatile u64 *streams = direction == RECEIVED ? entry->streams[RECEIVED] : entry->streams[SENT];
  walk->pair[0] = streams[0];
  walk->pair[1] = streams[1];
  if (*(volatile u64 *)&entry->generation != conn->generation) /* another took the slot meanwhile */
    walk->pair[0] = walk->pair[1] = 0;
}

/* Walks through what a call moved; true if it is not to be delivered. `offset` is where it begins in its stream. */
static __always_inline bool walked_over(struct conn_state *state, void *ring, struct piece *piece, bool reported) {
  u32 direction = piece->direction;
  u64 size = piece->size;
  struct walk_key key;
  walk_key_of(&key, &state->conn, direction);
  struct walk *walk = bpf_map_lookup_elem(MAP_WALKS, &key);
  if (!walk && !piece->offset)
    walk = frames_begin(&key, piece->from, size);
  if (!walk)
    return false;
  u64 small = size - UNWANTED_CALL;
  asm volatile("" : "+r"(small)); /* no branch: what follows would be walked for both */
  *(volatile u8 *)&walk->others = reported | small >> 63;
  if (!walk->over) {
    walk->at = 0;
    __builtin_memset(&walk->call, 0, sizeof(walk->call));
    if (*(volatile u8 *)&walk->others)
      walk->pair[0] = walk->pair[1] = 0;
    else
      walk_permitted(walk, &state->conn, direction);
    u64 next = walk->next;
    walk->next = piece->offset + size;
    if (next != piece->offset || !walk_call(walk, piece->from, size))
      walk->over = 1;
  }
  bool skip = !walk->over && !walk->others;
  bool joins = walk->run_from + walk->run_bytes == piece->offset && walk->pair[0] == walk->run.pair[0] &&
               walk->pair[1] == walk->run.pair[1];
  u64 behind = walk->run_bytes;
  if (behind && (!skip || !joins || behind >= RUN_MOST) && !emit_run(state, ring, direction, walk)) {
    count(COUNTER_RING_FULL_CONTROL, 1);
    if (!skip || !joins) {
      count(COUNTER_RING_FULL_DATA_RECORDS, 1);
      count(COUNTER_RING_FULL_DATA_BYTES, size);
      return true;
    }
  }
  if (!skip)
    return false;
  if (!walk->run_bytes) {
    walk->run_from = piece->offset;
    __builtin_memset(&walk->run, 0, sizeof(walk->run));
    walk->run.pair[0] = walk->pair[0];
    walk->run.pair[1] = walk->pair[1];
  }
  for (u32 i = 0; i < UNWANTED_STREAMS; i++) {
    walk->run.frames[i] += walk->call.frames[i];
    walk->run.payload[i] += walk->call.payload[i];
  }
  walk->run.left = walk->left;
  walk->run.current = walk->stream;
  walk->run_bytes += size;
  walk->run_time = bpf_ktime_get_ns();
  walk->run_start = piece->start;
  count(COUNTER_UNWANTED_BYTES, size);
  return true;
}

/* Whether something was left out of a direction that is still to be told. */
static __always_inline bool walk_tells(struct conn_state *state, u32 direction) {
  struct walk_key key;
  walk_key_of(&key, &state->conn, direction);
  struct walk *walk = bpf_map_lookup_elem(MAP_WALKS, &key);
  return walk && walk->run_bytes;
}

/* A direction ends, or the connection does: what is lost of the end shows by the offsets. */
static __always_inline void walk_ends(struct conn_state *state, void *ring, u32 direction, bool last) {
  struct walk_key key;
  walk_key_of(&key, &state->conn, direction);
  struct walk *walk = bpf_map_lookup_elem(MAP_WALKS, &key);
  if (!walk)
    return;
  if (walk->run_bytes && !emit_run(state, ring, direction, walk))
    count(COUNTER_RING_FULL_CONTROL, 1);
  if (last)
    bpf_map_delete_elem(MAP_WALKS, &key);
}
