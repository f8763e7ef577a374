/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The socket of programs that keep TLS apart from their sockets (memory BIOs: node, asyncio).
 *
 * They receive, then call TLS with what came; call TLS, then send what it made. So the socket is that of the
 * thread's adjacent operation. Adjacent alone proves nothing: the length must be that of the ciphertext, to
 * the byte, for one of the ways in which a record can be protected; the operation must be the only candidate;
 * and two such observations must agree, one of them of something sent. What does not agree starts afresh.
 *
 * A program that receives from several sockets before it reads gives wrong neighbours again and again, but
 * only in one direction. That is why what is received alone never names a socket.
 *
 * Only threads with a TLS connection whose socket is unknown are looked at; for all others a socket operation
 * costs what it cost before.
 */

/* For so long after a TLS call of a nameless connection the thread's socket operations are looked at. */
#define ADJACENT_NS 10000000000ULL

enum evidence { EVIDENCE_SENT_IN_HANDSHAKE = 1, EVIDENCE_SENT = 2, EVIDENCE_RECEIVED = 4 };

/* What records of `plain` bytes become, by the ways that RFC 8446, 5.2 and RFC 5246, 6.2.3 allow: returns a
 * number for the way in which they make `length` bytes together, 0 when there is none. */
static __always_inline u32 protection(u64 plain, u64 records, u64 length, bool shaking) {
  u64 added = length - plain;
  if (shaking) {
    /* TLS 1.3: the client's Finished of 32 or 48 bytes goes with its first request, after a
     * ChangeCipherSpec of 6 or without. */
    u64 finished = added - records * 22;
    if (finished == 58 || finished == 74 || finished == 64 || finished == 80)
      return 1;
  }
  if (added == records * 22)
    return 1; /* TLS 1.3: header 5, content type 1, tag 16 */
  if (added == records * 29)
    return 2; /* TLS 1.2, GCM and CCM: header 5, nonce 8, tag 16 */
  if (added == records * 21)
    return 3; /* TLS 1.2, ChaCha20-Poly1305: header 5, tag 16; CCM_8: header 5, nonce 8, tag 8 */
  if (added == records * 14)
    return 4; /* TLS 1.3, CCM_8 */
  if (records != 1)
    return 0;
  /* TLS 1.2, CBC: header 5, IV 16, MAC 20, 32 or 48, padding of 1 to 16; the MAC inside or outside (RFC 7366) */
  if (length == 21 + ((plain + 20 + 16) & ~15ULL))
    return 5;
  if (length == 21 + ((plain + 32 + 16) & ~15ULL))
    return 6;
  if (length == 21 + ((plain + 48 + 16) & ~15ULL))
    return 7;
  u64 padded = 21 + ((plain + 16) & ~15ULL);
  if (length == padded + 20)
    return 8;
  if (length == padded + 32)
    return 9;
  if (length == padded + 48)
    return 10;
  return 0;
}

/* One observation: `ssl` over the socket `cookie`. Returns true when that names it. */
static __always_inline bool agreed(struct conn_key *key, u64 cookie, u32 evidence, u32 way) {
  struct candidate *candidate = bpf_map_lookup_elem(MAP_CANDIDATES, key);
  if (!candidate || candidate->cookie != cookie || (way && candidate->way && way != candidate->way)) {
    struct candidate fresh = {.cookie = cookie, .evidence = evidence, .way = way};
    bpf_map_update_elem(MAP_CANDIDATES, key, &fresh, 0);
    return false;
  }
  u32 before = candidate->evidence;
  candidate->evidence = before | evidence;
  if (way)
    candidate->way = way;
  if (evidence == EVIDENCE_SENT)
    return true; /* the second one: whatever the first was, it is of the same socket */
  if (evidence == EVIDENCE_RECEIVED)
    return before & (EVIDENCE_SENT | EVIDENCE_SENT_IN_HANDSHAKE);
  return before & EVIDENCE_SENT;
}

/* The thread has sent or received outside of TLS calls. */
static __always_inline void adjacent_operation(struct calls *calls, struct sock *sk, s32 length, bool typed,
                                               u32 direction) {
  struct adjacent *near = &calls->adjacent;
  if (!near->until || bpf_ktime_get_ns() > near->until)
    return;
  if (read_u16((u64)sk, OFF_sk_protocol) != IPPROTO_TCP)
    return;
  if (direction == RECEIVED) {
    if (length <= 0)
      return;
    u64 cookie = typed ? bpf_get_socket_cookie(sk) : read_u64((u64)sk, OFF_sk_cookie);
    bool unread = near->sk && !near->reader;
    if (unread && near->cookie == cookie) {
      near->length += length;
      return;
    }
    near->ambiguous = unread || !cookie;
    near->sk = (u64)sk;
    near->cookie = cookie;
    near->reader = 0;
    near->length = length;
    near->read = 0;
    near->reads = 0;
    return;
  }
  u64 ssl = near->writer;
  u64 written = near->written, records = near->records;
  bool mixed = near->mixed, shaking = near->shaking;
  near->writer = 0;
  near->written = 0;
  near->records = 0;
  near->mixed = 0;
  near->shaking = 0;
  if (!ssl || mixed || length <= 0)
    return;
  struct conn_key key;
  conn_key_of(&key, calls, bpf_get_current_pid_tgid(), ssl);
  struct conn_state *state = bpf_map_lookup_elem(MAP_CONNS, &key);
  if (!state || state->conn.method != METHOD_NONE)
    return;
  u64 cookie = typed ? bpf_get_socket_cookie(sk) : read_u64((u64)sk, OFF_sk_cookie);
  u32 way = records ? protection(written, records, length, shaking) : 0;
  if (!cookie || (records && !way))
    return;
  if (agreed(&key, cookie, records ? EVIDENCE_SENT : EVIDENCE_SENT_IN_HANDSHAKE, way)) {
    learn_socket(state, (u64)sk, cookie, METHOD_THREAD);
    bpf_map_delete_elem(MAP_CANDIDATES, &key);
  }
}

/* A TLS call has returned in which no socket operation took place, on a connection whose socket is unknown.
 * `size` is what it moved; 0 before anything has moved is a step of the handshake. */
static __always_inline void adjacent_call(struct conn_state *state, struct calls *calls, u32 op, u64 size) {
  struct adjacent *near = &calls->adjacent;
  if (!near->until)
    __builtin_memset(near, 0, sizeof(*near));
  near->until = bpf_ktime_get_ns() + ADJACENT_NS;
  u64 ssl = state->conn.ssl;
  if (op == OP_WRITE && size) {
    if (near->writer && near->writer != ssl) {
      near->mixed |= near->records != 0;
      near->written = 0;
      near->records = 0;
      near->shaking = 0;
    }
    near->writer = ssl;
    near->written += size;
    near->records += (size + PIECE - 1) / PIECE;
    return;
  }
  if (!size && !state->conn.offset[SENT] && !state->conn.offset[RECEIVED]) {
    if (near->writer && near->writer != ssl)
      near->mixed = 1;
    near->writer = ssl;
    near->shaking = 1;
  }
  if (!near->sk)
    return;
  if (!near->reader)
    near->reader = ssl;
  if (near->reader != ssl) {
    near->ambiguous |= size != 0;
    return;
  }
  if (op != OP_READ || !size || near->ambiguous)
    return;
  near->read += size;
  near->reads++;
  u32 way = protection(near->read, near->reads, near->length, !state->conn.offset[RECEIVED]);
  if (!way)
    return;
  struct conn_key key = {
      .tgid = state->conn.tgid, .exec_id = state->conn.exec_id, .start_ns = state->conn.start_ns, .ssl = ssl};
  u64 sk = near->sk, cookie = near->cookie;
  /* The socket may be gone by now and its memory another's: cookies are never given twice. */
  if (agreed(&key, cookie, EVIDENCE_RECEIVED, way) && read_u64(sk, OFF_sk_cookie) == cookie) {
    learn_socket(state, sk, cookie, METHOD_THREAD);
    bpf_map_delete_elem(MAP_CANDIDATES, &key);
  }
}
