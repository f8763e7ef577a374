/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every record that crosses a ring, and every number that user space and kernel must agree on.
 *
 * spliffd/kernel/records.py decodes these by fixed offsets; tests/kernel compares both sides. Padding is
 * explicit, sizes are asserted, and no kernel address ever stands in a record: workers are unprivileged.
 */
#pragma once

/* What the attach cookie of a uprobe says: op | flavour << 8 | library << 16 | number of the self-test << 32 (0:
 * none), and the COOKIE_ flags below. */
enum op {
  OP_READ = 1,
  OP_WRITE,
  OP_HANDSHAKE,
  OP_CONNECT,
  OP_ACCEPT,
  OP_SET_FD,
  OP_FREE,
  OP_CLEAR,
  OP_IMPORT, /* the result is a TLS object (SSL_ImportFD, PR_Accept of one that listens) */
  OP_UNCORK, /* sends what other calls have written: calls inside are not looked at */
  OP_ALPN, /* asks which application protocol was agreed on: facts.bpf.c */
  OP_VERIFIED, /* asks what became of the peer's certificate */
  OP_ERROR, /* the library notes an error */
};
enum flavour {
  FLAVOUR_NONE = 0,
  FLAVOUR_COUNT = 1,   /* the return value is the byte count (SSL_read) */
  FLAVOUR_POINTER = 2, /* return > 0 means success, the count is at *(size_t *)arg4 (SSL_read_ex) */
  FLAVOUR_REGISTER = 3, /* Go 1.17 and later: arguments and results in registers */
  FLAVOUR_STACK = 4, /* Go before: on the stack */
  FLAVOUR_ZERO = 5, /* 0 means success: of a write of all that was given, or of a handshake */
  FLAVOUR_VECTOR = 6, /* the return value is the byte count of several buffers: none of them is copied */
};

/* A return of 0 from this read means that the peer has closed its direction (not so for SSL_read_ex). */
#define COOKIE_ZERO_IS_EOF (1 << 24)
/* Objects that no other call has shown to be TLS are none of ours: nothing of the call is kept (PR_Read). */
#define COOKIE_KNOWN_ONLY (1 << 25)

enum record_kind {
  RECORD_DATA = 1,  /* plaintext of one call, or a piece of it */
  RECORD_HANDSHAKE, /* a handshake call that succeeded, the first time on this connection */
  RECORD_SOCKET,    /* the socket of the connection became known */
  RECORD_CLOSE,     /* SSL_free or SSL_clear: the offsets are final */
  RECORD_EXIT,      /* the process is gone; only tgid and start_ns of `conn` are set */
  RECORD_EOF,       /* a read returned 0: close_notify, the peer's proper end */
  RECORD_FACT,      /* the library has said something of the session: `direction` is enum fact */
  RECORD_SKIPPED,   /* HTTP/2: `size` bytes at `offset` that nobody wanted; behind it struct skipped */
};

/* What is said: bytes as payload, numbers as `size`. */
enum fact {
  FACT_ALPN,     /* the protocol agreed on; none: no payload */
  FACT_VERIFIED, /* X509_V_* of the peer's certificate, of a handshake that has not succeeded */
  FACT_FAILED,   /* a handshake has failed: library << 32 | reason of OpenSSL, or GnuTLS's error, positive */
};
#define FACT_ROOM 255 /* RFC 7301, 3.1: the longest name of a protocol */
#define LIBRARY_LIBRESSL 3
#define LIBRARY_GNUTLS 4 /* in the order of spliffd/counters.py LIBRARIES */
#define ERR_LIB_SSL 20 /* openssl/err.h */

enum direction { SENT = 0, RECEIVED = 1 };

enum record_flag {
  FLAG_FAULT = 1,    /* the bytes could not be read from the process's memory */
  FLAG_CONTINUED = 2, /* more records of the same call follow */
  FLAG_SPARED = 4 /* << direction: something is missing before this, and is in no offset; nobody wanted it */
};

enum method { METHOD_NONE = 0, METHOD_NESTED, METHOD_FD, METHOD_THREAD, METHOD_TIMING };
enum role { ROLE_UNKNOWN = 0, ROLE_CLIENT, ROLE_SERVER };

enum conn_flag {
  CONN_HANDSHAKE_SEEN = 1, /* a handshake call was entered: the connection was seen from its start */
  CONN_HANDSHAKE_DONE = 2, /* and it has succeeded */
  CONN_SOCKET_ENDED = 4,   /* the socket ended inside a TLS call: no close_notify can come any more */
  CONN_HANDSHAKE_FAILED = 8, /* and FACT_FAILED says why */
  CONN_ALPN_TOLD = 16,
};

/* A TLS connection: the part that travels in every record, so that a record explains itself. */
struct conn {
  /* 0: the key; unique over pid reuse, exec, and reuse of the pointer */
  u32 tgid;
  u32 exec_id; /* task->self_exec_id: an exec gives the same pid new memory */
  u64 start_ns; /* of the process, since boot */
  u64 ssl;
  u64 generation; /* when this use of the pointer began, ktime ns */
  /* 32: the socket */
  u64 socket_cookie;
  u64 netns_cookie;
  u8 local[16]; /* IPv4 in the first four bytes; IPv4-mapped IPv6 is IPv4 */
  u8 remote[16];
  u16 local_port; /* host order */
  u16 remote_port;
  u8 family; /* 4, 6, or 0: not known yet */
  u8 method;
  u8 role;
  u8 library;
  /* 88: the process */
  u32 tid; /* of the first call */
  u32 ppid;
  u32 uid;
  u32 flags;
  char comm[16]; /* of the thread group's leader */
  /* 120 */
  u64 handshake_start;
  u64 offset[2]; /* bytes so far, by direction */
};
_Static_assert(sizeof(struct conn) == 144, "records.py counts on it");

struct record {
  u8 kind;
  u8 direction;
  u16 flags;
  u32 captured; /* bytes of payload behind the header */
  u64 time;     /* ktime ns: when the call returned */
  u64 offset;   /* of the first byte in its direction's stream */
  u64 size;     /* bytes this record stands for; beyond `captured` they are lost */
  u64 call_start;
  u32 tid;
  u32 pad;
  struct conn conn;
  /* payload */
};
_Static_assert(sizeof(struct record) == 192, "records.py counts on it");

/* What was left out of a direction of HTTP/2: nothing but DATA frames of these streams, neither padded nor the last. */
#define UNWANTED_STREAMS 4
struct skipped {
  union {
    u32 stream[UNWANTED_STREAMS];
    u64 pair[UNWANTED_STREAMS / 2];
  };
  u32 frames[UNWANTED_STREAMS]; /* whose headers ended in it */
  u64 payload[UNWANTED_STREAMS];
  u32 left;    /* bytes left of the frame under way at its end; 0: a header comes next */
  u32 current; /* the stream of that frame */
};
_Static_assert(sizeof(struct skipped) == 72, "records.py counts on it");

/* An exec, for the supervisor: who the process is, told while it is certain to exist. Behind it stand the
 * names of the executable's path and of the cgroup's, each ended by a zero and the last one first, then the
 * command line as it lies in memory. */
struct process_record {
  u32 tgid;
  u32 ppid;
  u64 start_ns;
  u64 time;
  u32 uid; /* effective */
  u16 exe; /* bytes of each part */
  u16 cgroup;
  u16 cmdline;
  u16 flags;
  u32 pad;
};
_Static_assert(sizeof(struct process_record) == 40, "records.py counts on it");

enum process_flag {
  PROCESS_PATH_CUT = 1, /* deeper or longer than the record has room for */
  PROCESS_MAPPED = 2,   /* no exec: struct mapped_record */
  PROCESS_TESTED = 4,   /* no exec, and of no process: a self-test can be judged */
};

/* A process has mapped a file that nobody in scope had mapped before. */
struct mapped_record {
  struct process_record process;
  u64 device; /* as the kernel has it: major << 20 | minor */
  u64 inode;
};
_Static_assert(sizeof(struct mapped_record) == 56, "records.py counts on it");

/* In the order of spliffd/counters.py KERNEL; a test compares the two. */
enum counter {
  COUNTER_OUT_OF_SCOPE,
  COUNTER_RING_FULL_DATA_RECORDS,
  COUNTER_RING_FULL_DATA_BYTES,
  COUNTER_RING_FULL_CONTROL,
  COUNTER_FAULT_RECORDS,
  COUNTER_FAULT_BYTES,
  COUNTER_OVERSIZE_BYTES,
  COUNTER_CALL_TABLE_FULL,
  COUNTER_CALL_UNMATCHED, /* calls whose beginning or whose end was not seen */
  COUNTER_CONN_TABLE_FULL,
  COUNTER_COOKIE_TABLE_FULL,
  COUNTER_PROCESS_RING_FULL,
  COUNTER_SOCKETS_ACTIVE,
  COUNTER_SOCKETS_PASSIVE,
  COUNTER_SOCKETS_CLOSED,
  COUNTER_COOKIE_MISSES, /* packets of a socket in scope whose connection is not in `cookies` */
  COUNTER_SOCKETS_WITHOUT_COOKIE,
  COUNTER_SOCKETS_SEEDED,
  COUNTER_FLOWS_MADE, /* less those removed and those there: what the LRU evicted */
  COUNTER_FLOW_TABLE_FULL,
  COUNTER_FLOWS_WITHOUT_HOP, /* packets on more interfaces than a flow has hops */
  COUNTER_UNWANTED_BYTES, /* of bodies that nobody wanted: not copied */
  COUNTER_UNSAMPLED_EXCHANGES, /* exchanges on unwatched connections that were left out, at each end */
  COUNTER_SHED_EXCHANGES, /* the same on connections that were left out because the ring was nearly full */
  COUNTER_UNJUDGED_CALLS, /* delivered because nobody had judged the process's cgroup yet */
  COUNTER_XDP_OWN,
  COUNTER_XDP_AMBIGUOUS,
  COUNTER_XDP_FOREIGN,
  COUNTER_XDP_FORWARDED,
  COUNTER_XDP_FRAGMENTS,
  COUNTER_XDP_NOT_TCP,
  COUNTER_XDP_MALFORMED,
  COUNTER_TC_OWN,
  COUNTER_TC_AMBIGUOUS,
  COUNTER_TC_FOREIGN,
  COUNTER_TC_FORWARDED,
  COUNTER_TC_FRAGMENTS,
  COUNTER_TC_NOT_TCP,
  COUNTER_TC_MALFORMED,
  COUNTERS
};

/* What a packet turned out to be: the counter is COUNTER_XDP_OWN or COUNTER_TC_OWN plus this. */
enum packet_outcome {
  PACKET_OWN,       /* of a connection of ours */
  PACKET_AMBIGUOUS, /* two namespaces use its addresses and ports: whose it is cannot be told */
  PACKET_FOREIGN,   /* TCP of a socket out of scope, or of none that is open (SYN, RST, TIME-WAIT) */
  PACKET_FORWARDED, /* TCP between others: no socket of this namespace has these addresses and ports */
  PACKET_FRAGMENTS, /* a later fragment of IP: its ports are in the first one */
  PACKET_NOT_TCP,
  PACKET_MALFORMED, /* cut short, or no sense in it */
  PACKET_MISSED,    /* counted in COUNTER_COOKIE_MISSES */
};
