/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Processes that start and end.
 *
 * exec tells the supervisor to look which libraries the process maps, and who it is: one that lives for
 * some milliseconds is gone from /proc before anybody asks. exit frees what the process held
 * and tells the workers that its connections are over (a killed process frees nothing itself). Raw
 * tracepoints: no tracefs is needed.
 */

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
    bpf_ringbuf_submit(record, wakeup(ring, shard));
  }
}

#define NAME_BYTES 256    /* NAME_MAX and its zero */
#define EXE_STEPS 40      /* directories and mount points of a path */
#define CGROUP_STEPS 24

/* By its number, as read_kernel: BCC turns the name into bpf_probe_read_str. */
static long (*read_kernel_str)(void *to, u32 size, const void *from) = (void *)115;

/* Appends a name; false when there is no room or nothing to read. */
static __always_inline bool add_name(struct exec *exec, u64 name) {
  u64 used = exec->used;
  if (used >= PATHS_BYTES)
    return false;
  long length = read_kernel_str(&exec->text[used], NAME_BYTES, (void *)name);
  if (length <= 0)
    return false;
  exec->used = used + length;
  return true;
}

/* The path of the program as the process itself sees it: from the file up to the process's root directory,
 * through mount points (fs/d_path.c does the same under locks: a rename meanwhile can mix two paths). */
static __always_inline void add_exe(struct exec *exec, u64 task) {
  u64 path = read_u64(read_u64(task, OFF_task_mm), OFF_mm_exe_file) + OFF_file_path;
  u64 root = read_u64(task, OFF_task_fs) + OFF_fs_root;
  u64 mount = read_u64(path, OFF_path_mnt), dentry = read_u64(path, OFF_path_dentry);
  u64 root_mount = read_u64(root, OFF_path_mnt), root_dentry = read_u64(root, OFF_path_dentry);
  for (u32 step = 0; step < EXE_STEPS; step++) {
    if (dentry == root_dentry && mount == root_mount)
      return;
    if (dentry == read_u64(mount, OFF_vfsmount_root)) {
      u64 parent = read_u64(mount - OFF_mount_mnt, OFF_mount_parent);
      if (!parent || parent == mount - OFF_mount_mnt)
        return; /* a file of no mounted tree (memfd), or outside of the process's root */
      dentry = read_u64(mount - OFF_mount_mnt, OFF_mount_mountpoint);
      mount = parent + OFF_mount_mnt;
      continue;
    }
    if (!add_name(exec, read_u64(dentry, OFF_dentry_name)))
      break;
    u64 parent = read_u64(dentry, OFF_dentry_parent);
    if (parent == dentry)
      return;
    dentry = parent;
  }
  exec->record.flags |= PROCESS_PATH_CUT;
}

/* The path of the task's cgroup v2; nothing for the root. */
static __always_inline void add_cgroup(struct exec *exec, u64 task) {
  u64 node = read_u64(read_u64(read_u64(task, OFF_task_cgroups), OFF_css_set_dfl_cgrp), OFF_cgroup_kn);
  for (u32 step = 0; step < CGROUP_STEPS; step++) {
    u64 parent = read_u64(node, OFF_kn_parent);
    if (!parent)
      return; /* the root has no name */
    if (!add_name(exec, read_u64(node, OFF_kn_name)))
      break;
    node = parent;
  }
  exec->record.flags |= PROCESS_PATH_CUT;
}

static __always_inline void add_cmdline(struct exec *exec, u64 task) {
  u64 mm = read_u64(task, OFF_task_mm);
  u64 from = read_u64(mm, OFF_mm_arg_start), length = read_u64(mm, OFF_mm_arg_end) - from;
  if (length >= CMDLINE_BYTES)
    length = CMDLINE_BYTES - 1;
  length &= CMDLINE_BYTES - 1;
  u64 used = exec->used;
  if (bpf_probe_read_user(&exec->text[used & (2 * PATHS_BYTES - 1)], length, (void *)from) == 0)
    exec->used = used + length;
}

/* sched_process_exec(struct task_struct *, pid_t old_pid, struct linux_binprm *): the old program's memory
 * is gone, and its TLS objects with it, without a call to SSL_free. */
int process_exec(struct bpf_raw_tracepoint_args *ctx) {
  u64 id = bpf_get_current_pid_tgid();
  struct calls *calls = calls_known();
  if (calls)
    calls_begin(calls);
  connections_end(id >> 32);
  u32 zero = 0;
  struct settings *settings = bpf_map_lookup_elem(MAP_SETTINGS, &zero);
  if (!settings || !settings->enabled || !in_scope(settings)) /* not admitted(): that counts TLS calls */
    return 0;
  struct exec *exec = bpf_map_lookup_elem(MAP_EXEC, &zero);
  if (!exec)
    return 0;
  struct process_record *record = &exec->record;
  u64 task = bpf_get_current_task();
  u64 leader = read_u64(task, OFF_task_group_leader);
  __builtin_memset(record, 0, sizeof(*record));
  record->tgid = id >> 32;
  record->ppid = read_u32(read_u64(leader, OFF_task_real_parent), OFF_task_tgid);
  record->start_ns = read_u64(leader, OFF_task_start_boottime);
  record->time = bpf_ktime_get_ns();
  record->uid = read_u32(read_u64(task, OFF_task_cred), OFF_cred_euid);
  exec->used = 0;
  add_exe(exec, task);
  record->exe = exec->used;
  add_cgroup(exec, task);
  record->cgroup = exec->used - record->exe;
  u32 names = exec->used;
  add_cmdline(exec, task);
  record->cmdline = exec->used - names;
  u64 size = sizeof(*record) + exec->used;
  if (size > sizeof(*record) + sizeof(exec->text) || bpf_ringbuf_output(MAP_PROCESSES, record, size, 0))
    count(COUNTER_PROCESS_RING_FULL, 1);
  return 0;
}

/* sched_process_exit(struct task_struct *), once for each thread. */
int process_exit(struct bpf_raw_tracepoint_args *ctx) {
  u64 id = bpf_get_current_pid_tgid();
  u64 task = bpf_get_current_task();
  /* signal->live has been decremented already: 0 means that this was the last thread */
  if (read_u32(read_u64(task, OFF_task_signal), OFF_signal_live))
    return 0;
  connections_end(id >> 32);
  return 0;
}
