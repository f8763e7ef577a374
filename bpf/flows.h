/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * TCP connections as the programs keep them: what leads to one, what its packets and their TLS records were, and how
 * TLS began on it. Values of the maps cookies, flows, hellos and interfaces, of which user space reads all.
 */
#pragma once

struct flow_key {
  u64 netns_cookie;
  u8 local[16];
  u8 remote[16];
  u16 local_port;
  u16 remote_port;
  u32 family;
};
_Static_assert(sizeof(struct flow_key) == 48, "maps.py counts on it");

/* Two entries for each connection. One under its namespace, exact. One under ANY_NETNS, for packets, which
 * tell no namespace: `cookie` and `netns_cookie` there are the sums over `owners` connections, so that the
 * last one left is known again when the others have closed. While there are several, the tuple names none. */
#define ANY_NETNS 0

struct flow_cookie {
  u64 cookie;
  u64 netns_cookie;
  u64 since; /* ktime ns; under ANY_NETNS in the future when an owner has just closed: still ambiguous */
  u32 role;
  u32 owners;
};
_Static_assert(sizeof(struct flow_cookie) == 32, "maps.py counts on it");

/* What the hooks of an interface saw, ours or not. */
struct interface_count {
  u64 packets;
  u64 bytes;
};
_Static_assert(sizeof(struct interface_count) == 16, "interfaces/counts.py counts on it");

#define HOPS 4 /* a container's veth, bridge, tunnel and physical interface */

struct hop {
  u32 ifindex;
  u32 hook; /* enum hook; set together with ifindex, once */
  u64 packets[2]; /* by enum direction, as the flow's own end sees it */
  u64 bytes[2]; /* of the packets as the interface sees them, from the first header on */
  u64 first_ns;
};

enum hook { HOOK_XDP = 1, HOOK_TC = 2 };
enum flow_flag { FLOW_CLIENT_HELLO = 1, FLOW_MORE_HOPS = 2, FLOW_SEEDED = 4, FLOW_SHARED = 8 };
enum flow_state { FLOW_CONNECTING = 0, FLOW_ESTABLISHED = 1, FLOW_CLOSED = 2 };

/* What the headers of one direction's TLS records say, from the ClientHello on; see record_lengths.bpf.c. Only
 * records of application data are counted, which in TLS 1.3 are all that are encrypted. */
struct record_side {
  u64 walk; /* where the next header is; 0: no ClientHello was seen, or part of the plaintext was left out */
  u64 bytes; /* sum of their lengths, headers not counted */
  u64 flight_bytes; /* as much when the client began to encrypt: the server's flight of TLS 1.3 */
  u64 first; /* lengths of the first four behind that, 16 bits each, the first one lowest */
  u32 records;
  u32 flight_records;
  u32 last; /* length of the last one */
  u16 begun; /* the client has begun to encrypt */
  u16 client; /* it is the client's */
};

/* One TCP connection of a socket in scope: made when it opens, kept for a while when it has closed. */
struct flow {
  u64 first_ns; /* ktime: when it was opened, or seeded */
  u64 tcp_received; /* as `tcp_sent` */
  u64 closed_ns;
  u64 netns_cookie;
  /* 32 */
  u8 local[16];
  u8 remote[16];
  u16 local_port;
  u16 remote_port;
  u8 family; /* 4 or 6 */
  u8 role;
  u8 hops; /* in use */
  u8 flags;
  /* 72 */
  u32 tgid; /* 0: not known */
  u8 state;
  /* each a byte of its own, because two processors may set one of these and `flags` at once */
  u8 plaintext; /* bytes of it passed a probe */
  u8 ktls;      /* the kernel encrypts for it */
  u8 handshake; /* a probe saw it begin: that says nothing of the bytes, whose probes may have come later */
  u64 tcp_sent; /* bytes that the peer has acknowledged; of the whole life of the socket */
  /* What each packet writes stands together: its lines of the cache travel between the processors of both ends. */
  u64 last_ns; /* of the last packet that a hook saw, or of the last change of state */
  /* 96: in order of the first packet */
  struct hop hop[HOPS];
  /* 288: by enum direction */
  struct record_side side[2];
};
_Static_assert(sizeof(struct hop) == 48, "flows.py counts on it");
_Static_assert(sizeof(struct record_side) == 48, "flows.py counts on it");
_Static_assert(sizeof(struct flow) == 384, "flows.py counts on it");
_Static_assert(sizeof(struct walk) <= sizeof(struct flow), "frames.bpf.c begins one with `blank`");

/* How a TLS connection began, as its packets show it; see hellos.bpf.c. */
#define HELLO_ROOM 3072 /* bytes of each side: a ClientHello with a post-quantum key and a ticket has 2 KiB */

struct hello_side {
  u32 base;  /* TCP sequence number of the first byte */
  u32 have;  /* bytes from the start on that are there */
  u32 from;  /* what came ahead of its turn */
  u32 until; /* 0: nothing did */
  u32 alert; /* the last alert in the clear that came alone: level << 8 | description; 0: none */
  u8 bytes[HELLO_ROOM];
};

struct hello {
  u32 client; /* enum direction of the ClientHello */
  struct hello_side side[2]; /* the client's, the server's */
};
_Static_assert(sizeof(struct hello) == 6188, "hellos.py counts on it");
