/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What all programs share: counters, scope, reading kernel structures by BTF offsets, the ring.
 *
 * OFF_* are byte offsets from the running kernel's BTF, given by the compiler's command line; kernel
 * structures are never declared here, because a declaration from another kernel reads the wrong bytes.
 */
#pragma once

#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6
#define RING_NO_WAKEUP 1
#define RING_FORCE_WAKEUP 2
#define RING_AVAILABLE 0 /* BPF_RB_AVAIL_DATA: bytes that are not read yet */

/* Each processor has its own: on a busy network the same word would otherwise travel between them. */
static __always_inline void count(u32 counter, u64 amount) {
  u32 slot = bpf_get_smp_processor_id() * COUNTER_SLOTS + counter;
  u64 *value = bpf_map_lookup_elem(MAP_COUNTERS, &slot);
  if (value)
    __sync_fetch_and_add(value, amount);
}

/* Helper 113 by its number: BCC turns the name into bpf_probe_read, which network programs may not call. */
static long (*read_kernel)(void *to, u32 size, const void *from) = (void *)113;

static long (*function_returned)(void *ctx, u64 *value) = (void *)184; /* bpf_get_func_ret, 5.17 */

/* What belongs to a thread hangs on its task (5.11): found without a hash, gone with the thread. By numbers, because
 * BCC's older list of helpers knows them by no names. */
#define TASK_STORAGE_CREATE 1
static void *(*task_storage_get)(void *map, void *task, void *value, u64 flags) = (void *)156;
static long (*task_storage_delete)(void *map, void *task) = (void *)157;
static void *(*current_task)(void) = (void *)158;

#define KFUNC_SESSION_IS_RETURN 9001 /* no helper has that number: loader.py replaces it */

static __always_inline u64 read_u64(u64 base, u32 offset) {
  u64 value = 0;
  read_kernel(&value, sizeof(value), (void *)(base + offset));
  return value;
}

static __always_inline u32 read_u32(u64 base, u32 offset) {
  u32 value = 0;
  read_kernel(&value, sizeof(value), (void *)(base + offset));
  return value;
}

static __always_inline u16 read_u16(u64 base, u32 offset) {
  u16 value = 0;
  read_kernel(&value, sizeof(value), (void *)(base + offset));
  return value;
}

static __always_inline bool user_in_scope(struct settings *settings, u32 uid) {
  if (!(settings->uids | settings->excluded_uids))
    return true;
  u8 *listed = bpf_map_lookup_elem(MAP_UIDS, &uid);
  return listed ? *listed != 2 : !settings->uids;
}

/* Whether the current process may be looked at; called before anything of it is read. */
static __always_inline bool in_scope(struct settings *settings) {
  if (settings->cgroups) {
    bool inside = false;
    for (u32 i = 0; i < SCOPE_SLOTS; i++) {
      if (i >= settings->cgroups)
        break;
      if (bpf_current_task_under_cgroup(MAP_SCOPE, i) == 1) {
        inside = true;
        break;
      }
    }
    if (!inside)
      return false;
  }
  if (settings->excluded_cgroups) {
    for (u32 i = 0; i < SCOPE_SLOTS; i++) {
      if (i >= settings->excluded_cgroups)
        break;
      if (bpf_current_task_under_cgroup(MAP_SCOPE, SCOPE_SLOTS + i) == 1)
        return false;
    }
  }
  if (!(settings->uids | settings->excluded_uids))
    return true; /* asking the kernel for a user costs more than all of the above */
  return user_in_scope(settings, bpf_get_current_uid_gid());
}

/* The settings when capture is on and the current process is in scope; NULL otherwise. */
static __always_inline struct settings *admitted(void) {
  u32 zero = 0;
  struct settings *settings = bpf_map_lookup_elem(MAP_SETTINGS, &zero);
  if (!settings || !settings->enabled)
    return NULL;
  if (!in_scope(settings)) {
    count(COUNTER_OUT_OF_SCOPE, 1);
    return NULL;
  }
  return settings;
}

/* How a record is submitted: a wake-up is asked for only when the worker sleeps, or when it rests for long and so
 * many bytes as it said wait. The reservation came before this read and the worker arms before it looks at the ring
 * again, so one side always sees the other. */
static __always_inline u64 wakeup(void *ring, u32 shard) {
  u32 *armed = bpf_map_lookup_elem(MAP_ARMED, &shard);
  u32 least = armed ? *(volatile u32 *)armed : 0;
  if (!armed || !least || (least > 1 && bpf_ringbuf_query(ring, RING_AVAILABLE) < least))
    return RING_NO_WAKEUP;
  *(volatile u32 *)armed = 0;
  return RING_FORCE_WAKEUP;
}
