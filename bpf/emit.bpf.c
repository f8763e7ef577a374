/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Records into the ring: one that only tells something, and the plaintext of a call in pieces of fixed sizes.
 *
 * A ring reservation must have a size that the verifier knows. What finds the ring full is counted, and the
 * offsets of the records that follow tell how much is missing. What nobody wants is not copied (demand.bpf.c).
 */

static __always_inline void fill_header(struct record *record, u32 kind, u32 direction, struct conn_state *state) {
  record->kind = kind;
  record->direction = direction;
  record->flags = 0;
  record->captured = 0;
  record->time = bpf_ktime_get_ns();
  record->offset = 0;
  record->size = 0;
  record->call_start = 0;
  record->tid = (u32)bpf_get_current_pid_tgid();
  record->pad = 0;
  record->conn = state->conn;
}

/* A record without payload. */
static __always_inline void emit_control(struct conn_state *state, u32 kind, u64 start) {
  u32 shard = state->shard;
  void *ring = bpf_map_lookup_elem(MAP_RINGS, &shard);
  if (!ring)
    return;
  if ((kind == RECORD_CLOSE || kind == RECORD_EOF) && state->traffic == TRAFFIC_HTTP2)
    walk_ends(state, ring, RECEIVED, kind == RECORD_CLOSE);
  if (kind == RECORD_CLOSE && state->traffic == TRAFFIC_HTTP2)
    walk_ends(state, ring, SENT, true);
  struct record *record = bpf_ringbuf_reserve(ring, sizeof(struct record), 0);
  if (!record) {
    count(COUNTER_RING_FULL_CONTROL, 1);
    return;
  }
  fill_header(record, kind, RECEIVED, state);
  record->call_start = start;
  record->offset = state->conn.offset[RECEIVED];
  record->flags = (state->spared[SENT] ? FLAG_SPARED : 0) | (state->spared[RECEIVED] ? FLAG_SPARED << 1 : 0);
  bpf_ringbuf_submit(record, wakeup(ring, shard));
}

/* For the coverage ledger: bytes of the connection passed a probe, or its handshake did. That its socket is known is
 * not enough: all that a probe sees that came late may be the end of the stream, or a read that finds nothing. And the
 * handshake is not the bytes: the probes of a file are put in one after another. */
static __always_inline void account(struct conn_state *state, u8 what) {
  if (state->accounted >= what || state->conn.method == METHOD_NONE)
    return;
  u64 cookie = state->conn.socket_cookie;
  struct flow *flow = bpf_map_lookup_elem(MAP_FLOWS, &cookie);
  if (flow && what == ACCOUNTED_BYTES)
    flow->plaintext = 1;
  else if (flow)
    flow->handshake = 1;
  state->accounted = what;
}

static __always_inline bool make_good(struct piece *piece) {
  return __sync_val_compare_and_swap(piece->claim, piece->claimed, piece->reported) == piece->claimed;
}

/* One record whose payload has room for ROOM bytes (a ring reservation must have a constant size). */
#define EMIT_PIECE(ROOM)                                                                                       \
  static __always_inline void emit_piece_##ROOM(struct conn_state *state, void *ring, struct piece *piece) {   \
    struct record *record = bpf_ringbuf_reserve(ring, sizeof(struct record) + ROOM, 0);                        \
    if (!record) {                                                                                             \
      if (piece->claim) /* whoever has the claim then reports, or counts, it */                                \
        return;                                                                                                \
      count(COUNTER_RING_FULL_DATA_RECORDS, 1);                                                                \
      count(COUNTER_RING_FULL_DATA_BYTES, piece->size);                                                        \
      return;                                                                                                  \
    }                                                                                                          \
    fill_header(record, RECORD_DATA, piece->direction, state);                                                 \
    record->offset = piece->offset;                                                                            \
    record->size = piece->size;                                                                                \
    record->call_start = piece->start;                                                                         \
    record->flags = piece->flags;                                                                              \
    u64 length = piece->size;                                                                                  \
    asm volatile("" : "+r"(length)); /* one copy of the length, or the verifier loses its bound */             \
    if (length > ROOM)                                                                                         \
      length = ROOM;                                                                                           \
    bool copied = bpf_probe_read_user((void *)(record + 1), length, (void *)piece->from) == 0;                 \
    if (piece->claim && !make_good(piece)) {                                                                   \
      bpf_ringbuf_discard(record, 0);                                                                          \
      return;                                                                                                  \
    }                                                                                                          \
    if (copied) {                                                                                              \
      record->captured = length;                                                                               \
    } else {                                                                                                   \
      record->flags |= FLAG_FAULT;                                                                             \
      count(COUNTER_FAULT_RECORDS, 1);                                                                         \
      count(COUNTER_FAULT_BYTES, piece->size);                                                                 \
    }                                                                                                          \
    bpf_ringbuf_submit(record, wakeup(ring, state->shard));                                                    \
  }

/* Room for small calls, messages, common buffer sizes (4, 8 KiB), one TLS record (16 KiB), and pieces of large
 * calls. Steps of two waste half of a record at worst; what is wasted is never touched, but it fills the ring. */
EMIT_PIECE(64)
EMIT_PIECE(320)
EMIT_PIECE(832)
EMIT_PIECE(1856)
EMIT_PIECE(4096)
EMIT_PIECE(8192)
EMIT_PIECE(16384)
EMIT_PIECE(262144)

/* A call of more than one TLS record is copied in pieces. The verifier walks every turn of a loop, and kernel 6.1
 * gives up after a million instructions, so a large call takes large pieces: 128 of 256 KiB are 32 MiB, twice
 * what a ring of the default size holds, in 144 turns; in pieces of 16 KiB it would be 2,048. */
#define PIECE 16384
#define MAX_PIECES 16
#define LARGE_PIECE 262144
#define MAX_LARGE_PIECES 128

static __always_inline void advance(struct piece *piece, u64 size) {
  piece->from += size;
  piece->offset += size;
}

/* The last piece of a call, or the only one. */
static __always_inline void emit_last(struct conn_state *state, void *ring, struct piece *piece) {
  u64 rest = piece->size;
  if (rest <= 64)
    emit_piece_64(state, ring, piece);
  else if (rest <= 320)
    emit_piece_320(state, ring, piece);
  else if (rest <= 832)
    emit_piece_832(state, ring, piece);
  else if (rest <= 1856)
    emit_piece_1856(state, ring, piece);
  else if (rest <= 4096)
    emit_piece_4096(state, ring, piece);
  else if (rest <= 8192)
    emit_piece_8192(state, ring, piece);
  else {
    if (rest > PIECE)
      count(COUNTER_OVERSIZE_BYTES, rest - PIECE); /* record->size tells the gap */
    emit_piece_16384(state, ring, piece);
  }
}

/* The flag of the first record behind something that was not delivered. */
static __always_inline u32 resumes(struct conn_state *state, u32 direction) {
  u8 *spared = direction == RECEIVED ? &state->spared[RECEIVED] : &state->spared[SENT];
  if (!*spared)
    return 0;
  *spared = 0;
  return FLAG_SPARED << direction;
}

/* Begins to deliver `size` bytes of a call; returns how many of them are left to be copied, from `piece` on. */
static __always_inline u64 begin_data(struct conn_state *state, void *ring, struct call *call, u64 size,
                                      struct piece *piece, bool http2) {
  u32 direction = call->op == OP_READ ? RECEIVED : SENT;
  account(state, ACCOUNTED_BYTES);
  piece->from = call->buffer;
  piece->start = call->start;
  piece->direction = direction;
  piece->size = size;
  /* Two threads never use one SSL object at once (OpenSSL forbids it), so no atomic is needed. */
  piece->offset = direction == RECEIVED ? state->conn.offset[RECEIVED] : state->conn.offset[SENT];
  bool counted_only = spared(state, direction, call->buffer, size, call->start);
  if (direction == RECEIVED)
    state->conn.offset[RECEIVED] += size;
  else
    state->conn.offset[SENT] += size;
  if (counted_only)
    return 0;
  if (http2 && state->traffic == TRAFFIC_HTTP2) {
    if (walked_over(state, ring, piece, false))
      return 0;
  } else {
    u64 skipped = unwanted(&state->conn, direction, piece->offset, size);
    if (skipped >= size)
      return 0;
    advance(piece, skipped);
    size -= skipped;
  }
  piece->flags = resumes(state, direction);
  return size;
}

static __always_inline void emit_data(struct conn_state *state, struct call *call, u64 size) {
  u32 shard = state->shard;
  void *ring = bpf_map_lookup_elem(MAP_RINGS, &shard);
  if (!ring)
    return;
  struct piece piece = {};
  u64 rest = begin_data(state, ring, call, size, &piece, true);
  if (!rest)
    return;
  piece.flags |= FLAG_CONTINUED;
  piece.size = LARGE_PIECE;
  for (u32 i = 0; i < MAX_LARGE_PIECES; i++) {
    if (rest <= LARGE_PIECE)
      break;
    emit_piece_262144(state, ring, &piece);
    piece.flags = FLAG_CONTINUED;
    advance(&piece, LARGE_PIECE);
    rest -= LARGE_PIECE;
  }
  piece.size = PIECE;
  for (u32 i = 0; i < MAX_PIECES; i++) {
    if (rest <= PIECE)
      break;
    emit_piece_16384(state, ring, &piece);
    piece.flags = FLAG_CONTINUED;
    advance(&piece, PIECE);
    rest -= PIECE;
  }
  piece.size = rest;
  piece.flags &= ~FLAG_CONTINUED;
  emit_last(state, ring, &piece);
}

/* The same for a call of one TLS record at most, and not of HTTP/2. */
static __always_inline void emit_record(struct conn_state *state, struct call *call, u64 size) {
  u32 shard = state->shard;
  void *ring = bpf_map_lookup_elem(MAP_RINGS, &shard);
  if (!ring)
    return;
  struct piece piece = {};
  piece.size = begin_data(state, ring, call, size, &piece, false);
  if (piece.size)
    emit_last(state, ring, &piece);
}
