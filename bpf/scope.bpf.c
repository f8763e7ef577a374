/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Whether a socket or a task that is not the current one is in scope: by its cgroup and those above it, and its user.
 *
 * in_scope() in common.bpf.h asks the same of the current process, where helpers know it.
 */

/* Deeper cgroups than this are judged by their ancestors down to here; systemd nests about six. */
#define CGROUP_LEVELS 16

/* The lists that a cgroup or one above it is on. */
static __always_inline u32 cgroup_lists(u64 cgroup) {
  u32 depth = read_u32(cgroup, OFF_cgroup_level);
  u32 lists = 0;
  for (u32 level = 0; level < CGROUP_LEVELS; level++) {
    /* or LLVM counts both conditions down in one variable, whose bound kernel 6.1 does not see */
    asm volatile("" : "+r"(depth));
    if (level > depth)
      break;
    u64 ancestor = read_u64(cgroup, OFF_cgroup_ancestors + level * 8);
    u64 id = read_u64(read_u64(ancestor, OFF_cgroup_kn), OFF_kn_id);
    u8 *listed = bpf_map_lookup_elem(MAP_CGROUPS, &id);
    if (listed)
      lists |= *listed;
  }
  return lists;
}

/* The same question as in_scope() for a cgroup and a user instead of the current process. */
static __always_inline bool owner_in_scope(struct settings *settings, u64 cgroup, u32 uid) {
  if (settings->cgroups | settings->excluded_cgroups) {
    u32 lists = cgroup_lists(cgroup);
    if (lists & CGROUP_EXCLUDED || (settings->cgroups && !(lists & CGROUP_IN_SCOPE)))
      return false;
  }
  return user_in_scope(settings, uid);
}

/* A socket belongs to the cgroup and the user that made it, or that made the listener it came from. */
static __always_inline bool socket_in_scope(struct settings *settings, u64 sk) {
  if (!(settings->cgroups | settings->excluded_cgroups | settings->uids | settings->excluded_uids))
    return true;
  return owner_in_scope(settings, read_u64(sk, OFF_sk_cgroup), read_u32(sk, OFF_sk_uid));
}

static __always_inline bool task_in_scope(struct settings *settings, u64 task) {
  u64 cgroup = read_u64(read_u64(task, OFF_task_cgroups), OFF_css_set_dfl_cgrp);
  return owner_in_scope(settings, cgroup, read_u32(read_u64(task, OFF_task_cred), OFF_cred_uid));
}
