/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Files that a process in scope maps as code and that nobody has mapped before: a library that it loads late.
 *
 * Probes sit in files, for all who map them, so each file is told once. `known_files` remembers by device, inode and
 * generation (a number that is used again has another generation); what is known costs one look-up.
 */

struct file_key {
  u64 inode;
  u32 device;
  u32 generation;
};

static __always_inline void first_mapped(u64 inode) {
  struct file_key key = {};
  key.inode = read_u64(inode, OFF_inode_ino);
  key.device = read_u32(read_u64(inode, OFF_inode_sb), OFF_sb_dev);
  key.generation = read_u32(inode, OFF_inode_generation);
  if (bpf_map_lookup_elem(MAP_KNOWN_FILES, &key))
    return;
  u16 mode = read_u16(inode, OFF_inode_mode);
  if ((mode & 0170000) != 0100000) /* S_ISREG */
    return;
  u32 zero = 0;
  struct settings *settings = bpf_map_lookup_elem(MAP_SETTINGS, &zero);
  if (!settings || !in_scope(settings))
    return; /* somebody who is in scope may map it later */
  u64 task = bpf_get_current_task();
  u64 leader = read_u64(task, OFF_task_group_leader);
  struct mapped_record *record = bpf_ringbuf_reserve(MAP_PROCESSES, sizeof(*record), 0);
  if (!record) {
    count(COUNTER_PROCESS_RING_FULL, 1);
    return;
  }
  __builtin_memset(record, 0, sizeof(*record));
  record->process.tgid = bpf_get_current_pid_tgid() >> 32;
  record->process.start_ns = read_u64(leader, OFF_task_start_boottime);
  record->process.time = bpf_ktime_get_ns();
  record->process.flags = PROCESS_MAPPED;
  record->device = key.device;
  record->inode = key.inode;
  bpf_ringbuf_submit(record, 0);
  u8 known = 1;
  bpf_map_update_elem(MAP_KNOWN_FILES, &key, &known, 0);
}

/* perf_event_mmap(struct vm_area_struct *): called for every new mapping of every process (mm/vma.c), with or without
 * perf events. Only code: a library's text segment. */
static __always_inline void mapping_made(u64 vma) {
  if (!(read_u64(vma, OFF_vma_flags) & 4 /* VM_EXEC */))
    return;
  u64 file = read_u64(vma, OFF_vma_file);
  if (file)
    first_mapped(read_u64(file, OFF_file_inode));
}

int mapping_made_fentry(u64 *ctx) {
  mapping_made(ctx[0]);
  return 0;
}

int mapping_made_kprobe(struct pt_regs *ctx) {
  mapping_made(PT_REGS_PARM1(ctx));
  return 0;
}

static __always_inline int page_used(u64 mapping) {
  u64 inode = read_u64(mapping, OFF_mapping_host);
  if (inode)
    first_mapped(inode);
  return 0;
}

/* Where functions cannot be hooked: pages of a mapped file are entered into a process's tables, and the loader
 * touches each library at once. It is not said what for, so data files are told as well, each once. Both are of 6.14:
 * mm_filemap_map_pages(struct address_space *, first, last), for pages that are at hand, */
int pages_mapped(u64 *ctx) { return page_used(ctx[0]); }

/* and mm_filemap_fault(struct address_space *, index), for one that is not, or is being written to the disk. */
int page_faulted(u64 *ctx) { return page_used(ctx[0]); }
