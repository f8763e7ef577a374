/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * TLS of Go programs: the methods of *tls.Conn.
 *
 * A goroutine may begin a call on one thread and end it on another, and its stack may be copied elsewhere in
 * between. So a call is known by its goroutine and by how deep its frame lies below the top of the stack,
 * which copying does not change. Returns are probed at each RET: a return probe would put a foreign return
 * address on a stack that the runtime walks, and crash the program.
 *
 * Arguments are in rax, rbx, rcx and the goroutine in r14 (src/cmd/compile/abi-internal.md); before Go 1.17
 * they are on the stack, and the goroutine is at fs:-8. Either way a goroutine begins with the bounds of its
 * stack (runtime.g), and unless the stack pointer lies within them, nothing is believed.
 */

struct go_frame {
  u64 g;
  u64 high; /* end of the goroutine's stack */
  u64 low;
  u64 sp;
  bool on_stack; /* arguments and results */
};

#if defined(__x86_64__) || defined(__TARGET_ARCH_x86)
#define GO_G(ctx) ((ctx)->r14)
#define GO_ARGUMENT_0(ctx) ((ctx)->ax)
#define GO_ARGUMENT_1(ctx) ((ctx)->bx)
#define GO_ARGUMENT_2(ctx) ((ctx)->cx)
#else
#define GO_G(ctx) ((ctx)->regs[28])
#define GO_ARGUMENT_0(ctx) ((ctx)->regs[0])
#define GO_ARGUMENT_1(ctx) ((ctx)->regs[1])
#define GO_ARGUMENT_2(ctx) ((ctx)->regs[2])
#endif

static __always_inline bool go_frame_of(struct go_frame *frame, struct pt_regs *ctx, u64 cookie) {
  frame->on_stack = ((cookie >> 8) & 0xff) == FLAVOUR_STACK;
  frame->g = GO_G(ctx);
  frame->sp = PT_REGS_SP(ctx);
#ifdef OFF_task_fsbase
  if (frame->on_stack) {
    u64 base = read_u64(bpf_get_current_task(), OFF_task_fsbase);
    if (!read_user(&frame->g, 8, base - 8))
      return false;
  }
#endif
  u64 bounds[2] = {};
  if (!read_user(bounds, sizeof(bounds), frame->g))
    return false;
  frame->low = bounds[0];
  frame->high = bounds[1];
  return frame->low < frame->sp && frame->sp < frame->high;
}

/* The word `index` of the arguments and results together, of a function before Go 1.17. */
static __always_inline u64 go_stack_word(struct go_frame *frame, u32 index) {
  u64 value = 0;
  read_user(&value, 8, frame->sp + 8 + index * 8);
  return value;
}

static __always_inline void go_key_of(struct go_key *key, struct go_frame *frame, u64 id) {
  key->g = frame->g;
  key->tgid = id >> 32;
  key->depth = frame->high - frame->sp; /* a stack has at most 1 GB */
}

static __always_inline void go_conn_key(struct conn_key *key, struct go_call *call, u64 id) {
  key->tgid = id >> 32;
  key->exec_id = call->exec_id;
  key->start_ns = call->start_ns;
  key->ssl = call->conn;
}

/* A handshake begins. An object that has had one is either renegotiating over the same socket, or it is
 * another one at the address of one that was never closed, only collected. One that has had nothing was met
 * at the Write that this handshake is part of. */
static __always_inline void go_handshake_begins(struct go_call *call, u64 id, u32 library) {
  struct conn_key key;
  go_conn_key(&key, call, id);
  struct conn_state *state = bpf_map_lookup_elem(MAP_CONNS, &key);
  if (state && (state->conn.flags & CONN_HANDSHAKE_SEEN || state->conn.offset[SENT] || state->conn.offset[RECEIVED])) {
    u64 sk = go_socket_of(call->conn);
    u64 cookie = sk ? read_u64(sk, OFF_sk_cookie) : 0;
    if (cookie && cookie == state->conn.socket_cookie)
      return;
    emit_control(state, RECORD_CLOSE, 0);
    bpf_map_delete_elem(MAP_CONNS, &key);
    state = NULL;
  }
  if (!state)
    state = conn_make(&key, library, id);
  if (!state)
    return;
  state->conn.flags |= CONN_HANDSHAKE_SEEN;
  state->conn.handshake_start = call->start;
}

int go_enter(struct pt_regs *ctx) {
  if (!admitted())
    return 0;
  u64 cookie = bpf_get_attach_cookie(ctx);
  u64 id = bpf_get_current_pid_tgid();
  struct go_frame frame = {};
  if (!go_frame_of(&frame, ctx, cookie)) {
    count(COUNTER_CALL_UNMATCHED, 1);
    return 0;
  }
  struct go_key key = {};
  go_key_of(&key, &frame, id);
  u64 task = bpf_get_current_task();
  struct go_call call = {};
  call.op = cookie & 0xff;
  call.start = bpf_ktime_get_ns();
  call.start_ns = process_start(read_u64(task, OFF_task_group_leader));
  call.exec_id = read_u32(task, OFF_task_self_exec_id);
  call.conn = frame.on_stack ? go_stack_word(&frame, 0) : GO_ARGUMENT_0(ctx);
  if (call.op >= OP_HANDSHAKE) {
    /* The check that found the stack too small is passed again on the new one: the same call. */
    struct go_call *before = bpf_map_lookup_elem(MAP_GOROUTINES, &key);
    if (before && before->conn == call.conn && before->op == call.op && before->start_ns == call.start_ns)
      return 0;
    go_handshake_begins(&call, id, (cookie >> 16) & 0xff);
  } else {
    call.buffer = frame.on_stack ? go_stack_word(&frame, 1) : GO_ARGUMENT_1(ctx);
    call.room = frame.on_stack ? go_stack_word(&frame, 2) : GO_ARGUMENT_2(ctx);
    /* Read's buffer may be the caller's own variable, and moves with the stack. */
    if (frame.low <= call.buffer && call.buffer < frame.high) {
      call.buffer = frame.high - call.buffer;
      call.moves = 1;
    }
    struct conn_key conn;
    go_conn_key(&conn, &call, id);
    struct conn_state *state = bpf_map_lookup_elem(MAP_CONNS, &conn);
    if (!state && call.op == OP_WRITE)
      state = conn_make(&conn, (cookie >> 16) & 0xff, id);
    if (state)
      call.generation = state->conn.generation;
    if (call.op == OP_WRITE && !go_write_begins(state, &key, &call))
      return 0;
  }
  if (bpf_map_update_elem(MAP_GOROUTINES, &key, &call, 0))
    count(COUNTER_CALL_TABLE_FULL, 1);
  return 0;
}

static __always_inline void go_handshake_ends(struct go_call *call, u64 id, bool success) {
  struct conn_key key;
  go_conn_key(&key, call, id);
  struct conn_state *state = bpf_map_lookup_elem(MAP_CONNS, &key);
  if (!state || !success || state->conn.flags & CONN_HANDSHAKE_DONE)
    return; /* what has failed is told by the close record */
  state->conn.flags |= CONN_HANDSHAKE_DONE;
  go_learn_socket(state);
  if (state->conn.role == ROLE_UNKNOWN)
    state->conn.role = call->op == OP_CONNECT ? ROLE_CLIENT : ROLE_SERVER;
  emit_control(state, RECORD_HANDSHAKE, state->conn.handshake_start);
}

/* What a Read returned: never more than one TLS record. */
static __always_inline void go_report_read(struct conn_state *state, void *ring, struct piece *piece) {
  account(state, ACCOUNTED_BYTES);
  piece->offset = state->conn.offset[RECEIVED];
  bool counted_only = spared(state, RECEIVED, piece->from, piece->size, piece->start);
  state->conn.offset[RECEIVED] += piece->size;
  if (counted_only)
    return;
  if (state->traffic == TRAFFIC_HTTP2) {
    if (walked_over(state, ring, piece, false))
      return;
  } else {
    u64 skipped = unwanted(&state->conn, RECEIVED, piece->offset, piece->size);
    if (skipped >= piece->size)
      return;
    advance(piece, skipped);
    piece->size -= skipped;
  }
  piece->flags = resumes(state, RECEIVED);
  emit_last(state, ring, piece);
}

/* At a RET: the stack pointer is as it was at the entry. Finds the call, and whether it is still to be
 * reported. */
static __always_inline bool go_leave(struct go_frame *frame, struct go_call *call, struct pt_regs *ctx) {
  u64 cookie = bpf_get_attach_cookie(ctx);
  if (!go_frame_of(frame, ctx, cookie))
    return false;
  struct go_key key = {};
  go_key_of(&key, frame, bpf_get_current_pid_tgid());
  struct go_call *entry = bpf_map_lookup_elem(MAP_GOROUTINES, &key);
  if (!entry || entry->op != (cookie & 0xff)) {
    /* Out of scope at entry, or attached in the middle of the call: counted where it would be captured. */
    if (admitted())
      count(COUNTER_CALL_UNMATCHED, 1);
    return false;
  }
  u64 claim = __sync_fetch_and_or(&entry->claim, GO_TAKEN_OVER);
  *call = *entry;
  call->claim = claim;
  bpf_map_delete_elem(MAP_GOROUTINES, &key);
  return true;
}

/* The connection of a call that has moved `size` bytes. While the call was running nothing else can have come
 * to stand at the object's address; but another goroutine may have closed it. */
static __always_inline struct conn_state *go_moved(struct go_call *call, u64 size, u64 id, u64 library) {
  struct conn_key key;
  go_conn_key(&key, call, id);
  struct conn_state *state = bpf_map_lookup_elem(MAP_CONNS, &key);
  if (!state && !call->generation)
    state = conn_make(&key, library, id);
  if (!state || size > call->room || size > GO_MAX_TRANSFER) {
    count(COUNTER_CALL_UNMATCHED, 1);
    return NULL;
  }
  go_learn_socket(state);
  return state;
}

/* Results of Read and Write: the count, then the error. A Read that returns nothing tells no end: io.EOF stands
 * for close_notify and for a connection that was cut between two records. */
int go_read(struct pt_regs *ctx) {
  u64 id = bpf_get_current_pid_tgid();
  struct go_frame frame = {};
  struct go_call call;
  if (!go_leave(&frame, &call, ctx))
    return 0;
  u64 size = frame.on_stack ? go_stack_word(&frame, 4) : GO_ARGUMENT_0(ctx);
  if (!size)
    return 0;
  struct conn_state *state = go_moved(&call, size, id, (bpf_get_attach_cookie(ctx) >> 16) & 0xff);
  if (!state)
    return 0;
  u32 shard = state->shard;
  void *ring = bpf_map_lookup_elem(MAP_RINGS, &shard);
  if (!ring)
    return 0;
  go_report_under_way(state, ring, id);
  struct piece piece = {.size = size, .start = call.start, .direction = RECEIVED};
  piece.from = call.moves ? frame.high - call.buffer : call.buffer;
  go_report_read(state, ring, &piece);
  return 0;
}

int go_wrote(struct pt_regs *ctx) {
  u64 id = bpf_get_current_pid_tgid();
  struct go_frame frame = {};
  struct go_call call;
  if (!go_leave(&frame, &call, ctx))
    return 0;
  struct conn_key key;
  go_conn_key(&key, &call, id);
  u64 size = frame.on_stack ? go_stack_word(&frame, 4) : GO_ARGUMENT_0(ctx);
  if (size) {
    struct conn_state *moved = go_moved(&call, size, id, (bpf_get_attach_cookie(ctx) >> 16) & 0xff);
    u64 from = call.moves ? frame.high - call.buffer : call.buffer;
    if (moved)
      go_report_write(moved, &call, from, size);
  }
  struct conn_state *state = bpf_map_lookup_elem(MAP_CONNS, &key);
  if (!state || !call.counted || state->conn.generation != call.generation)
    return 0;
  if (__sync_fetch_and_add(&state->writers, -1) > GO_CLOSING && !GO_WRITERS(state)) {
    emit_control(state, RECORD_CLOSE, 0);
    bpf_map_delete_elem(MAP_CONNS, &key);
  }
  return 0;
}

/* Result of the handshakes: the error; before 1.17 it stands behind the receiver. */
int go_shook_hands(struct pt_regs *ctx) {
  struct go_frame frame = {};
  struct go_call call;
  if (!go_leave(&frame, &call, ctx))
    return 0;
  u64 error = frame.on_stack ? go_stack_word(&frame, 1) : GO_ARGUMENT_0(ctx);
  go_handshake_ends(&call, bpf_get_current_pid_tgid(), !error);
  return 0;
}

/* Close: this use of the object is over. It may be called more than once, while others read, and while a thread
 * that has written all it had has not yet come back to say so. */
int go_end(struct pt_regs *ctx) {
  if (!admitted())
    return 0;
  u64 id = bpf_get_current_pid_tgid();
  u64 cookie = bpf_get_attach_cookie(ctx);
  struct go_frame frame = {};
  if (!go_frame_of(&frame, ctx, cookie))
    return 0;
  u64 task = bpf_get_current_task();
  struct conn_key key = {};
  key.tgid = id >> 32;
  key.exec_id = read_u32(task, OFF_task_self_exec_id);
  key.start_ns = process_start(read_u64(task, OFF_task_group_leader));
  key.ssl = frame.on_stack ? go_stack_word(&frame, 0) : GO_ARGUMENT_0(ctx);
  struct conn_state *state = bpf_map_lookup_elem(MAP_CONNS, &key);
  if (!state || (u32)__sync_fetch_and_add(&state->writers, GO_CLOSING))
    return 0;
  emit_control(state, RECORD_CLOSE, 0);
  bpf_map_delete_elem(MAP_CONNS, &key);
  return 0;
}
