/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which packets belong to connections of ours: XDP and TC, Ethernet and bare IP, over one parser.
 *
 * A packet tells addresses and ports; `cookies` leads from those to the connection, whose flow gets a hop for
 * each interface that sees it. Nothing here changes, drops or redirects a packet, and nothing of a packet is
 * kept but its length, of a connection's first packets how TLS begins (hellos.bpf.c), and of TLS its records'
 * lengths (record_lengths.bpf.c).
 *
 * The interfaces are those of one network namespace, the daemon's. A socket of that namespace sends at
 * egress and receives at ingress; counting it nowhere else keeps loopback, where each packet passes both,
 * from counting twice. A socket of another namespace (a container behind a veth) is outside: its packets
 * come in and go out on our side, so it is counted at either hook.
 *
 * Two namespaces may use the same addresses and ports at once, one of them perhaps out of scope. So a packet
 * that still carries its sender's socket is believed against the tuple; a tuple with two owners is claimed
 * for nobody, but on loopback, whose packets never leave the namespace; and a container's connection is
 * first seen on an interface by what it sends, never by what goes to its address. One exception: the first
 * request to a server that has sent nothing yet, or it would miss in every container's count.
 */

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define ETH_P_8021Q 0x8100
#define ETH_P_8021AD 0x88a8
#define ETH_P_QINQ1 0x9100
#define VLAN_TAGS 2
#define EXTENSION_HEADERS 8 /* RFC 8200 knows six kinds, of which one may come twice */
#define LOOPBACK_IFINDEX 1
#define CURRENT_NETNS (-1L)
#define XDP_GO_ON 2 /* XDP_PASS */
#define TC_GO_ON (-1) /* TC_ACT_UNSPEC, TCX_NEXT: the next program decides */
struct ipv4_header {
  u8 version_ihl, tos;
  u16 total_length, id, fragment;
  u8 ttl, protocol;
  u16 checksum;
  u32 source, destination;
};

struct ipv6_header {
  u8 version, rest[3];
  u16 payload_length;
  u8 next, hop_limit;
  u8 source[16], destination[16];
};

struct tcp_start {
  u16 source, destination;
  u32 sequence, acknowledgement;
  u8 data_offset, flags;
  u16 window;
};

static __always_inline u32 parse_tcp(void *ctx, bool xdp, struct packet *packet, u32 at, u32 end) {
  struct tcp_start tcp;
  if (end > packet->length || load(ctx, xdp, at, &tcp, sizeof(tcp)))
    return PACKET_MALFORMED;
  u32 header = (tcp.data_offset >> 4) * 4;
  if (header < 20 || at + header > end || !tcp.source || !tcp.destination)
    return PACKET_MALFORMED;
  packet->key.local_port = bpf_ntohs(tcp.source);
  packet->key.remote_port = bpf_ntohs(tcp.destination);
  packet->payload_at = at + header;
  packet->payload = end - packet->payload_at;
  packet->sequence = bpf_ntohl(tcp.sequence);
  packet->acknowledgement = bpf_ntohl(tcp.acknowledgement);
  packet->syn = tcp.flags & 2;
  return PACKET_OWN;
}

/* RFC 791. A total length of 0 is a packet of more than 64 KiB inside this host (BIG TCP). */
static __always_inline u32 parse_ipv4(void *ctx, bool xdp, struct packet *packet, u32 at) {
  struct ipv4_header ip;
  if (load(ctx, xdp, at, &ip, sizeof(ip)))
    return PACKET_MALFORMED;
  u32 header = (ip.version_ihl & 15) * 4;
  if (ip.version_ihl >> 4 != 4 || header < 20)
    return PACKET_MALFORMED;
  if (ip.protocol != IPPROTO_TCP)
    return PACKET_NOT_TCP;
  if (ip.fragment & bpf_htons(0x1fff))
    return PACKET_FRAGMENTS;
  u32 total = bpf_ntohs(ip.total_length);
  if (!total && packet->length > at + 0xffff)
    total = packet->length - at;
  packet->key.family = 4;
  *(u32 *)packet->key.local = ip.source;
  *(u32 *)packet->key.remote = ip.destination;
  return parse_tcp(ctx, xdp, packet, at + header, at + total);
}

/* RFC 8200, RFC 4302 for AH. A payload length of 0 is a packet of more than 64 KiB (RFC 2675). */
static __always_inline u32 parse_ipv6(void *ctx, bool xdp, struct packet *packet, u32 at) {
  struct ipv6_header ip;
  if (load(ctx, xdp, at, &ip, sizeof(ip)) || ip.version >> 4 != 6)
    return PACKET_MALFORMED;
  u32 end = at + sizeof(ip) + bpf_ntohs(ip.payload_length);
  if (!ip.payload_length && packet->length > at + sizeof(ip) + 0xffff)
    end = packet->length;
  u32 next = ip.next;
  at += sizeof(ip);
  for (u32 i = 0; i < EXTENSION_HEADERS; i++) {
    if (next == IPPROTO_TCP)
      break;
    struct {
      u8 next, length;
      u16 fragment;
    } extension;
    bool known = next == 0 /* hop-by-hop */ || next == 43 /* routing */ || next == 44 /* fragment */ ||
                 next == 51 /* AH */ || next == 60 /* destination */;
    if (!known)
      return PACKET_NOT_TCP;
    if (load(ctx, xdp, at, &extension, sizeof(extension)))
      return PACKET_MALFORMED;
    if (next == 44) {
      if (extension.fragment & bpf_htons(0xfff8))
        return PACKET_FRAGMENTS;
      at += 8;
    } else if (next == 51) {
      at += (extension.length + 2) * 4;
    } else {
      at += (extension.length + 1) * 8;
    }
    next = extension.next;
  }
  if (next != IPPROTO_TCP)
    return PACKET_MALFORMED;
  packet->key.family = 6;
  __builtin_memcpy(packet->key.local, ip.source, 16);
  __builtin_memcpy(packet->key.remote, ip.destination, 16);
  return parse_tcp(ctx, xdp, packet, at, end);
}

/* PACKET_OWN: it is TCP, and `packet` is filled in. Anything else is why not. */
static __always_inline u32 parse(void *ctx, bool xdp, bool ethernet, struct packet *packet) {
  if (!ethernet) {
    u8 version;
    if (load(ctx, xdp, 0, &version, 1))
      return PACKET_MALFORMED;
    if (version >> 4 == 4)
      return parse_ipv4(ctx, xdp, packet, 0);
    return version >> 4 == 6 ? parse_ipv6(ctx, xdp, packet, 0) : PACKET_MALFORMED;
  }
  u16 type;
  u32 at = 14;
  if (load(ctx, xdp, 12, &type, 2))
    return PACKET_MALFORMED;
#pragma unroll
  for (u32 i = 0; i < VLAN_TAGS; i++) {
    if (type != bpf_htons(ETH_P_8021Q) && type != bpf_htons(ETH_P_8021AD) && type != bpf_htons(ETH_P_QINQ1))
      break;
    if (load(ctx, xdp, at + 2, &type, 2))
      return PACKET_MALFORMED;
    at += 4;
  }
  if (type == bpf_htons(ETH_P_IP))
    return parse_ipv4(ctx, xdp, packet, at);
  return type == bpf_htons(ETH_P_IPV6) ? parse_ipv6(ctx, xdp, packet, at) : PACKET_NOT_TCP;
}

/* Adds the packet to the flow's hop for this interface, which the first packet takes. */
static __always_inline void add_packet(void *ctx, bool xdp, u32 hook, u64 cookie, struct flow *flow,
                                       struct packet *packet, u32 direction, u32 ifindex, bool new_hop, u64 now) {
  u64 here = ifindex | (u64)hook << 32;
  flow->last_ns = now;
  for (u32 i = 0; i < HOPS; i++) {
    struct hop *hop = &flow->hop[i];
    u64 *place = (u64 *)&hop->ifindex;
    u64 taken = *(volatile u64 *)place;
    if (!taken) {
      if (!new_hop)
        return;
      taken = __sync_val_compare_and_swap(place, 0ULL, here); /* another processor may be faster */
      if (!taken) {
        hop->first_ns = now;
        taken = here;
      }
    }
    if (taken != here)
      continue;
    if (flow->hops <= i) /* looked at with each packet: two processors may have set it at once */
      flow->hops = i + 1;
    u64 bytes = packet->length + (u64)(packet->segments - 1) * packet->payload_at;
    if (direction == SENT) {
      __sync_fetch_and_add(&hop->packets[SENT], packet->segments);
      __sync_fetch_and_add(&hop->bytes[SENT], bytes);
    } else {
      __sync_fetch_and_add(&hop->packets[RECEIVED], packet->segments);
      __sync_fetch_and_add(&hop->bytes[RECEIVED], bytes);
    }
    if (packet->payload && !(flow->flags & FLOW_SEEDED) && hop->packets[SENT] + hop->packets[RECEIVED] <= HELLO_PACKETS)
      see_hello(ctx, xdp, cookie, flow, packet, direction);
    return;
  }
  flow->flags |= FLOW_MORE_HOPS;
  count(COUNTER_FLOWS_WITHOUT_HOP, 1);
}

static __always_inline bool same_tuple(struct flow *flow, struct flow_key *key) {
  u64 *a = (u64 *)flow->local, *b = (u64 *)key->local;
  u64 *c = (u64 *)flow->remote, *d = (u64 *)key->remote;
  return a[0] == b[0] && a[1] == b[1] && c[0] == d[0] && c[1] == d[1] && flow->local_port == key->local_port &&
         flow->remote_port == key->remote_port && flow->family == key->family;
}

/* Cookie of the TCP socket that a packet still carries: its sender's, in whatever namespace. 0 when it
 * carries none, or no TCP socket (a tun device's own). A SYN-ACK carries the request, whose cookie the
 * socket will get that comes of it. */
static __always_inline u64 carried_cookie(struct __sk_buff *skb) {
  struct bpf_sock *sk = skb->sk;
  if (!sk)
    return 0;
  if (sk->state == TCP_NEW_SYN_RECV)
    return bpf_get_socket_cookie(skb);
  sk = bpf_sk_fullsock(sk);
  return sk && sk->protocol == IPPROTO_TCP ? bpf_get_socket_cookie(skb) : 0;
}

/* The cookie that the tuple leads to; 0, and in `outcome` why, when it leads to none or to several. With a cookie
 * `outcome` is what it means if that has no flow. */
static __always_inline u64 cookie_of(struct packet *packet, u64 carried, u64 now, u32 *outcome) {
  struct flow_cookie *entry = bpf_map_lookup_elem(MAP_COOKIES, &packet->key);
  if (!entry)
    return 0;
  bool alone = entry->owners == 1 && entry->since <= now;
  if (alone && carried && carried != entry->cookie) {
    *outcome = PACKET_FOREIGN; /* the same tuple in a namespace that is out of scope */
    return 0;
  }
  *outcome = alone ? PACKET_MISSED /* evicted from a full table */ : PACKET_AMBIGUOUS;
  return alone ? entry->cookie : carried;
}

/* Gives the packet to the connection whose end `packet->key` is now, if it is one of ours. A socket that it still
 * carries tells that without the tuple, also when the connection is over (a reset comes behind that), unless the
 * packet was rewritten on its way: its answers would not be known. */
static __always_inline u32 claim(void *ctx, bool xdp, u32 hook, bool egress, struct packet *packet, u32 direction,
                                 u32 ifindex, u64 netns_cookie, u32 sender) {
  packet->key.netns_cookie = ifindex == LOOPBACK_IFINDEX ? netns_cookie : ANY_NETNS;
  u64 cookie = !xdp && direction == SENT ? carried_cookie(ctx) : 0;
  u64 now = bpf_ktime_get_ns();
  struct flow *flow = cookie ? bpf_map_lookup_elem(MAP_FLOWS, &cookie) : NULL;
  if (!flow || !same_tuple(flow, &packet->key)) {
    u32 outcome = PACKET_FORWARDED;
    cookie = cookie_of(packet, cookie, now, &outcome);
    if (!cookie)
      return outcome;
    flow = bpf_map_lookup_elem(MAP_FLOWS, &cookie);
    if (!flow)
      return outcome;
    if (!same_tuple(flow, &packet->key))
      return PACKET_AMBIGUOUS;
  }
  if (packet->syn && flow->state != FLOW_CONNECTING)
    return PACKET_FOREIGN; /* opens another, with the same tuple and elsewhere; or comes twice */
  bool ours = flow->netns_cookie == netns_cookie;
  if (ours && (direction == SENT) != egress)
    return PACKET_FOREIGN; /* the other hook counts it */
  bool first_request = flow->role == ROLE_SERVER && packet->payload && !flow->hop[0].packets[SENT] &&
                       sender != PACKET_AMBIGUOUS && sender != PACKET_FOREIGN;
  add_packet(ctx, xdp, hook, cookie, flow, packet, direction, ifindex, ours || direction == SENT || first_request,
             now);
  struct record_side *side = direction == SENT ? &flow->side[SENT] : &flow->side[RECEIVED];
  if (record_begins(packet, side)) {
    packet->walk = side->walk;
    packet->records_of[direction] = flow;
  }
  return PACKET_OWN;
}

static __always_inline void swap_ends(struct flow_key *key) {
  u64 *local = (u64 *)key->local, *remote = (u64 *)key->remote;
  u64 low = local[0], high = local[1];
  local[0] = remote[0];
  local[1] = remote[1];
  remote[0] = low;
  remote[1] = high;
  u16 port = key->local_port;
  key->local_port = key->remote_port;
  key->remote_port = port;
}

/* A packet that is nobody's we know. `key` is the end in this host: has it a socket? An open one in scope
 * should have been in `cookies`. */
static __always_inline u32 unclaimed(void *ctx, struct settings *settings, struct flow_key *key) {
  struct bpf_sock_tuple tuple = {};
  struct bpf_sock *sk;
  if (key->family == 4) {
    tuple.ipv4.saddr = *(u32 *)key->remote;
    tuple.ipv4.daddr = *(u32 *)key->local;
    tuple.ipv4.sport = bpf_htons(key->remote_port);
    tuple.ipv4.dport = bpf_htons(key->local_port);
    sk = bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4), CURRENT_NETNS, 0);
  } else {
    __builtin_memcpy(tuple.ipv6.saddr, key->remote, 16);
    __builtin_memcpy(tuple.ipv6.daddr, key->local, 16);
    tuple.ipv6.sport = bpf_htons(key->remote_port);
    tuple.ipv6.dport = bpf_htons(key->local_port);
    sk = bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv6), CURRENT_NETNS, 0);
  }
  if (!sk)
    return PACKET_FORWARDED;
  u32 outcome = PACKET_FOREIGN;
  if (sk->state == TCP_ESTABLISHED) {
    struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
    if (tcp && socket_in_scope(settings, (u64)tcp))
      outcome = PACKET_MISSED;
  }
  bpf_sk_release(sk);
  return outcome;
}

static __always_inline void see(void *ctx, bool xdp, u32 hook, bool egress, bool ethernet, struct packet *packet,
                                u32 ifindex, u32 gso_size) {
  u32 zero = 0;
  struct settings *settings = bpf_map_lookup_elem(MAP_SETTINGS, &zero);
  if (!settings || !settings->enabled)
    return;
  u32 outcome = parse(ctx, xdp, ethernet, packet);
  struct interface_count *seen = bpf_map_lookup_elem(MAP_INTERFACES, &ifindex);
  if (seen) {
    seen->packets += packet->segments ? packet->segments : 1;
    seen->bytes += packet->length;
  }
  if (outcome == PACKET_OWN) {
    if (!packet->segments) /* left to be computed by whoever cuts it up */
      packet->segments = gso_size ? (packet->payload + gso_size - 1) / gso_size : 1;
    if (!packet->segments)
      packet->segments = 1;
    u64 netns_cookie = settings->netns_cookie;
    u32 sender = PACKET_FORWARDED, receiver = PACKET_FORWARDED;
    bool loopback = ifindex == LOOPBACK_IFINDEX; /* both ends are here: each is counted at its own hook only */
    if (egress || !loopback)
      sender = claim(ctx, xdp, hook, egress, packet, SENT, ifindex, netns_cookie, PACKET_OWN);
    swap_ends(&packet->key);
    if (!egress || !loopback)
      receiver = claim(ctx, xdp, hook, egress, packet, RECEIVED, ifindex, netns_cookie, sender);
    outcome = sender == PACKET_OWN || receiver == PACKET_OWN ? PACKET_OWN : egress ? sender : receiver;
    if (outcome == PACKET_FORWARDED && (sender == PACKET_AMBIGUOUS || receiver == PACKET_AMBIGUOUS))
      outcome = PACKET_AMBIGUOUS;
    if (outcome == PACKET_FORWARDED) {
      if (egress)
        swap_ends(&packet->key);
      outcome = unclaimed(ctx, settings, &packet->key);
    }
  }
  if (outcome == PACKET_MISSED)
    count(COUNTER_COOKIE_MISSES, 1);
  else
    count((hook == HOOK_XDP ? COUNTER_XDP_OWN : COUNTER_TC_OWN) + outcome, 1);
  see_records(ctx, xdp, packet);
}

static __always_inline int see_xdp(struct xdp_md *ctx, bool ethernet) {
  struct packet packet = {.length = bpf_xdp_get_buff_len(ctx), .segments = 1};
  see(ctx, true, HOOK_XDP, false, ethernet, &packet, ctx->ingress_ifindex, 0);
  return XDP_GO_ON;
}

static __always_inline int see_tc(struct __sk_buff *skb, u32 hook, bool egress, bool ethernet) {
  struct packet packet = {.length = skb->len, .segments = skb->gso_segs};
  see(skb, false, hook, egress, ethernet, &packet, skb->ifindex, skb->gso_size);
  return TC_GO_ON;
}

int xdp_l2(struct xdp_md *ctx) { return see_xdp(ctx, true); }
int xdp_l3(struct xdp_md *ctx) { return see_xdp(ctx, false); }
int tc_ingress_l2(struct __sk_buff *skb) { return see_tc(skb, HOOK_TC, false, true); }
int tc_ingress_l3(struct __sk_buff *skb) { return see_tc(skb, HOOK_TC, false, false); }
int tc_egress_l2(struct __sk_buff *skb) { return see_tc(skb, HOOK_TC, true, true); }
int tc_egress_l3(struct __sk_buff *skb) { return see_tc(skb, HOOK_TC, true, false); }
/* XDP sees nothing of what an interface sends: this is its other half, and the two are one hop. */
int xdp_egress_l2(struct __sk_buff *skb) { return see_tc(skb, HOOK_XDP, true, true); }
int xdp_egress_l3(struct __sk_buff *skb) { return see_tc(skb, HOOK_XDP, true, false); }
