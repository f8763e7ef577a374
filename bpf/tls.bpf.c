/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * TLS calls of "object, pointer, length" libraries: plaintext, handshakes, ends of connections.
 *
 * One enter and one exit program serve every such function; the attach cookie says which it is. Enter
 * remembers the arguments, exit knows how much was really moved and copies it: a call that returns
 * WANT_READ or WANT_WRITE moves nothing and leaves no record, whatever it was given.
 */

static __always_inline u64 process_start(u64 leader) { return read_u64(leader, OFF_task_start_boottime); }

/* The thread's table of active calls; NULL for a thread that never made a TLS call. */
static __always_inline struct calls *calls_known(void) {
  return task_storage_get(MAP_CALLS, current_task(), NULL, 0);
}

/* Whose calls they are, as the thread's process is now. */
static __always_inline void calls_begin(struct calls *calls) {
  u64 task = bpf_get_current_task();
  calls->start_ns = process_start(read_u64(task, OFF_task_group_leader));
  calls->exec_id = read_u32(task, OFF_task_self_exec_id);
  calls->depth = 0;
  calls->socket = 0;
  calls->adjacent.until = 0;
}

/* The same; made on the thread's first call. */
static __always_inline struct calls *thread_calls(void) {
  struct calls *calls = calls_known();
  if (calls)
    return calls;
  calls = task_storage_get(MAP_CALLS, current_task(), NULL, TASK_STORAGE_CREATE);
  if (!calls) {
    count(COUNTER_CALL_TABLE_FULL, 1); /* out of memory */
    return NULL;
  }
  calls_begin(calls);
  return calls;
}

/* A slot of the thread's table. The barrier hides from LLVM that the index is small, or it drops the mask
 * that the verifier wants to see. */
static __always_inline struct call *call_at(struct calls *calls, u64 index) {
  asm volatile("" : "+r"(index));
  return &calls->call[index & (CALL_DEPTH - 1)];
}

static __always_inline struct conn_state *conn_make(struct conn_key *key, u32 library, u64 id) {
  struct conn_state state = {};
  u64 now = bpf_ktime_get_ns();
  u64 leader = read_u64(bpf_get_current_task(), OFF_task_group_leader);
  u32 zero = 0;
  struct settings *settings = bpf_map_lookup_elem(MAP_SETTINGS, &zero);

  state.conn.tgid = key->tgid;
  state.conn.exec_id = key->exec_id;
  state.conn.start_ns = key->start_ns;
  state.conn.ssl = key->ssl;
  state.conn.generation = now;
  state.conn.library = library;
  state.conn.tid = (u32)id;
  state.conn.ppid = read_u32(read_u64(leader, OFF_task_real_parent), OFF_task_tgid);
  state.conn.uid = bpf_get_current_uid_gid();
  bpf_probe_read_kernel(state.conn.comm, sizeof(state.conn.comm), (void *)(leader + OFF_task_comm));
  state.fd = -1;
  /* Spread by what differs between connections: the pointer's middle bits and the time. */
  if (settings && settings->shards > 1)
    state.shard = ((u32)(key->ssl >> 6) ^ (u32)(now >> 10)) % settings->shards;
  if (bpf_map_update_elem(MAP_CONNS, key, &state, 0)) {
    count(COUNTER_CONN_TABLE_FULL, 1);
    return NULL;
  }
  bpf_map_update_elem(MAP_SPEAKERS, &key->tgid, &key->start_ns, 0);
  return bpf_map_lookup_elem(MAP_CONNS, key);
}

static __always_inline void conn_key_of(struct conn_key *key, struct calls *calls, u64 id, u64 ssl) {
  key->tgid = id >> 32;
  key->exec_id = calls->exec_id;
  key->start_ns = calls->start_ns;
  key->ssl = ssl;
}

static __always_inline struct conn_state *conn_of(struct calls *calls, u64 id, u64 ssl, u32 library) {
  struct conn_key key;
  conn_key_of(&key, calls, id, ssl);
  struct conn_state *state = bpf_map_lookup_elem(MAP_CONNS, &key);
  return state ? state : conn_make(&key, library, id);
}

static __always_inline bool walk_fd(struct conn_state *state);
static __always_inline void handshake_failed(struct calls *calls, u64 id, struct call *call, s32 result);
static __always_inline void adjacent_call(struct conn_state *state, struct calls *calls, u32 op, u64 size);

static __always_inline struct conn_state *conn_known(struct calls *calls, u64 id, u64 ssl) {
  struct conn_key key;
  conn_key_of(&key, calls, id, ssl);
  return bpf_map_lookup_elem(MAP_CONNS, &key);
}

/* A call is over that moved `size` bytes: if still nothing names its socket, what is next to it may. */
static __always_inline void call_over(struct conn_state *state, struct calls *calls, u32 op, u64 size) {
  if (!calls->depth && state && state->conn.method == METHOD_NONE && state->fd < 0)
    adjacent_call(state, calls, op, size);
}

/* The thread's call has ended, and not as it was expected to. */
static __always_inline void end_missed(struct calls *calls, u64 id) {
  whole_missed(conn_known(calls, id, call_at(calls, 0)->ssl));
}

/* Enter: object, buffer, length. Frames that are deeper in the stack than this one have ended without
 * their return being seen (longjmp, a killed probe); they are dropped by comparing stack pointers. */
static __always_inline bool entered(struct pt_regs *ctx, bool session) {
  if (!admitted())
    return false;
  u64 cookie = bpf_get_attach_cookie(ctx);
  u64 id = bpf_get_current_pid_tgid();
  if (cookie >> 32)
    compare(ctx, cookie, id);
  struct calls *calls = thread_calls();
  if (!calls)
    return false;
  u64 sp = PT_REGS_SP(ctx);
  u32 depth = calls->depth;
#pragma unroll
  for (u32 i = 0; i < CALL_DEPTH; i++) {
    asm volatile("" : "+r"(depth)); /* keeps LLVM from proving the bound and dropping it */
    if (!depth || depth > CALL_DEPTH || call_at(calls, depth - 1)->sp > sp)
      break;
    depth--;
  }
  if (depth >= CALL_DEPTH) {
    count(COUNTER_CALL_TABLE_FULL, 1);
    return false;
  }
  u32 op = cookie & 0xff;
  struct conn_key key;
  conn_key_of(&key, calls, id, PT_REGS_PARM1(ctx));
  if ((cookie & COOKIE_KNOWN_ONLY) && !bpf_map_lookup_elem(MAP_CONNS, &key))
    return false;
  struct conn_state *state = NULL;
  if (!depth && op <= OP_WRITE) {
    if (session && calls->depth && call_at(calls, 0)->unseen)
      end_missed(calls, id);
    struct demand *demand = leaving_out();
    if (demand || (session && op == OP_WRITE))
      state = bpf_map_lookup_elem(MAP_CONNS, &key);
    if (demand && state && left_alone(demand, state, calls, op, PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx))) {
      calls->depth = 0;
      return false;
    }
  }
  struct call *call = call_at(calls, depth);
  call->sp = sp;
  call->ssl = PT_REGS_PARM1(ctx);
  call->buffer = PT_REGS_PARM2(ctx);
  call->count_at = PT_REGS_PARM4(ctx);
  call->start = bpf_ktime_get_ns();
  call->room = PT_REGS_PARM3(ctx);
  call->op = op;
  call->named = 0;
  call->library = (cookie >> 16) & 0xff;
  call->sent = 0;
  call->sends = 0;
  call->unseen = session && op == OP_WRITE && goes_whole(state, call->room);
  calls->depth = depth + 1;
  if (op >= OP_HANDSHAKE && op <= OP_ACCEPT) {
    call->buffer = 0; /* where tls_error leaves why it fails */
    state = conn_of(calls, id, call->ssl, call->library);
    if (state)
      forget_whole(state); /* TLS 1.2 may change to other ciphers */
    if (state && !(state->conn.flags & CONN_HANDSHAKE_SEEN)) {
      state->conn.flags |= CONN_HANDSHAKE_SEEN;
      state->conn.handshake_start = call->start;
    }
  }
  return !call->unseen;
}

static __always_inline int left(struct pt_regs *ctx) {
  u64 id = bpf_get_current_pid_tgid();
  struct calls *calls = calls_known();
  if (!calls || !calls->depth)
    return 0; /* out of scope at entry, or attached in the middle of the call */
  u64 cookie = bpf_get_attach_cookie(ctx);
  u64 sp = PT_REGS_SP(ctx) - RETURN_SP_SHIFT;
  u32 op = cookie & 0xff;
  u32 depth = calls->depth;
  struct call *call = NULL;
#pragma unroll
  for (u32 i = 0; i < CALL_DEPTH; i++) {
    asm volatile("" : "+r"(depth));
    if (!depth || depth > CALL_DEPTH)
      break;
    depth--;
    struct call *candidate = call_at(calls, depth);
    if (candidate->sp == sp && candidate->op == op) {
      call = candidate;
      break;
    }
  }
  if (!call) {
    if (!(cookie & COOKIE_KNOWN_ONLY)) /* else it was no TLS object at entry */
      count(COUNTER_CALL_UNMATCHED, 1);
    return 0;
  }
  calls->depth = depth;
  if (op == OP_UNCORK)
    return 0;
  if (op == OP_IMPORT) {
    u64 object = PT_REGS_RC(ctx);
    if (object)
      conn_of(calls, id, object, call->library);
    return 0;
  }
  if (depth) {
    struct call *outer = call_at(calls, depth - 1);
    if (outer->ssl == call->ssl && outer->op == OP_UNCORK)
      return 0; /* written before */
  }

  s32 result = (s32)PT_REGS_RC(ctx);
  u32 flavour = (cookie >> 8) & 0xff;
  if (op >= OP_HANDSHAKE) {
    struct conn_state *state = conn_known(calls, id, call->ssl);
    call_over(state, calls, op, 0);
    if (result != (flavour == FLAVOUR_ZERO ? 0 : 1)) {
      handshake_failed(calls, id, call, result);
      return 0;
    }
    if (!state)
      state = conn_of(calls, id, call->ssl, call->library);
    if (state && !(state->conn.flags & CONN_HANDSHAKE_DONE)) {
      state->conn.flags |= CONN_HANDSHAKE_DONE;
      if (state->conn.method == METHOD_NONE)
        walk_fd(state);
      emit_control(state, RECORD_HANDSHAKE, state->conn.handshake_start);
    }
    return 0;
  }
  u64 size = 0;
  if (flavour == FLAVOUR_POINTER) {
    if (result > 0 && bpf_probe_read_user(&size, sizeof(size), (void *)call->count_at))
      count(COUNTER_FAULT_RECORDS, 1);
  } else if (flavour == FLAVOUR_ZERO) {
    if (!result)
      size = call->room;
  } else if (result > 0) {
    size = result;
  }
  struct conn_state *state = conn_known(calls, id, call->ssl);
  call_over(state, calls, op, size);
  if (!size && (result != 0 || op != OP_READ))
    return 0;
  /* The end alone begins nothing: of a connection that no byte was seen of, nobody needs to hear. */
  if (!state && size)
    state = conn_of(calls, id, call->ssl, call->library);
  if (!state)
    return 0;
  if (state->conn.method == METHOD_NONE)
    walk_fd(state);
  if (size && flavour == FLAVOUR_VECTOR) {
    account(state, ACCOUNTED_BYTES);
    state->conn.offset[SENT] += size; /* the next record's offset tells the gap */
    count(COUNTER_OVERSIZE_BYTES, size);
  } else if (size) {
    emit_data(state, call, size);
    if (op == OP_WRITE)
      learn_whole(state, call, size);
  } else if (call->room && (cookie & COOKIE_ZERO_IS_EOF) && !(state->conn.flags & CONN_SOCKET_ENDED))
    emit_control(state, RECORD_EOF, call->start);
  return 0;
}

int tls_enter(struct pt_regs *ctx) {
  entered(ctx, false);
  return 0;
}

int tls_exit(struct pt_regs *ctx) { return left(ctx); }

/* The loader puts the kernel function's type id here (bpf_session_is_return). */
static bool (*session_is_return)(void *ctx) = (void *)KFUNC_SESSION_IS_RETURN;

/* Both in one, where the kernel has uprobe sessions: what the entry answers decides whether the return is seen
 * at all. Half of a probe's cost is saved for calls that are out of scope, of no TLS object, or left alone. */
int tls_call(struct pt_regs *ctx) {
  if (session_is_return(ctx)) {
    left(ctx);
    return 0;
  }
  return !entered(ctx, true);
}

/* SSL_set_fd: which descriptor carries the connection. The socket may not be connected yet, so the walk
 * from fd to socket is left to the first call that moves data. */
int tls_set_fd(struct pt_regs *ctx) {
  if (!admitted())
    return 0;
  u64 id = bpf_get_current_pid_tgid();
  struct calls *calls = thread_calls();
  if (!calls)
    return 0;
  struct conn_state *state = conn_of(calls, id, PT_REGS_PARM1(ctx), (bpf_get_attach_cookie(ctx) >> 16) & 0xff);
  if (state)
    state->fd = (s32)PT_REGS_PARM2(ctx);
  return 0;
}

/* SSL_free and SSL_clear: this use of the object is over; the offsets in the record are final. The
 * handshake itself calls SSL_clear on a fresh object: nothing was moved yet, so nothing has ended. */
int tls_end(struct pt_regs *ctx) {
  if (!admitted())
    return 0;
  u64 id = bpf_get_current_pid_tgid();
  struct calls *calls = thread_calls();
  if (!calls)
    return 0;
  struct conn_key key;
  conn_key_of(&key, calls, id, PT_REGS_PARM1(ctx));
  if (calls->depth == 1 && call_at(calls, 0)->unseen && call_at(calls, 0)->ssl == key.ssl)
    calls->depth = 0; /* a write that failed before anything was sent: no more will be told of it */
  struct conn_state *state = bpf_map_lookup_elem(MAP_CONNS, &key);
  if (!state)
    return 0;
  bool clear = (bpf_get_attach_cookie(ctx) & 0xff) == OP_CLEAR;
  if (clear && !state->conn.offset[SENT] && !state->conn.offset[RECEIVED])
    return 0;
  s32 fd = state->fd;
  u32 library = state->conn.library;
  emit_control(state, RECORD_CLOSE, 0);
  bpf_map_delete_elem(MAP_CONNS, &key);
  if (clear) {
    state = conn_make(&key, library, id); /* a new generation that keeps its descriptor */
    if (state)
      state->fd = fd;
  }
  return 0;
}
