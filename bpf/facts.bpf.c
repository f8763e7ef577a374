/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a TLS library says of a session when its program asks it, and why a handshake failed.
 *
 * TLS 1.3 encrypts what the server chose for ALPN, and a client's alerts: packets cannot tell, but programs ask
 * their library for the one, and libraries note the reason of the other. Nothing is called or guessed here; a
 * question that no program asks stays without an answer.
 */

/* The question that this thread is asking: where its answer will be. */
static __always_inline struct asked *asking(struct pt_regs *ctx, u64 id, u64 cookie) {
  struct asked asked = {
      .ssl = PT_REGS_PARM1(ctx), .data = PT_REGS_PARM2(ctx), .length = PT_REGS_PARM3(ctx), .op = cookie & 0xff};
  if (bpf_map_update_elem(MAP_ASKED, &id, &asked, 0))
    return NULL;
  return bpf_map_lookup_elem(MAP_ASKED, &id);
}

/* A record with up to 255 bytes of the process's memory. */
static __always_inline void emit_fact(struct conn_state *state, u32 fact, u64 from, u64 length, u64 number) {
  u32 shard = state->shard;
  void *ring = bpf_map_lookup_elem(MAP_RINGS, &shard);
  struct record *record = ring ? bpf_ringbuf_reserve(ring, sizeof(struct record) + FACT_ROOM, 0) : NULL;
  if (!record) {
    count(COUNTER_RING_FULL_CONTROL, 1);
    return;
  }
  fill_header(record, RECORD_FACT, fact, state);
  record->size = number;
  asm volatile("" : "+r"(length));
  if (length > FACT_ROOM)
    length = FACT_ROOM;
  if (length && bpf_probe_read_user((void *)(record + 1), length, (void *)from)) {
    bpf_ringbuf_discard(record, 0);
    count(COUNTER_FAULT_RECORDS, 1);
    return;
  }
  record->captured = length;
  bpf_ringbuf_submit(record, wakeup(ring, shard));
}

static __always_inline struct conn_state *known_conn(u64 id, u64 ssl) {
  struct calls *calls = calls_known();
  if (!calls)
    return NULL;
  struct conn_key key;
  conn_key_of(&key, calls, id, ssl);
  return bpf_map_lookup_elem(MAP_CONNS, &key);
}

int fact_enter(struct pt_regs *ctx) {
  u64 id = bpf_get_current_pid_tgid();
  /* a thread without TLS calls has no connection; calls are kept of admitted processes only */
  if (!calls_known())
    return 0;
  asking(ctx, id, bpf_get_attach_cookie(ctx));
  return 0;
}

int fact_exit(struct pt_regs *ctx) {
  u64 id = bpf_get_current_pid_tgid();
  struct asked *found = bpf_map_lookup_elem(MAP_ASKED, &id);
  if (!found)
    return 0;
  struct asked asked = *found;
  bpf_map_delete_elem(MAP_ASKED, &id);
  u64 cookie = bpf_get_attach_cookie(ctx);
  struct conn_state *state = known_conn(id, asked.ssl);
  if (!state || asked.op != (cookie & 0xff) || !admitted())
    return 0;
  s64 result = PT_REGS_RC(ctx);
  if (asked.op == OP_VERIFIED) {
    if (!(state->conn.flags & CONN_HANDSHAKE_DONE))
      emit_fact(state, FACT_VERIFIED, 0, 0, result);
    return 0;
  }
  if (state->conn.flags & CONN_ALPN_TOLD || !(state->conn.flags & CONN_HANDSHAKE_DONE))
    return 0;
  struct {
    u64 data;
    u32 length;
  } answer = {};
  if (((cookie >> 8) & 0xff) == FLAVOUR_ZERO) { /* gnutls_datum_t */
    if (!(s32)result && bpf_probe_read_user(&answer, 12, (void *)asked.data))
      return 0;
  } else if (bpf_probe_read_user(&answer.data, 8, (void *)asked.data) ||
             bpf_probe_read_user(&answer.length, 4, (void *)asked.length)) {
    return 0;
  }
  state->conn.flags |= CONN_ALPN_TOLD;
  emit_fact(state, FACT_ALPN, answer.data, answer.length, answer.length);
  return 0;
}

/* ERR_vset_error(library, reason, ..) and ERR_put_error(library, function, reason, ..): during a handshake the
 * last error of libssl itself says why it fails; those of libcrypto also come where it only tries something.
 * Outside of a handshake nothing is kept. */
int tls_error(struct pt_regs *ctx) {
  u64 id = bpf_get_current_pid_tgid();
  struct calls *calls = calls_known();
  if (!calls || !calls->depth || calls->depth > CALL_DEPTH)
    return 0;
  struct call *call = call_at(calls, calls->depth - 1);
  if (call->op < OP_HANDSHAKE || call->op > OP_ACCEPT)
    return 0;
  u32 library = PT_REGS_PARM1(ctx);
  u64 second = PT_REGS_PARM2(ctx), third = PT_REGS_PARM3(ctx);
  asm volatile("" : "+r"(second), "+r"(third)); /* or LLVM chooses the address, which the verifier refuses */
  u32 reason = ((bpf_get_attach_cookie(ctx) >> 8) & 0xff) == FLAVOUR_POINTER ? third : second;
  if (library == ERR_LIB_SSL)
    call->buffer = (u64)library << 32 | reason;
  return 0;
}

/* What gnutls_handshake returns when it wants to be called again (gnutls_error_is_fatal). */
static __always_inline bool gnutls_goes_on(s32 result) {
  return result == -28 /* AGAIN */ || result == -52 /* INTERRUPTED */ || result == -16 /* WARNING_ALERT_RECEIVED */ ||
         result == -37 /* REHANDSHAKE */ || result == -38 /* GOT_APPLICATION_DATA */;
}

/* A handshake call did not succeed: it wants more, or its library has said why. */
static __always_inline void handshake_failed(struct calls *calls, u64 id, struct call *call, s32 result) {
  u64 error = call->buffer;
  if (call->library == LIBRARY_GNUTLS && result < 0 && !gnutls_goes_on(result))
    error = -result;
  if (!error)
    return;
  struct conn_key key;
  conn_key_of(&key, calls, id, call->ssl);
  struct conn_state *state = bpf_map_lookup_elem(MAP_CONNS, &key);
  if (!state || state->conn.flags & (CONN_HANDSHAKE_DONE | CONN_HANDSHAKE_FAILED))
    return;
  state->conn.flags |= CONN_HANDSHAKE_FAILED;
  emit_fact(state, FACT_FAILED, 0, 0, error);
}
