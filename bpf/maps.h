/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every map: key, value, bound, who deletes.
 *
 * The supervisor makes the maps (spliffd/kernel/maps.py holds types and sizes). The programs name them by
 * the numbers below, which the loader replaces by file descriptors: the compiled code depends on no fd,
 * and the process that compiles needs no privilege.
 *
 * | map       | key -> value                     | bound  | who deletes                              |
 * | settings  | 0 -> struct settings             | 1      | nobody                                   |
 * | counters  | cpu * 64 + enum counter -> u64   | 64/CPU | nobody                                   |
 * | armed     | shard -> u32: 0, or least bytes  | shards | cleared by whoever wakes the worker      |
 * | rings     | shard -> ring buffer             | shards | nobody                                   |
 * | processes | ring buffer for the supervisor   | 512 KiB| consumer                                 |
 * | exec      | 0 -> struct exec, per CPU        | 1      | nobody                                   |
 * | known_files | struct file_key -> u8          | 16,384 | LRU                                      |
 * | scope     | index -> cgroup                  | 32     | supervisor; 0-15 in scope, 16-31 not     |
 * | uids      | uid -> 1 in scope, 2 excluded    | 1,024  | supervisor                               |
 * | cgroups   | cgroup id -> enum cgroup_list    | 32     | supervisor                               |
 * | calls     | task -> struct calls             | one a thread that calls TLS | the kernel, with the thread |
 * | goroutines | struct go_key -> struct go_call | 32,768 | end of the call; LRU beyond              |
 * | conns     | struct conn_key -> struct conn_state | 32,768 | SSL_free; LRU beyond (worker counts)  |
 * | candidates | struct conn_key -> struct candidate | 8,192 | when the socket is learned; LRU beyond |
 * | speakers  | tgid -> start_ns                 | 8,192  | process exit; LRU beyond                 |
 * | cookies   | struct flow_key -> struct flow_cookie | 65,536 | close of the socket; LRU beyond     |
 * | flows     | socket cookie -> struct flow     | 32,768 | supervisor, 10 s after close; LRU beyond |
 * | blank     | 0 -> struct flow, all zero       | 1      | nobody                                   |
 * | demand    | 0 -> struct demand               | 1      | nobody                                   |
 * | wanted    | struct wanted_key -> u8          | 4,096  | supervisor, when its watchers have left  |
 * | judged    | cgroup id -> u8: is it wanted?   | 16,384 | supervisor, when the cgroup is gone      |
 * | asked     | pid_tgid -> struct asked         | 4,096  | end of the call; LRU beyond              |
 * | hellos    | socket cookie -> struct hello     | 2,048  | LRU                                      |
 * | blank_hello | 0 -> struct hello, all zero    | 1      | nobody                                   |
 * | witnesses | pid_tgid -> struct witness       | 1,024  | whoever compares; LRU                    |
 * | self_tests | number -> struct self_test      | 1,024  | nobody                                   |
 * | unwanted  | slot -> struct unwanted          | 4,096  | the worker whose connection it is; overwritten |
 * | walks     | struct walk_key -> struct walk   | 16,384 | close of the connection; LRU beyond      |
 * | interfaces | ifindex -> struct interface_count, per CPU | 4,096 | supervisor, with the interface     |
 */
#pragma once

#define MAP(number) ((void *)bpf_pseudo_fd(1, number))
#define MAP_SETTINGS MAP(1001)
#define MAP_COUNTERS MAP(1002)
#define MAP_ARMED MAP(1003)
#define MAP_RINGS MAP(1004)
#define MAP_PROCESSES MAP(1005)
#define MAP_SCOPE MAP(1006)
#define MAP_UIDS MAP(1007)
#define MAP_CALLS MAP(1008)
#define MAP_CONNS MAP(1009)
#define MAP_SPEAKERS MAP(1010)
#define MAP_COOKIES MAP(1011)
#define MAP_FLOWS MAP(1012)
#define MAP_BLANK MAP(1013) /* what a new entry of `flows` is copied from: too large for the stack */
#define MAP_GOROUTINES MAP(1016)
#define MAP_CGROUPS MAP(1015) /* the same cgroups as in `scope`, for sockets and for tasks that are not current */
#define MAP_CANDIDATES MAP(1018)
#define MAP_EXEC MAP(1019) /* where a process_record is put together: too large for the stack */
#define MAP_ASKED MAP(1020)
#define MAP_HELLOS MAP(1021)
#define MAP_BLANK_HELLO MAP(1022)
#define MAP_KNOWN_FILES MAP(1024)
#define MAP_INTERFACES MAP(1014) /* the supervisor makes the entries of interfaces that have a hook */
#define MAP_DEMAND MAP(1030)
#define MAP_WANTED MAP(1031)
#define MAP_UNWANTED MAP(1032)
#define MAP_JUDGED MAP(1035)
#define MAP_WALKS MAP(1036)
#define MAP_WITNESSES MAP(1033)
#define MAP_SELF_TESTS MAP(1034)

#define SCOPE_SLOTS 16
#define COUNTER_SLOTS 64 /* for each processor */

struct settings {
  u32 enabled;
  u32 cgroups;          /* in use in scope[0..] */
  u32 excluded_cgroups; /* in use in scope[SCOPE_SLOTS..] */
  u32 uids;             /* number of uids in scope; 0: all */
  u32 excluded_uids;
  u32 shards;
  u32 open_by_state; /* sock_ops is not attached: the state tracepoint opens flows */
  u32 pad;
  u64 netns_cookie; /* of the namespace whose interfaces are watched: the daemon's */
};
_Static_assert(sizeof(struct settings) == 40, "maps.py counts on it");

#define PATHS_BYTES 4096 /* of an executable's path and a cgroup's together; longer ones are cut */
#define CMDLINE_BYTES 4096 /* as attribution/processes.py reads of it; a power of two */

/* What process_exec puts together. */
struct exec {
  /* In memory on purpose: what the verifier does not know it does not follow through every path. */
  volatile u64 used; /* bytes of text */
  struct process_record record;
  char text[2 * PATHS_BYTES + CMDLINE_BYTES]; /* the last name may begin right before PATHS_BYTES */
};
_Static_assert(sizeof(struct exec) == 12336, "maps.py counts on it");
#define MAX_SHARDS 16

/* What those who watch want, all together; see demand.bpf.c. Shared with the supervisor, which writes the first
 * two and reads the share; the programs write the rest, so that stands on a cache line of its own. */
struct demand {
  u64 word; /* enum demand_flag, and above them a number that is never the same again: it stands for the answers */
  u64 rate; /* records of unwatched connections in a window before some are left out; 0: never */
  u64 pad[6];
  /* 64 */
  u64 share; /* of the unwatched connections that are delivered, in 1/1024 */
  u64 since; /* ktime ns: when this window began */
  u64 taken; /* records of unwatched connections in it */
  u64 pressed; /* by bit: shards of which `cut` is not 0 */
  u64 tick;    /* jiffies when the clock was asked, and what it said: see tick_ns */
  u64 tick_ns;
  u64 pad2[2];
  /* 128 */
  struct pressure {
    u64 cut;   /* share of the connections that is left out while the ring is nearly full, in 1/1024 */
    u64 since; /* ktime ns: when the ring was looked at */
  } pressures[MAX_SHARDS];
};
_Static_assert(sizeof(struct demand) == 384, "maps.py counts on it");

#define SHARE_ALL 1024
enum left_out { LEFT_OUT_NOT = 0, LEFT_OUT_UNWATCHED, LEFT_OUT_PRESSED };
enum demand_flag {
  DEMAND_EVERYBODY = 1,
  DEMAND_PIDS = 2,
  DEMAND_UIDS = 4,
  DEMAND_COMMS = 8,
  DEMAND_CGROUPS = 16, /* those that are wanted in `judged`, and those that are not there */
};

enum watched { WATCHED_NOT = 0, WATCHED, WATCHED_UNJUDGED /* until its cgroup is judged */ };

struct wanted_key {
  u64 first; /* pid, uid, or the first half of comm */
  u64 second;
  u32 kind; /* DEMAND_PIDS, DEMAND_UIDS or DEMAND_COMMS */
  u32 pad;
};
_Static_assert(sizeof(struct wanted_key) == 24, "maps.py counts on it");

/* What nobody wants of a connection: up to where the rest of a body of known length reaches (HTTP/1), or whose bodies
 * (HTTP/2), as its worker knows. Shared memory; two connections with the same slot take it from each other, and what
 * is not found is delivered. */
struct unwanted {
  u64 generation; /* 0 while it is written; whose it is, together with ssl */
  u64 ssl;
  u64 until[2]; /* by direction: an offset of its stream */
  u64 streams[2][UNWANTED_STREAMS / 2]; /* by direction: numbers of streams, two in a word; 0: none */
};
_Static_assert(sizeof(struct unwanted) == 64, "unwanted.py counts on it");
#define UNWANTED_SLOTS 4096
#define UNWANTED_CALL 4096 /* bytes: calls below this cost as much to look up as to copy */

/* How far a direction of HTTP/2 was walked, and what was left out of it; see frames.bpf.c. */
struct walk_key {
  u64 ssl;
  u64 generation;
  u32 tgid;
  u32 direction;
};
_Static_assert(sizeof(struct walk_key) == 24, "maps.py counts on it");

struct walk {
  u64 next; /* offset of the call that is expected */
  u64 at;   /* within the call */
  u64 size; /* of it */
  u32 left; /* bytes left of the frame under way */
  u32 stream; /* that it belongs to */
  u8 plain; /* it is DATA that is neither padded nor the last */
  u8 have;  /* bytes that are kept of the next header */
  u8 over;  /* the walk was given up */
  u8 others; /* the call holds other than what nobody wants */
  u8 pad[4];
  u8 header[24];
  union {
    u32 permitted[UNWANTED_STREAMS];
    u64 pair[UNWANTED_STREAMS / 2];
  };
  struct skipped call;
  u64 run_from;
  u64 run_bytes; /* 0: nothing is to be told */
  u64 run_time;
  u64 run_start;
  struct skipped run;
};
_Static_assert(sizeof(struct walk) == 256, "maps.py counts on it");

/* A call at its function's first instruction, until it passes the relocated place; see placement.bpf.c. */
struct witness {
  u64 first;
  u64 second;
  u32 third; /* low half: SSL_read takes an int where its internal function takes a size_t */
  u32 op;
  u32 test;
  u32 pad;
};
_Static_assert(sizeof(struct witness) == 32, "maps.py counts on it");

#define SELF_TEST_ENOUGH 16 /* comparisons that settle it */
#define SELF_TEST_MISSED (4 * SELF_TEST_ENOUGH) /* calls that do, with fewer comparisons: they take another way */
enum self_test_state { SELF_TEST_OVER = 0, SELF_TEST_OPEN, SELF_TEST_SETTLED };

/* Shared with the supervisor, which opens and ends. */
struct self_test {
  u64 open; /* enum self_test_state */
  u64 seen;
  u64 agreed;
  u64 disagreed;
};
_Static_assert(sizeof(struct self_test) == 32, "maps.py counts on it");

enum traffic { TRAFFIC_UNKNOWN = 0, TRAFFIC_HTTP1, TRAFFIC_OTHER, TRAFFIC_HTTP2 };

enum cgroup_list { CGROUP_IN_SCOPE = 1, CGROUP_EXCLUDED = 2 };

#define REQUEST_TEXT 512 /* bytes of a request: more cost as much to look at as the read of its response */

/* TLS in TLS (an HTTPS proxy) nests two calls on one thread; SSL_connect calls SSL_do_handshake. */
#define CALL_DEPTH 4

struct call {
  u64 sp; /* stack pointer at entry: identifies the frame */
  u64 ssl;
  u64 buffer;
  u64 count_at; /* where the count will be (FLAVOUR_POINTER) */
  u64 start;
  u32 room; /* low half of the length given: 0 means that nothing was asked for */
  u8 op;
  u8 named; /* its connection's socket is known, seen by an operation inside this call */
  u16 library;
  u32 sent; /* a write's: bytes that sockets took inside it, by so many operations */
  u16 sends;
  u8 unseen; /* its end is not looked at: it is over when all of it was sent; see writes.bpf.c */
  u8 pad;
};
_Static_assert(sizeof(struct call) == 56, "maps.py counts on it");

/* What a thread did next to its TLS calls; see adjacent.bpf.c. */
struct adjacent {
  u64 until; /* 0: never asked for */
  u64 sk; /* the last receive: its socket */
  u64 cookie;
  u64 reader; /* the TLS object that was called first since; 0: none yet */
  u32 length;
  u32 read; /* plaintext since, and by how many calls */
  u32 reads;
  u32 ambiguous; /* others have received in between, or read */
  u64 writer;    /* the TLS object that was called since the last send */
  u32 written;
  u32 records; /* that it took; 0: only steps of a handshake */
  u32 mixed;   /* several objects: whose bytes are sent next is not known */
  u32 shaking; /* a step of its handshake is among what is sent next */
};
_Static_assert(sizeof(struct adjacent) == 72, "maps.py counts on it");

struct calls {
  u64 start_ns; /* of the process, read once for each thread */
  u32 exec_id;
  u32 depth;
  u64 socket; /* that tcp_sendmsg or tcp_recvmsg was entered with, until it returns; see sockets.bpf.c */
  struct call call[CALL_DEPTH];
  struct adjacent adjacent;
  u8 text[REQUEST_TEXT]; /* where a request is looked at; see demand.bpf.c */
};

/* A call in a Go program; see go.bpf.c. */
struct go_key {
  u64 g;
  u32 tgid;
  u32 depth; /* of the frame, in bytes from the end of the goroutine's stack */
};

struct go_call {
  u64 start_ns; /* of the process */
  u64 conn;     /* *tls.Conn */
  u64 generation; /* of the connection when the call began; 0: none yet */
  u64 buffer; /* with `moves`: in bytes from the end of the goroutine's stack */
  u64 room;
  u64 start;
  u32 exec_id;
  u16 op;
  u8 moves;
  u8 counted; /* in the `writers` of its connection */
  u64 claim; /* see go_writes.bpf.c */
};
_Static_assert(sizeof(struct go_call) == 64, "maps.py counts on it");

struct conn_key {
  u32 tgid;
  u32 exec_id;
  u64 start_ns;
  u64 ssl;
};

/* What the coverage ledger is told of a connection, by its flow. Each says more than the one before it. */
enum accounted { ACCOUNTED_NOTHING = 0, ACCOUNTED_HANDSHAKE = 1, ACCOUNTED_BYTES = 2 };

struct conn_state {
  struct conn conn;
  s32 fd; /* by SSL_set_fd; -1: none */
  u32 shard;
  u64 writers; /* Go: calls of Write under way, plus GO_CLOSING; and the latest of them as a key of `goroutines` */
  u64 writer_g;
  u64 writer_depth;
  u64 demand;   /* the word for which `watched` was found out */
  u8 watched;   /* enum watched */
  u8 traffic;   /* enum traffic */
  u8 left_out;  /* enum left_out: why, from a request on, nothing is delivered */
  u8 spared[2]; /* by direction: something was not delivered since the last record, nobody knows how much */
  u8 awaits_response; /* a client's, left out: the next response has not begun */
  u8 accounted; /* enum accounted: what its flow has been told */
  u8 counted; /* a client's, left out: the exchange was counted with its request */
  u64 cgroup; /* that was judged as not wanted, for `demand`; 0: none was */
  u16 whole_most; /* a write of so many bytes goes as one record in one send; 0: not known. See writes.bpf.c */
  u8 whole_added; /* and so many more */
  u8 never_whole; /* one did not */
  u8 pad[4];
};
_Static_assert(__builtin_offsetof(struct conn_state, accounted) == 190, "stages/ledger.py counts on it");

struct candidate {
  u64 cookie;
  u32 evidence; /* enum evidence */
  u32 way;      /* how its records are protected, as far as lengths tell */
};
_Static_assert(sizeof(struct candidate) == 16, "maps.py counts on it");

/* A question to a TLS library that a thread is asking; see facts.bpf.c. */
struct asked {
  u64 ssl;
  u64 data; /* where the answer will be */
  u64 length;
  u64 op;
};
_Static_assert(sizeof(struct asked) == 32, "maps.py counts on it");
