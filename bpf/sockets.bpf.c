/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which socket carries a TLS connection.
 *
 * Evidence, strongest first: a socket operation inside the TLS call on the same thread (NESTED), the
 * descriptor given to SSL_set_fd (FD), what the thread does next to it (THREAD, adjacent.bpf.c). The cookie that ties it to its packets is there from the start:
 * flows.bpf.c makes the kernel give one to every socket in scope.
 */

struct sock;
static __always_inline void adjacent_operation(struct calls *calls, struct sock *sk, s32 length, bool typed, u32 direction);

static __always_inline bool learn_socket(struct conn_state *state, u64 sk, u64 cookie, u32 method) {
  struct flow_key key = {};
  if (!read_tuple(&key, sk))
    return false;
  state->conn.netns_cookie = key.netns_cookie;
  __builtin_memcpy(state->conn.local, key.local, 16);
  __builtin_memcpy(state->conn.remote, key.remote, 16);
  state->conn.local_port = key.local_port;
  state->conn.remote_port = key.remote_port;
  state->conn.family = key.family;
  struct flow_cookie *flow = bpf_map_lookup_elem(MAP_COOKIES, &key);
  if (flow) {
    state->conn.role = flow->role;
    if (!cookie)
      cookie = flow->cookie;
  }
  if (!cookie)
    count(COUNTER_SOCKETS_WITHOUT_COOKIE, 1);
  state->conn.socket_cookie = cookie;
  state->conn.method = method;
  state->accounted = 0; /* to another flow, if it was */
  if (state->conn.offset[SENT] || state->conn.offset[RECEIVED])
    account(state, ACCOUNTED_BYTES);
  else if (method == METHOD_THREAD || state->conn.flags & CONN_HANDSHAKE_SEEN)
    account(state, ACCOUNTED_HANDSHAKE);
  emit_control(state, RECORD_SOCKET, 0);
  return true;
}

/* fd -> file -> socket -> sock, of the current process; 0 for what is no socket. */
static __always_inline u64 socket_of_fd(u32 fd) {
  u64 files = read_u64(bpf_get_current_task(), OFF_task_files);
  u64 table = read_u64(files, OFF_files_fdt);
  if (fd >= read_u32(table, OFF_fdt_max_fds))
    return 0;
  u64 file = read_u64(read_u64(table, OFF_fdt_fd), fd * 8);
  if (!file)
    return 0;
  u16 mode = read_u16(read_u64(file, OFF_file_inode), OFF_inode_mode);
  if ((mode & 0170000) != 0140000) /* S_ISSOCK: private_data is a struct socket */
    return 0;
  return read_u64(read_u64(file, OFF_file_private_data), OFF_socket_sk);
}

/* Only for descriptors that SSL_set_fd named. */
static __always_inline bool walk_fd(struct conn_state *state) {
  u64 sk = state->fd < 0 ? 0 : socket_of_fd(state->fd);
  if (!sk)
    return false;
  return learn_socket(state, sk, read_u64(sk, OFF_sk_cookie), METHOD_FD);
}

/* The thread has sent inside a call. Returns whether nothing more is to be done for it. */
static __always_inline bool sent_inside(struct calls *calls, u64 id, struct sock *sk, s32 length) {
  struct call *call = call_at(calls, calls->depth - 1);
  if (call->op != OP_WRITE)
    return false;
  if (length > 0) {
    call->sent += length;
    call->sends++;
  }
  if (!call->unseen)
    return false;
  struct conn_state *state = conn_known(calls, id, call->ssl);
  if (state && read_u64((u64)sk, OFF_sk_cookie) != state->conn.socket_cookie) {
    call->sent -= length > 0 ? length : 0; /* a call-back of the program's, on another socket */
    return false;
  }
  if (!state || sent_whole(state, call, length))
    calls->depth--;
  return true;
}

/* Called in the context of a thread that sends or receives: if it is inside a TLS call, the socket is that
 * connection's. `typed` says that sk is a pointer the verifier trusts, so that the cookie may be asked
 * for, which makes the kernel generate one even for sockets older than the daemon. */
static __always_inline void observe(struct sock *sk, s32 length, bool typed, u32 direction) {
  u64 id = bpf_get_current_pid_tgid();
  struct calls *calls = calls_known();
  if (!calls)
    return;
  if (!calls->depth) {
    adjacent_operation(calls, sk, length, typed, direction);
    return;
  }
  if (direction == SENT && calls->depth <= CALL_DEPTH && sent_inside(calls, id, sk, length))
    return;
  if (length <= 0)
    return;
  /* TLS in TLS: every active call's connection travels over this socket. */
#pragma unroll
  for (u32 i = 0; i < CALL_DEPTH; i++) {
    if (i >= calls->depth)
      break;
    struct call *call = call_at(calls, i);
    if (call->named)
      continue;
    struct conn_state *state = conn_of(calls, id, call->ssl, call->library);
    if (!state)
      continue;
    if (state->conn.method == METHOD_NESTED) {
      call->named = 1;
      continue;
    }
    u64 cookie = typed ? bpf_get_socket_cookie(sk) : read_u64((u64)sk, OFF_sk_cookie);
    /* A call-back of a program with memory BIOs may use another socket inside the TLS call (node). */
    struct conn_key key;
    conn_key_of(&key, calls, id, call->ssl);
    struct candidate *candidate = bpf_map_lookup_elem(MAP_CANDIDATES, &key);
    if (candidate && candidate->cookie != cookie)
      continue;
    learn_socket(state, (u64)sk, cookie, METHOD_NESTED);
    if (direction == SENT) /* what is written, or a handshake inside the first read or write */
      account(state, call->op == OP_WRITE && state->conn.flags & CONN_HANDSHAKE_DONE ? ACCOUNTED_BYTES
                                                                                    : ACCOUNTED_HANDSHAKE);
  }
}

/* The peer's end of the connection without close_notify: TLS does not vouch for it, yet OpenSSL returns 0
 * from this read and all later ones, as for a proper end. */
static __always_inline void socket_ended(s32 length) {
  if (length)
    return;
  u64 id = bpf_get_current_pid_tgid();
  struct calls *calls = calls_known();
  if (!calls || !calls->depth || calls->depth > CALL_DEPTH)
    return;
  struct conn_key key;
  conn_key_of(&key, calls, id, call_at(calls, calls->depth - 1)->ssl);
  struct conn_state *state = bpf_map_lookup_elem(MAP_CONNS, &key);
  if (state)
    state->conn.flags |= CONN_SOCKET_ENDED;
}

/* A receive that gave nothing, half of those of a server that reads until it would block, names no socket. */
static __always_inline void received(struct sock *sk, s32 length, bool typed) {
  if (length < 0)
    return;
  socket_ended(length);
  observe(sk, length, typed, RECEIVED);
}

/* sock:sock_send_length and sock_recv_length (6.3): fire in the process's context inside the send or
 * receive call, with the sock first and the length second. UNIX sockets and UDP fire too; they are sorted
 * out by protocol. */
int socket_sent(u64 *ctx) {
  observe((struct sock *)ctx[0], (s32)ctx[1], true, SENT);
  return 0;
}

int socket_received(u64 *ctx) {
  received((struct sock *)ctx[0], (s32)ctx[1], true);
  return 0;
}

/* The same as plain raw tracepoints, for kernels that refuse typed ones: the cookie is only read. */
int socket_sent_raw(struct bpf_raw_tracepoint_args *ctx) {
  observe((struct sock *)ctx->args[0], (s32)ctx->args[1], false, SENT);
  return 0;
}

int socket_received_raw(struct bpf_raw_tracepoint_args *ctx) {
  received((struct sock *)ctx->args[0], (s32)ctx->args[1], false);
  return 0;
}

/* Where those tracepoints are missing: tcp_sendmsg and tcp_recvmsg, left with what they moved (fexit, 5.5). A
 * send through another protocol's functions (a socket in a sockmap, MPTCP) passes neither. */
int tcp_sent(u64 *ctx) {
  u64 moved = 0;
  function_returned(ctx, &moved);
  observe((struct sock *)ctx[0], (s32)moved, true, SENT);
  return 0;
}

int tcp_received(u64 *ctx) {
  u64 moved = 0;
  if (function_returned(ctx, &moved))
    return 0;
  received((struct sock *)ctx[0], (s32)moved, true);
  return 0;
}

/* And where functions may not be patched but by breakpoints: kprobes. The return knows only the result, so the
 * entry leaves the socket with the thread; neither function calls the other, nor itself. */
int tcp_entered(struct pt_regs *ctx) {
  u64 id = bpf_get_current_pid_tgid();
  struct calls *calls = calls_known();
  if (calls)
    calls->socket = PT_REGS_PARM1(ctx);
  return 0;
}

/* Returns the socket that this thread's call was entered with; 0: a thread without TLS, or entered unseen. */
static __always_inline u64 entered_with(void) {
  u64 id = bpf_get_current_pid_tgid();
  struct calls *calls = calls_known();
  if (!calls)
    return 0;
  u64 sk = calls->socket;
  calls->socket = 0;
  return sk;
}

int tcp_sent_return(struct pt_regs *ctx) {
  u64 sk = entered_with();
  if (sk)
    observe((struct sock *)sk, (s32)PT_REGS_RC(ctx), false, SENT);
  return 0;
}

int tcp_received_return(struct pt_regs *ctx) {
  u64 sk = entered_with();
  if (!sk)
    return 0;
  received((struct sock *)sk, (s32)PT_REGS_RC(ctx), false);
  return 0;
}
