/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Processes that start and end.
 *
 * exec tells the supervisor to look which libraries the process maps; exit frees what the thread or the
 * process held and tells the workers that its connections are over (a killed process frees nothing
 * itself). Raw tracepoints: no tracefs is needed.
 */

#define MAX_SHARDS 16

/* Tells every worker that the connections of a process are over, if it had any. */
static __always_inline void connections_end(u32 tgid) {
  u64 *start = bpf_map_lookup_elem(MAP_SPEAKERS, &tgid);
  if (!start)
    return;
  u64 start_ns = *start;
  bpf_map_delete_elem(MAP_SPEAKERS, &tgid);
  u32 zero = 0;
  struct settings *settings = bpf_map_lookup_elem(MAP_SETTINGS, &zero);
  if (!settings)
    return;
  for (u32 shard = 0; shard < MAX_SHARDS; shard++) {
    if (shard >= settings->shards)
      break;
    u32 index = shard;
    void *ring = bpf_map_lookup_elem(MAP_RINGS, &index);
    if (!ring)
      continue;
    struct record *record = bpf_ringbuf_reserve(ring, sizeof(struct record), 0);
    if (!record) {
      count(COUNTER_RING_FULL_CONTROL, 1);
      continue;
    }
    __builtin_memset(record, 0, sizeof(*record));
    record->kind = RECORD_EXIT;
    record->time = bpf_ktime_get_ns();
    record->tid = (u32)bpf_get_current_pid_tgid();
    record->conn.tgid = tgid;
    record->conn.start_ns = start_ns;
    bpf_ringbuf_submit(record, wakeup(shard));
  }
}

/* sched_process_exec(struct task_struct *, pid_t old_pid, struct linux_binprm *): the old program's memory
 * is gone, and its TLS objects with it, without a call to SSL_free. */
int process_exec(struct bpf_raw_tracepoint_args *ctx) {
  u64 id = bpf_get_current_pid_tgid();
  bpf_map_delete_elem(MAP_CALLS, &id); /* exec_id has changed */
  connections_end(id >> 32);
  if (!admitted())
    return 0;
  struct process_record *record = bpf_ringbuf_reserve(MAP_PROCESSES, sizeof(struct process_record), 0);
  if (!record) {
    count(COUNTER_PROCESS_RING_FULL, 1);
    return 0;
  }
  u64 task = bpf_get_current_task();
  u64 leader = read_u64(task, OFF_task_group_leader);
  record->tgid = id >> 32;
  record->ppid = read_u32(read_u64(leader, OFF_task_real_parent), OFF_task_tgid);
  record->start_ns = read_u64(leader, OFF_task_start_boottime);
  record->time = bpf_ktime_get_ns();
  bpf_ringbuf_submit(record, 0);
  return 0;
}

/* sched_process_exit(struct task_struct *), once for each thread. */
int process_exit(struct bpf_raw_tracepoint_args *ctx) {
  u64 id = bpf_get_current_pid_tgid();
  bpf_map_delete_elem(MAP_CALLS, &id);
  u64 task = bpf_get_current_task();
  /* signal->live has been decremented already: 0 means that this was the last thread */
  if (read_u32(read_u64(task, OFF_task_signal), OFF_signal_live))
    return 0;
  connections_end(id >> 32);
  return 0;
}
