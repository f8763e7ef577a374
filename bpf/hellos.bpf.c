/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How TLS begins on a connection of ours, kept by its socket's cookie: the first bytes of both directions.
 *
 * What goes in the clear there says version, cipher suite, server name, what the client offers (JA4), and by
 * alerts why a handshake has failed; the worker reads it (spliffd/protocols/tls_hello.py). A ClientHello may come
 * in several packets, in any order, twice, or on several interfaces: bytes are kept at their place in the stream.
 * Only a connection's first packets are looked at, and nothing is kept before one of them begins with a
 * ClientHello: all others pay one comparison.
 */

/* A ClientHello is behind the three packets of TCP's own handshake, or a proxy's or STARTTLS's few lines; a server's
 * certificates and a client's, and the alert that refuses them, take some tens. */
#define HELLO_PACKETS 32
#define ALERT_BYTES 7 /* an alert in the clear, as a record of its own (RFC 8446, 6): encrypted ones are longer */

/* Keeps at most MOST bytes at `offset`, which is at most HELLO_ROOM - MOST: the verifier must see both bounds. */
static __always_inline u64 keep_bytes(void *ctx, bool xdp, u32 at, struct hello_side *side, u64 offset, u64 size,
                                      u64 most) {
  asm volatile("" : "+r"(offset), "+r"(size)); /* one copy of each, or LLVM checks one and uses the other */
  if (offset > HELLO_ROOM - most)
    return 0;
  if (size > most)
    size = most;
  s64 length = size;
  asm volatile("" : "+r"(length));
  if (length < 1) /* signed: kernel 6.1 learns nothing from a comparison with 0 for equality */
    return 0;
  return load(ctx, xdp, at, side->bytes + offset, length) ? 0 : length;
}

static __always_inline void keep_piece(void *ctx, bool xdp, struct packet *packet, struct hello_side *side) {
  u32 offset = packet->sequence - side->base;
  u64 kept;
  /* All in one merged packet, or pieces of an Ethernet frame; near the end of the room they are cut. */
  if (!offset)
    kept = keep_bytes(ctx, xdp, packet->payload_at, side, 0, packet->payload, HELLO_ROOM);
  else if (offset <= HELLO_ROOM / 2)
    kept = keep_bytes(ctx, xdp, packet->payload_at, side, offset, packet->payload, HELLO_ROOM / 2);
  else if (offset <= HELLO_ROOM * 2 / 3)
    kept = keep_bytes(ctx, xdp, packet->payload_at, side, offset, packet->payload, HELLO_ROOM / 3);
  else
    kept = keep_bytes(ctx, xdp, packet->payload_at, side, offset, packet->payload, HELLO_ROOM / 6);
  if (!kept)
    return;
  u32 end = offset + kept;
  if (offset > side->have) {
    if (!side->until || side->until == offset) {
      side->from = side->until ? side->from : offset;
      side->until = end;
    }
    return;
  }
  if (side->have < end)
    side->have = end;
  if (side->have >= side->from && side->have < side->until)
    side->have = side->until;
}

/* A packet with payload of the connection's first ones, in either direction. */
static __always_inline void see_hello(void *ctx, bool xdp, u64 cookie, struct flow *flow, struct packet *packet,
                                      u32 direction) {
  u8 start[ALERT_BYTES];
  if (!(flow->flags & FLOW_CLIENT_HELLO)) {
    if (packet->payload < 6 || packet->syn || load(ctx, xdp, packet->payload_at, start, 6))
      return;
    if (start[0] != 22 /* handshake */ || start[1] != 3 || start[5] != 1 /* ClientHello: RFC 8446, 4 and 5.1 */)
      return;
    flow->flags |= FLOW_CLIENT_HELLO;
    /* the client has had all that came before the answer */
    walk_begin(direction == SENT ? &flow->side[SENT] : &flow->side[RECEIVED], packet->sequence, true);
    walk_begin(direction == SENT ? &flow->side[RECEIVED] : &flow->side[SENT], packet->acknowledgement, false);
    u32 zero = 0;
    void *blank = bpf_map_lookup_elem(MAP_BLANK_HELLO, &zero);
    if (!blank || bpf_map_update_elem(MAP_HELLOS, &cookie, blank, 0))
      return;
    struct hello *fresh = bpf_map_lookup_elem(MAP_HELLOS, &cookie);
    if (!fresh)
      return;
    fresh->client = direction;
    fresh->side[0].base = packet->sequence;
    fresh->side[1].base = packet->acknowledgement;
    keep_piece(ctx, xdp, packet, &fresh->side[0]);
    return;
  }
  struct hello *hello = bpf_map_lookup_elem(MAP_HELLOS, &cookie);
  if (!hello)
    return;
  struct hello_side *side = direction == hello->client ? &hello->side[0] : &hello->side[1];
  keep_piece(ctx, xdp, packet, side);
  if (packet->payload == ALERT_BYTES && !load(ctx, xdp, packet->payload_at, start, ALERT_BYTES) &&
      start[0] == 21 /* alert */ && start[1] == 3 && !start[3] && start[4] == 2)
    side->alert = (u32)start[5] << 8 | start[6];
}
