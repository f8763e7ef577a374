/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The life of TCP connections in scope: opened, seeded, closed.
 *
 * `flows` holds each by its socket cookie, `cookies` finds that cookie by addresses and ports, which is all
 * that a packet tells. sock_ops opens both before user space can use the connection; the tracepoint of
 * socket states closes them, for sockets older than the daemon as well; an iterator over all descriptors
 * seeds those at start. A socket out of scope never gets into either map.
 */

#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_SYN_RECV 3
#define TCP_FIN_WAIT1 4
#define TCP_TIME_WAIT 6
#define TCP_CLOSE 7
#define TCP_LAST_ACK 9
#define TCP_LISTEN 10
#define TCP_NEW_SYN_RECV 12
#define TIME_WAIT_NS 60000000000ULL /* include/net/tcp.h: TCP_TIMEWAIT_LEN */

/* Reads addresses, ports and namespace of a struct sock; false when it is not a connected TCP socket. */
static __always_inline bool read_tuple(struct flow_key *key, u64 sk) {
  u16 family = read_u16(sk, OFF_sk_family);
  if (read_u16(sk, OFF_sk_protocol) != IPPROTO_TCP)
    return false;
  u16 remote_port = bpf_ntohs(read_u16(sk, OFF_sk_dport));
  if (!remote_port)
    return false;
  if (family == AF_INET) {
    read_kernel(key->local, 4, (void *)(sk + OFF_sk_rcv_saddr));
    read_kernel(key->remote, 4, (void *)(sk + OFF_sk_daddr));
    key->family = 4;
  } else if (family == AF_INET6) {
    read_kernel(key->local, 16, (void *)(sk + OFF_sk_v6_rcv_saddr));
    read_kernel(key->remote, 16, (void *)(sk + OFF_sk_v6_daddr));
    key->family = 6;
    u32 *remote = (u32 *)key->remote, *local = (u32 *)key->local;
    if (remote[0] == 0 && remote[1] == 0 && remote[2] == bpf_htonl(0xffff)) {
      /* IPv4-mapped: on the wire it is IPv4, and so it is here */
      remote[0] = remote[3];
      local[0] = local[3];
      remote[2] = remote[3] = 0;
      local[1] = local[2] = local[3] = 0;
      key->family = 4;
    }
  } else {
    return false;
  }
  key->local_port = read_u16(sk, OFF_sk_num);
  key->remote_port = remote_port;
  key->netns_cookie = read_u64(read_u64(sk, OFF_sk_net), OFF_net_cookie);
  return true;
}

static __always_inline bool flow_lives(u64 cookie) {
  struct flow *flow = bpf_map_lookup_elem(MAP_FLOWS, &cookie);
  return flow && flow->state != FLOW_CLOSED;
}

/* Makes the tuple lead to the cookie, under its namespace and under any. */
static __always_inline void cookie_add(struct flow_key *key, u64 cookie, u32 role) {
  struct flow_cookie value = {
      .cookie = cookie, .netns_cookie = key->netns_cookie, .since = bpf_ktime_get_ns(), .role = role, .owners = 1};
  struct flow_cookie *mine = bpf_map_lookup_elem(MAP_COOKIES, key);
  u64 replaced = mine ? mine->cookie : 0; /* its closing was missed: two live sockets cannot share a tuple */
  if (replaced == cookie)
    return;
  if (bpf_map_update_elem(MAP_COOKIES, key, &value, 0))
    count(COUNTER_COOKIE_TABLE_FULL, 1);

  u64 netns_cookie = key->netns_cookie;
  key->netns_cookie = ANY_NETNS;
  struct flow_cookie *any = bpf_map_lookup_elem(MAP_COOKIES, key);
  if (!any && bpf_map_update_elem(MAP_COOKIES, key, &value, 1 /* BPF_NOEXIST */))
    any = bpf_map_lookup_elem(MAP_COOKIES, key); /* another processor was faster */
  if (any) {
    if (any->owners == 1 && (any->netns_cookie == netns_cookie || !flow_lives(any->cookie))) {
      bpf_map_update_elem(MAP_COOKIES, key, &value, 0); /* what an evicted entry left behind */
    } else if (replaced) {
      __sync_fetch_and_add(&any->cookie, cookie - replaced);
    } else {
      __sync_fetch_and_add(&any->owners, 1);
      __sync_fetch_and_add(&any->cookie, cookie);
      __sync_fetch_and_add(&any->netns_cookie, netns_cookie);
    }
  }
  key->netns_cookie = netns_cookie;
}

static __always_inline void cookie_remove(struct flow *flow, u64 cookie) {
  struct flow_key key = {};
  key.netns_cookie = flow->netns_cookie;
  __builtin_memcpy(key.local, flow->local, 16);
  __builtin_memcpy(key.remote, flow->remote, 16);
  key.local_port = flow->local_port;
  key.remote_port = flow->remote_port;
  key.family = flow->family;
  struct flow_cookie *mine = bpf_map_lookup_elem(MAP_COOKIES, &key);
  bool had = mine && mine->cookie == cookie;
  if (had)
    bpf_map_delete_elem(MAP_COOKIES, &key);
  key.netns_cookie = ANY_NETNS;
  struct flow_cookie *any = bpf_map_lookup_elem(MAP_COOKIES, &key);
  if (!any)
    return;
  if (any->owners <= 1) {
    if (any->cookie == cookie)
      bpf_map_delete_elem(MAP_COOKIES, &key);
  } else if (had) {
    __sync_fetch_and_add(&any->cookie, -cookie);
    __sync_fetch_and_add(&any->netns_cookie, -flow->netns_cookie);
    __sync_fetch_and_add(&any->owners, -1);
    any->since = bpf_ktime_get_ns() + TIME_WAIT_NS; /* until then the closed one's packets may come */
  }
}

/* Whether the kernel encrypts for this socket: setsockopt(TCP_ULP, "tls") gave it to the protocol of that name.
 * Others use the same way (mptcp, smc, espintcp). */
static __always_inline bool has_ktls(u64 sk) {
  u64 protocol = read_u64(sk, OFF_icsk_ulp_ops);
  return protocol && read_u32(protocol, OFF_ulp_name) == 0x00736c74; /* "tls", with its end */
}

struct opening {
  u64 cookie;
  u32 role;
  u32 state;
  u32 tgid;
  u32 flags;
};

/* Makes the flow and then what leads to it, so that whoever finds the cookie finds the flow. A socket that
 * connects again after it has failed or was disconnected keeps its cookie: then the flow starts anew. */
static __always_inline struct flow *flow_open(struct flow_key *key, struct opening *opening) {
  u64 cookie = opening->cookie;
  if (!cookie)
    return NULL;
  struct flow *flow = bpf_map_lookup_elem(MAP_FLOWS, &cookie);
  u64 now = bpf_ktime_get_ns();
  if (!flow || flow->state == FLOW_CLOSED) {
    u32 zero = 0;
    struct flow *blank = bpf_map_lookup_elem(MAP_BLANK, &zero);
    if (!blank)
      return NULL;
    bool fresh = !flow;
    if (bpf_map_update_elem(MAP_FLOWS, &cookie, blank, 0)) {
      count(COUNTER_FLOW_TABLE_FULL, 1);
      return NULL;
    }
    if (fresh)
      count(COUNTER_FLOWS_MADE, 1);
    flow = bpf_map_lookup_elem(MAP_FLOWS, &cookie);
    if (!flow)
      return NULL;
    flow->first_ns = now;
    flow->netns_cookie = key->netns_cookie;
    __builtin_memcpy(flow->local, key->local, 16);
    __builtin_memcpy(flow->remote, key->remote, 16);
    flow->local_port = key->local_port;
    flow->remote_port = key->remote_port;
    flow->family = key->family;
    flow->flags = opening->flags;
  }
  flow->last_ns = now;
  flow->role = opening->role;
  flow->state = opening->state;
  if (opening->tgid)
    flow->tgid = opening->tgid;
  cookie_add(key, cookie, opening->role);
  return flow;
}

/* sock_ops at the scope's cgroups (the root when there is no scope): both ends of every new TCP connection,
 * before user space can use it, and who connects. */
#define SOCK_OPS_TCP_CONNECT 3
#define SOCK_OPS_ACTIVE_ESTABLISHED 4
#define SOCK_OPS_PASSIVE_ESTABLISHED 5

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

/* The cgroups of the scope are where this is attached; what they exclude, and users, are left to see to. */
static __always_inline bool ops_in_scope(struct bpf_sock_ops *ops) {
  u32 zero = 0;
  struct settings *settings = bpf_map_lookup_elem(MAP_SETTINGS, &zero);
  if (!settings)
    return false;
  if (!(settings->excluded_cgroups | settings->uids | settings->excluded_uids))
    return true;
  struct bpf_sock *sk = ops->sk;
  if (!sk)
    return false;
  struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
  return tcp && socket_in_scope(settings, (u64)tcp);
}

int socket_ops(struct bpf_sock_ops *ops) {
  u32 op = ops->op;
  if (op != SOCK_OPS_TCP_CONNECT && op != SOCK_OPS_ACTIVE_ESTABLISHED && op != SOCK_OPS_PASSIVE_ESTABLISHED)
    return 1;
  if (!ops_in_scope(ops))
    return 1;
  struct flow_key key = {};
  ops_key(ops, &key);
  struct opening opening = {.cookie = bpf_get_socket_cookie(ops), .role = ROLE_CLIENT, .state = FLOW_ESTABLISHED};
  if (op == SOCK_OPS_TCP_CONNECT) {
    /* in connect(2), so this process is the one; the packets of the handshake are seen as well */
    opening.tgid = read_u32(bpf_get_current_task(), OFF_task_tgid);
    opening.state = FLOW_CONNECTING;
  } else if (op == SOCK_OPS_PASSIVE_ESTABLISHED) {
    opening.role = ROLE_SERVER;
    count(COUNTER_SOCKETS_PASSIVE, 1);
  } else {
    count(COUNTER_SOCKETS_ACTIVE, 1);
  }
  flow_open(&key, &opening);
  return 1;
}

static __always_inline void flow_close(struct flow *flow, u64 cookie) {
  if (flow->closed_ns)
    return;
  flow->last_ns = flow->closed_ns = bpf_ktime_get_ns();
  flow->state = FLOW_CLOSED;
  cookie_remove(flow, cookie);
  count(COUNTER_SOCKETS_CLOSED, 1);
}

/* inet_sock_set_state (4.16): every change, of every socket. The port is given back before this fires for
 * CLOSE, so the flow is found by cookie, and the tuple in the flow. Opens flows only where sock_ops cannot:
 * the process is not known then, nor are the packets of the handshake. */
static __always_inline void state_change(struct sock *sk, u32 before, u32 after, bool typed) {
  if (read_u16((u64)sk, OFF_sk_protocol) != IPPROTO_TCP)
    return;
  u64 cookie = read_u64((u64)sk, OFF_sk_cookie);
  struct flow *flow = cookie ? bpf_map_lookup_elem(MAP_FLOWS, &cookie) : NULL;
  if (flow) {
    flow->tcp_sent = read_u64((u64)sk, OFF_tcp_bytes_acked);
    flow->tcp_received = read_u64((u64)sk, OFF_tcp_bytes_received);
    if (has_ktls((u64)sk)) /* it is kept until the socket is destroyed */
      flow->ktls = 1;
    /* What was accepted and is closed: that comes from close(2) or exit, so this process held it last. */
    if (!flow->tgid && !(flow->flags & FLOW_SHARED) && (after == TCP_FIN_WAIT1 || after == TCP_LAST_ACK))
      flow->tgid = bpf_get_current_pid_tgid() >> 32;
    if (after == TCP_CLOSE)
      flow_close(flow, cookie);
    return;
  }
  if (after != TCP_ESTABLISHED)
    return;
  u32 zero = 0;
  struct settings *settings = bpf_map_lookup_elem(MAP_SETTINGS, &zero);
  if (!settings || !settings->open_by_state || !socket_in_scope(settings, (u64)sk))
    return;
  struct flow_key key = {};
  if (!read_tuple(&key, (u64)sk))
    return;
  struct opening opening = {.cookie = typed ? bpf_get_socket_cookie(sk) : cookie, .state = FLOW_ESTABLISHED};
  opening.role = before == TCP_SYN_SENT ? ROLE_CLIENT : ROLE_SERVER;
  count(before == TCP_SYN_SENT ? COUNTER_SOCKETS_ACTIVE : COUNTER_SOCKETS_PASSIVE, 1);
  flow_open(&key, &opening);
}

int state_changed(u64 *ctx) {
  state_change((struct sock *)ctx[0], ctx[1], ctx[2], true);
  return 0;
}

/* The same as a plain raw tracepoint, for kernels that refuse typed ones: the cookie is only read. */
int state_changed_raw(struct bpf_raw_tracepoint_args *ctx) {
  state_change((struct sock *)ctx->args[0], ctx->args[1], ctx->args[2], false);
  return 0;
}

/* Iterator over every descriptor of every process (task_file, 5.8; bpf_sock_from_file, 5.11), run once when
 * the others are attached: the connections that are older than they are. Run again, it enters who holds the
 * sockets that were accepted since. A socket that two processes hold is neither's. */
int seed_sockets(u64 *ctx) {
  u64 task = ctx[1];
  struct file *file = (struct file *)ctx[3];
  u32 zero = 0;
  struct settings *settings = bpf_map_lookup_elem(MAP_SETTINGS, &zero);
  if (!file || !task || !settings)
    return 0;
  struct socket *socket = bpf_sock_from_file(file);
  if (!socket)
    return 0;
  struct sock *sk = *(struct sock **)((void *)socket + OFF_socket_sk);
  if (!sk || !task_in_scope(settings, task))
    return 0;
  u8 state = read_u16((u64)sk, OFF_sk_state);
  struct flow_key key = {};
  if (state == TCP_CLOSE || state == TCP_LISTEN || !read_tuple(&key, (u64)sk))
    return 0;
  u64 cookie = bpf_get_socket_cookie(sk);
  u32 tgid = read_u32(task, OFF_task_tgid);
  struct flow *flow = bpf_map_lookup_elem(MAP_FLOWS, &cookie);
  if (flow) {
    if (has_ktls((u64)sk))
      flow->ktls = 1;
    if (flow->flags & FLOW_SHARED)
      return 0;
    if (flow->tgid && flow->tgid != tgid) {
      flow->tgid = 0;
      flow->flags |= FLOW_SHARED;
    } else {
      flow->tgid = tgid; /* accepted: sock_ops runs in whatever process the packet met */
    }
    return 0;
  }
  struct opening opening = {.cookie = cookie, .state = FLOW_ESTABLISHED, .tgid = tgid, .flags = FLOW_SEEDED};
  if (state == TCP_SYN_SENT) {
    opening.state = FLOW_CONNECTING;
    opening.role = ROLE_CLIENT;
  }
  flow = flow_open(&key, &opening);
  if (!flow)
    return 0;
  count(COUNTER_SOCKETS_SEEDED, 1);
  flow->ktls = has_ktls((u64)sk);
  flow->tcp_sent = read_u64((u64)sk, OFF_tcp_bytes_acked);
  flow->tcp_received = read_u64((u64)sk, OFF_tcp_bytes_received);
  if ((u8)read_u16((u64)sk, OFF_sk_state) == TCP_CLOSE)
    flow_close(flow, cookie); /* it closed in between, and nobody else will say so */
  return 0;
}
