/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which socket carries a TLS connection.
 *
 * Evidence, strongest first: a socket operation inside the TLS call on the same thread (NESTED), the
 * descriptor given to SSL_set_fd (FD). sock_ops keeps the map from tuple to cookie, which also makes
 * the kernel give every socket its cookie from the start.
 */

/* Reads the five-tuple of a struct sock; false when it is not a connected TCP socket. */
static __always_inline bool read_tuple(struct conn *conn, u64 sk) {
  u16 family = read_u16(sk, OFF_sk_family);
  if (read_u16(sk, OFF_sk_protocol) != IPPROTO_TCP)
    return false;
  u16 local_port = read_u16(sk, OFF_sk_num);
  u16 remote_port = bpf_ntohs(read_u16(sk, OFF_sk_dport));
  if (!remote_port)
    return false;
  if (family == AF_INET) {
    bpf_probe_read_kernel(conn->local, 4, (void *)(sk + OFF_sk_rcv_saddr));
    bpf_probe_read_kernel(conn->remote, 4, (void *)(sk + OFF_sk_daddr));
    conn->family = 4;
  } else if (family == AF_INET6) {
    bpf_probe_read_kernel(conn->local, 16, (void *)(sk + OFF_sk_v6_rcv_saddr));
    bpf_probe_read_kernel(conn->remote, 16, (void *)(sk + OFF_sk_v6_daddr));
    conn->family = 6;
    u32 *remote = (u32 *)conn->remote, *local = (u32 *)conn->local;
    if (remote[0] == 0 && remote[1] == 0 && remote[2] == bpf_htonl(0xffff)) {
      /* IPv4-mapped: on the wire it is IPv4, and so it is here */
      remote[0] = remote[3];
      local[0] = local[3];
      remote[2] = remote[3] = 0;
      local[1] = local[2] = local[3] = 0;
      conn->family = 4;
    }
  } else {
    return false;
  }
  conn->local_port = local_port;
  conn->remote_port = remote_port;
  conn->netns_cookie = read_u64(read_u64(sk, OFF_sk_net), OFF_net_cookie);
  return true;
}

static __always_inline bool learn_socket(struct conn_state *state, u64 sk, u64 cookie, u32 method) {
  if (!read_tuple(&state->conn, sk))
    return false;
  struct flow_key key = {};
  key.netns_cookie = state->conn.netns_cookie;
  __builtin_memcpy(key.local, state->conn.local, 16);
  __builtin_memcpy(key.remote, state->conn.remote, 16);
  key.local_port = state->conn.local_port;
  key.remote_port = state->conn.remote_port;
  key.family = state->conn.family;
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
  emit_control(state, RECORD_SOCKET, 0);
  return true;
}

/* fd -> file -> socket -> sock, of the current process; only for descriptors that SSL_set_fd named. */
static __always_inline bool walk_fd(struct conn_state *state) {
  if (state->fd < 0)
    return false;
  u64 files = read_u64(bpf_get_current_task(), OFF_task_files);
  u64 table = read_u64(files, OFF_files_fdt);
  u32 fd = state->fd;
  if (fd >= read_u32(table, OFF_fdt_max_fds))
    return false;
  u64 file = read_u64(read_u64(table, OFF_fdt_fd), fd * 8);
  if (!file)
    return false;
  u16 mode = read_u16(read_u64(file, OFF_file_inode), OFF_inode_mode);
  if ((mode & 0170000) != 0140000) /* S_ISSOCK: private_data is a struct socket */
    return false;
  u64 sk = read_u64(read_u64(file, OFF_file_private_data), OFF_socket_sk);
  if (!sk)
    return false;
  return learn_socket(state, sk, read_u64(sk, OFF_sk_cookie), METHOD_FD);
}

/* Called in the context of a thread that sends or receives: if it is inside a TLS call, the socket is that
 * connection's. `typed` says that sk is a pointer the verifier trusts, so that the cookie may be asked
 * for, which makes the kernel generate one even for sockets older than the daemon. */
static __always_inline void observe(struct sock *sk, s32 length, bool typed) {
  u64 id = bpf_get_current_pid_tgid();
  if (length <= 0)
    return;
  struct calls *calls = bpf_map_lookup_elem(MAP_CALLS, &id);
  if (!calls || !calls->depth)
    return;
  /* TLS in TLS: every active call's connection travels over this socket. */
#pragma unroll
  for (u32 i = 0; i < CALL_DEPTH; i++) {
    if (i >= calls->depth)
      break;
    struct call *call = call_at(calls, i);
    struct conn_state *state = conn_of(calls, id, call->ssl, call->library);
    if (!state || state->conn.method == METHOD_NESTED)
      continue;
    u64 cookie = typed ? bpf_get_socket_cookie(sk) : read_u64((u64)sk, OFF_sk_cookie);
    learn_socket(state, (u64)sk, cookie, METHOD_NESTED);
  }
}

/* The peer's end of the connection without close_notify: TLS does not vouch for it, yet OpenSSL returns 0
 * from this read and all later ones, as for a proper end. */
static __always_inline void socket_ended(s32 length) {
  if (length)
    return;
  u64 id = bpf_get_current_pid_tgid();
  struct calls *calls = bpf_map_lookup_elem(MAP_CALLS, &id);
  if (!calls || !calls->depth || calls->depth > CALL_DEPTH)
    return;
  struct conn_key key;
  conn_key_of(&key, calls, id, call_at(calls, calls->depth - 1)->ssl);
  struct conn_state *state = bpf_map_lookup_elem(MAP_CONNS, &key);
  if (state)
    state->conn.flags |= CONN_SOCKET_ENDED;
}

/* sock:sock_send_length and sock_recv_length (6.3): fire in the process's context inside the send or
 * receive call, with the sock first and the length second. UNIX sockets and UDP fire too; they are sorted
 * out by protocol. */
int socket_sent(u64 *ctx) {
  observe((struct sock *)ctx[0], (s32)ctx[1], true);
  return 0;
}

int socket_received(u64 *ctx) {
  socket_ended((s32)ctx[1]);
  observe((struct sock *)ctx[0], (s32)ctx[1], true);
  return 0;
}

/* The same as plain raw tracepoints, for kernels that refuse typed ones: the cookie is only read. */
int socket_sent_raw(struct bpf_raw_tracepoint_args *ctx) {
  observe((struct sock *)ctx->args[0], (s32)ctx->args[1], false);
  return 0;
}

int socket_received_raw(struct bpf_raw_tracepoint_args *ctx) {
  socket_ended((s32)ctx->args[1]);
  observe((struct sock *)ctx->args[0], (s32)ctx->args[1], false);
  return 0;
}

/* sock_ops at the scope's cgroups (the root when there is no scope): both ends of every new TCP
 * connection, before user space can use it. */
#define SOCK_OPS_ACTIVE_ESTABLISHED 4
#define SOCK_OPS_PASSIVE_ESTABLISHED 5
#define SOCK_OPS_STATE 10
#define SOCK_OPS_STATE_FLAG 4
#define TCP_STATE_CLOSE 7

static __always_inline void ops_key(struct bpf_sock_ops *ops, struct flow_key *key) {
  key->netns_cookie = bpf_get_netns_cookie(ops);
  key->local_port = ops->local_port;
  key->remote_port = bpf_ntohl(ops->remote_port);
  u32 *local = (u32 *)key->local, *remote = (u32 *)key->remote;
  key->family = 4;
  if (ops->family == AF_INET6) {
    /* the barriers keep LLVM from merging two 32-bit loads of the context, which the verifier refuses */
    remote[0] = ops->remote_ip6[0];
    asm volatile("" ::: "memory");
    remote[1] = ops->remote_ip6[1];
    asm volatile("" ::: "memory");
    remote[2] = ops->remote_ip6[2];
    asm volatile("" ::: "memory");
    remote[3] = ops->remote_ip6[3];
    asm volatile("" ::: "memory");
    if (!(remote[0] == 0 && remote[1] == 0 && remote[2] == bpf_htonl(0xffff))) {
      local[0] = ops->local_ip6[0];
      asm volatile("" ::: "memory");
      local[1] = ops->local_ip6[1];
      asm volatile("" ::: "memory");
      local[2] = ops->local_ip6[2];
      asm volatile("" ::: "memory");
      local[3] = ops->local_ip6[3];
      key->family = 6;
      return;
    }
    remote[2] = remote[3] = 0;
  }
  local[0] = ops->local_ip4;
  asm volatile("" ::: "memory");
  remote[0] = ops->remote_ip4;
}

int socket_ops(struct bpf_sock_ops *ops) {
  u32 op = ops->op;
  if (op == SOCK_OPS_ACTIVE_ESTABLISHED || op == SOCK_OPS_PASSIVE_ESTABLISHED) {
    struct flow_key key = {};
    struct flow_cookie value = {};
    ops_key(ops, &key);
    value.cookie = bpf_get_socket_cookie(ops);
    value.since = bpf_ktime_get_ns();
    value.role = op == SOCK_OPS_ACTIVE_ESTABLISHED ? ROLE_CLIENT : ROLE_SERVER;
    if (bpf_map_update_elem(MAP_COOKIES, &key, &value, 0))
      count(COUNTER_COOKIE_TABLE_FULL, 1);
    count(op == SOCK_OPS_ACTIVE_ESTABLISHED ? COUNTER_SOCKETS_ACTIVE : COUNTER_SOCKETS_PASSIVE, 1);
    bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | SOCK_OPS_STATE_FLAG);
  } else if (op == SOCK_OPS_STATE && ops->args[1] == TCP_STATE_CLOSE) {
    struct flow_key key = {};
    ops_key(ops, &key);
    bpf_map_delete_elem(MAP_COOKIES, &key);
    count(COUNTER_SOCKETS_CLOSED, 1);
  }
  return 1;
}
