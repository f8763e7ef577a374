/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Writes whose end need not be looked at: they are over when the socket has taken their record.
 *
 * With the ciphers of TLS 1.3, and all of TLS 1.2 that are AEAD, a call of up to one record becomes so many bytes
 * more, the same number on every call of a connection. So once a call was seen to leave as one record in one send,
 * others that are no longer are delivered when as much has left, inside the send, and the return probe is saved where
 * the kernel lets a program say so at the beginning (uprobe sessions, 6.13). OpenSSL and its relatives only: what a
 * socket did not take they want to be called for again with the same bytes, and the end of that call is looked at.
 *
 * Takes what entry and socket tell. A call that goes another way than it should (a handshake anew within a write) is
 * not delivered, for nobody knows how it ended: it is counted, and its connection goes back to return probes.
 */

/* include/linux/errno.h: a signal came before anything was taken, and the send is made again, by the kernel or, told
 * EINTR, by the program. */
#define ERESTARTSYS 512
#define ERESTART_LAST 516

#define TLS13_ADDED 22 /* RFC 8446, 5.2: header 5, content type 1, tag 16 */
#define TLS12_GCM_ADDED 29     /* RFC 5288, 3; RFC 6655, 3: header 5, nonce 8, tag 16 */
#define TLS12_CHACHA_ADDED 21 /* RFC 7905, 2: header 5, tag 16 */

/* At the beginning of a write of `room` bytes: whether its end need not be looked at. */
static __always_inline bool goes_whole(struct conn_state *state, u32 room) {
  return state && room && room <= state->whole_most;
}

/* At the end of a write that was looked at: whether the next ones go like it. */
static __always_inline void learn_whole(struct conn_state *state, struct call *call, u32 size) {
  u32 added = call->sent - size;
  if (state->never_whole || call->sends != 1 || size > PIECE || state->conn.method != METHOD_NESTED ||
      state->traffic == TRAFFIC_HTTP2 || call->library > LIBRARY_LIBRESSL)
    return;
  if (added != TLS13_ADDED && added != TLS12_GCM_ADDED && added != TLS12_CHACHA_ADDED)
    return;
  if (added != state->whole_added || size > state->whole_most)
    state->whole_most = size;
  state->whole_added = added;
}

static __always_inline void forget_whole(struct conn_state *state) { state->whole_most = 0; }

/* The end of a call was not seen, and it did not go as expected. */
static __always_inline void whole_missed(struct conn_state *state) {
  if (state) {
    state->whole_most = 0;
    state->never_whole = 1;
  }
  count(COUNTER_CALL_UNMATCHED, 1);
}

/* Inside such a write the connection's socket has taken `length` bytes, or refused them (an error). Returns whether
 * the call is over, or nothing more of it will be told. */
static __always_inline bool sent_whole(struct conn_state *state, struct call *call, s32 length) {
  u32 expected = call->room + state->whole_added;
  if (length <= -ERESTARTSYS && length >= -ERESTART_LAST)
    return false;
  if (length <= 0) {
    forget_whole(state); /* the next call sends the rest */
    return true;
  }
  /* something short of its own may have gone ahead: a KeyUpdate, an alert */
  if (length == expected || call->sent == expected) {
    emit_record(state, call, call->room);
    return true;
  }
  if (call->sent < expected)
    return false;
  whole_missed(state);
  return true;
}
