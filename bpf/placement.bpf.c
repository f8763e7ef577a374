/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Whether a relocated probe sees what one at the function's first instruction would: tried on real calls.
 *
 * While a file's test is open, a witness sits at the first instructions of the functions whose calls must pass
 * the relocated place. It notes the arguments, in registers; the relocated probe compares its own. Memory of the
 * process is not read. What the counts say is up to spliffd/stages/self_tests.py; that they can be judged is told
 * at once, because a witness costs each call ten times what the relocated probe does.
 */

/* Nothing more is counted, and the supervisor is told; once. Where there is no room it looks now and then. */
static __always_inline void settle(struct self_test *test) {
  if (__sync_val_compare_and_swap(&test->open, SELF_TEST_OPEN, SELF_TEST_SETTLED) != SELF_TEST_OPEN)
    return;
  struct process_record *record = bpf_ringbuf_reserve(MAP_PROCESSES, sizeof(*record), 0);
  if (!record) {
    count(COUNTER_PROCESS_RING_FULL, 1);
    return;
  }
  __builtin_memset(record, 0, sizeof(*record));
  record->time = bpf_ktime_get_ns();
  record->flags = PROCESS_TESTED;
  bpf_ringbuf_submit(record, 0);
}

/* At the first instruction: SSL_read, SSL_read_ex, and their like. */
int tls_witness(struct pt_regs *ctx) {
  if (!admitted())
    return 0;
  u64 cookie = bpf_get_attach_cookie(ctx);
  u32 number = cookie >> 32;
  struct self_test *test = bpf_map_lookup_elem(MAP_SELF_TESTS, &number);
  if (!test || *(volatile u64 *)&test->open != SELF_TEST_OPEN)
    return 0;
  u64 id = bpf_get_current_pid_tgid();
  struct witness seen = {.first = PT_REGS_PARM1(ctx), .second = PT_REGS_PARM2(ctx), .third = PT_REGS_PARM3(ctx)};
  seen.op = cookie & 0xff;
  seen.test = number;
  bpf_map_update_elem(MAP_WITNESSES, &id, &seen, 0);
  if (__sync_fetch_and_add(&test->seen, 1) + 1 >= SELF_TEST_MISSED)
    settle(test);
  return 0;
}

/* At the relocated place: the witness of this thread's call, if there is one, has seen the same. */
static __always_inline void compare(struct pt_regs *ctx, u64 cookie, u64 id) {
  u32 number = cookie >> 32;
  struct self_test *test = bpf_map_lookup_elem(MAP_SELF_TESTS, &number);
  if (!test || *(volatile u64 *)&test->open != SELF_TEST_OPEN)
    return;
  struct witness *seen = bpf_map_lookup_elem(MAP_WITNESSES, &id);
  if (!seen || seen->test != number)
    return;
  bool same = seen->first == PT_REGS_PARM1(ctx) && seen->second == PT_REGS_PARM2(ctx) && seen->op == (cookie & 0xff) &&
              seen->third == (u32)PT_REGS_PARM3(ctx);
  __sync_fetch_and_add(same ? &test->agreed : &test->disagreed, 1);
  bpf_map_delete_elem(MAP_WITNESSES, &id);
  if (*(volatile u64 *)&test->agreed + *(volatile u64 *)&test->disagreed >= SELF_TEST_ENOUGH)
    settle(test);
}
