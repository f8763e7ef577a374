/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How much TLS carries, told by the lengths of its records: they go in the clear, whoever reads what is in them.
 *
 * From a connection's ClientHello on, each direction is walked from record to record. A packet that lies within a
 * record costs one comparison, another one load of five bytes for each record that begins in it; nothing behind the
 * headers is read. A header that was missed (lost, out of turn, too many in one packet) is never made up for: the
 * walk stays where it is, which is short of the stream's end, and what was counted claims nothing beyond it. A
 * packet that comes twice, or on another interface, lies behind the walk and is left alone.
 *
 * User space knows what the records of application data hold beside plaintext (spliffd/correlation/accounted.py).
 */

#define RECORD_HEADER 5
#define RECORD_DATA_TYPE 23 /* application_data; in TLS 1.3 whatever is encrypted (RFC 8446, 5.2) */
#define RECORD_LENGTH_MOST (16384 + 2048) /* RFC 5246, 6.2.3 */
/* Of one packet, and all that the verifier is asked to walk through; GRO merges as many of the records of a kilobyte
 * that some servers begin with. */
#define RECORDS_A_PACKET 32

/* struct record_side's `walk`: the sequence number of the next byte that is needed, and what is known of a header
 * that ended with its packet. */
#define WALK_ON (1ULL << 63)
#define WALK_HAVE 32 /* bytes of the header, 0-4 */
#define WALK_TYPE 40
#define WALK_HIGH 48 /* of the length */

struct packet {
  struct flow_key key; /* as its sender sees it */
  u32 length;
  u32 payload_at;
  u32 payload; /* bytes of TCP payload, without padding */
  u32 sequence; /* of the first byte */
  u32 acknowledgement;
  u32 syn;
  u32 segments; /* packets on the wire: GRO and TSO make one of many */
  u64 walk; /* where the next TLS record begins, if that is in it, else 0 */
  struct flow *records_of[2]; /* the flows that this goes for, by direction */
};

static __always_inline long load(void *ctx, bool xdp, u32 at, void *to, u32 size) {
  return xdp ? bpf_xdp_load_bytes(ctx, at, to, size) : bpf_skb_load_bytes(ctx, at, to, size);
}

static __always_inline void walk_begin(struct record_side *side, u32 sequence, bool client) {
  side->client = client;
  side->walk = WALK_ON | sequence;
}

/* What the records say that begin in one packet. */
struct walked {
  u64 before; /* struct record_side's `walk` */
  u64 after;  /* 0: the walk ends here */
  u64 bytes;
  u64 lengths; /* of the first four */
  u32 records;
  u32 last;
};

static __always_inline bool record_begins(struct packet *packet, struct record_side *side) {
  u64 walk = *(volatile u64 *)&side->walk;
  return walk & WALK_ON && (u32)walk - packet->sequence < packet->payload;
}

static __always_inline void walk_records(void *ctx, bool xdp, struct packet *packet, struct walked *walked) {
  u64 before = walked->before, bytes = 0, lengths = 0, place = 1, kept = 0;
  u32 records = 0, last = 0, payload = packet->payload;
  u32 at = (u32)before - packet->sequence;
  u32 have = (before >> WALK_HAVE) & 7;
  u8 header[8] = {};
  if (have) {
    u8 high = before >> WALK_HIGH, low;
    u32 rest = RECORD_HEADER - have;
    u32 end = packet->payload_at + at + rest;
    if (at + rest > payload || load(ctx, xdp, end - 1, &low, 1) ||
        (have < RECORD_HEADER - 1 && load(ctx, xdp, end - 2, &high, 1)))
      return;
    u32 length = (u32)high << 8 | low;
    if (length > RECORD_LENGTH_MOST)
      return;
    if ((u8)(before >> WALK_TYPE) == RECORD_DATA_TYPE) {
      records = 1;
      bytes = lengths = last = length;
      place = 1 << 16;
    }
    at += rest + length;
  }
  for (u32 i = 0; i < RECORDS_A_PACKET; i++) {
    if (at + RECORD_HEADER > payload)
      break;
    if (load(ctx, xdp, packet->payload_at + at, header, RECORD_HEADER))
      return;
    u32 length = (u32)header[3] << 8 | header[4];
    if (header[0] < 20 || header[0] > 24 || header[1] != 3 || length > RECORD_LENGTH_MOST)
      return;
    at += RECORD_HEADER + length;
    /* Without a branch: the verifier would follow both ways of each record's. */
    u32 data = ((u32)(header[0] ^ RECORD_DATA_TYPE) - 1) >> 31;
    asm volatile("" : "+r"(data)); /* LLVM would make one of it */
    records += data;
    length *= data;
    bytes += length;
    lengths += length * place; /* four of them fit */
    place <<= data * 16;
    last = length + last * (1 - data);
  }
  if (at < payload) {
    have = payload - at;
    u32 from = packet->payload_at + at;
    if (have < RECORD_HEADER) { /* else there are more records than are searched for */
      if (load(ctx, xdp, from, &header[0], 1) || (have > 3 && load(ctx, xdp, from + 3, &header[3], 1)))
        return;
      kept = (u64)have << WALK_HAVE | (u64)header[0] << WALK_TYPE | (u64)header[3] << WALK_HIGH;
      at = payload;
    }
  }
  walked->after = WALK_ON | kept | (u32)(packet->sequence + at);
  walked->bytes = bytes;
  walked->lengths = lengths;
  walked->records = records;
  walked->last = last;
}

/* Two processors may have the same bytes: one of them counts. */
static __always_inline void count_records(struct record_side *side, struct record_side *opposite,
                                          struct walked *walked) {
  if (__sync_val_compare_and_swap(&side->walk, walked->before, walked->after) != walked->before || !walked->records)
    return;
  if (side->client && !opposite->begun) {
    /* The client has the server's whole flight, or it would not encrypt: what comes now is no part of it. */
    opposite->flight_bytes = opposite->bytes;
    opposite->flight_records = opposite->records;
    side->begun = 1;
    opposite->begun = 1;
  }
  u32 index = side->records - side->flight_records;
  if (side->begun && index < 4)
    side->first |= walked->lengths << (index * 16);
  side->last = walked->last;
  __sync_fetch_and_add(&side->records, walked->records);
  __sync_fetch_and_add(&side->bytes, walked->bytes);
}

/* Both ends of a connection may be ours: then their walks are the same. Last of all that is done with a packet:
 * within ``claim`` the verifier would walk with each of that one's ways. */
static __always_inline void see_records(void *ctx, bool xdp, struct packet *packet) {
  if (!packet->walk)
    return;
  struct walked walked = {.before = packet->walk};
  walk_records(ctx, xdp, packet, &walked);
  if (!walked.after)
    return;
  struct flow *sender = packet->records_of[SENT];
  if (sender)
    count_records(&sender->side[SENT], &sender->side[RECEIVED], &walked);
  struct flow *receiver = packet->records_of[RECEIVED];
  if (receiver)
    count_records(&receiver->side[RECEIVED], &receiver->side[SENT], &walked);
}
