/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From a Go crypto/tls.Conn to its socket: through the net.Conn that it runs over, read from the program's memory.
 *
 * What does not look as it should is unknown, never a guess.
 */

static __always_inline bool read_user(void *to, u32 size, u64 from) {
  return bpf_probe_read_user(to, size, (void *)from) == 0;
}

/* What is read of net.netFD (src/net/fd_posix.go, src/internal/poll/fd_unix.go); the same since Go 1.9. */
struct go_socket {
  u64 state; /* of poll.fdMutex; bit 0: closed */
  u64 semaphores;
  s64 fd;
  u64 poll[4];
  s64 family;
  s64 type;
  u64 connected;
  u64 network; /* "tcp", "tcp4", "tcp6" */
  u64 network_length;
};
#define GO_CLOSED 1
#define SOCK_STREAM 1

/* tls.Conn begins with the net.Conn that it runs over. When that is a *net.TCPConn, what it points to is a
 * netFD: its family, type and the name of its network say so, and the kernel says that the descriptor is a
 * TCP socket. For anything else (a pipe, a tunnel, a wrapper of the program's own) the answer is 0. */
static __always_inline u64 go_socket_of(u64 conn) {
  u64 carrier[2] = {}, at = 0;
  if (!read_user(carrier, sizeof(carrier), conn) || !read_user(&at, 8, carrier[1]))
    return 0;
  struct go_socket net = {};
  u32 name = 0;
  if (!read_user(&net, sizeof(net), at) || net.state & GO_CLOSED || net.type != SOCK_STREAM)
    return 0;
  if (net.family != AF_INET && net.family != AF_INET6)
    return 0;
  if (net.network_length < 3 || net.network_length > 4 || !read_user(&name, 3, net.network))
    return 0;
  if (name != ('t' | 'c' << 8 | 'p' << 16) || net.fd < 0 || net.fd > 0x7fffffff)
    return 0;
  u64 sk = socket_of_fd(net.fd);
  /* Still open: so the descriptor was not another file's by the time it was looked up. */
  u64 state = GO_CLOSED;
  if (!sk || !read_user(&state, 8, at) || state & GO_CLOSED)
    return 0;
  return sk;
}

/* TLS in TLS (an HTTPS proxy): the net.Conn is a *tls.Conn whose socket is known. */
static __always_inline void go_carrier(struct conn_state *state) {
  u64 carrier[2] = {};
  if (!read_user(carrier, sizeof(carrier), state->conn.ssl))
    return;
  struct conn_key key = {};
  key.tgid = state->conn.tgid;
  key.exec_id = state->conn.exec_id;
  key.start_ns = state->conn.start_ns;
  key.ssl = carrier[1];
  struct conn_state *outer = bpf_map_lookup_elem(MAP_CONNS, &key);
  if (!outer || outer->conn.method == METHOD_NONE || outer->conn.library != state->conn.library)
    return;
  state->conn.socket_cookie = outer->conn.socket_cookie;
  state->conn.netns_cookie = outer->conn.netns_cookie;
  __builtin_memcpy(state->conn.local, outer->conn.local, 16);
  __builtin_memcpy(state->conn.remote, outer->conn.remote, 16);
  state->conn.local_port = outer->conn.local_port;
  state->conn.remote_port = outer->conn.remote_port;
  state->conn.family = outer->conn.family;
  state->conn.role = outer->conn.role;
  state->conn.method = outer->conn.method;
  emit_control(state, RECORD_SOCKET, 0);
}

static __always_inline void go_learn_socket(struct conn_state *state) {
  if (state->conn.method != METHOD_NONE)
    return;
  u64 sk = go_socket_of(state->conn.ssl);
  if (sk)
    learn_socket(state, sk, read_u64(sk, OFF_sk_cookie), METHOD_FD);
  else
    go_carrier(state);
}
