"""Byte offsets and type ids from the running kernel's BTF, by libbpf through ctypes.

Takes the path of the BTF (normally /sys/kernel/btf/vmlinux); returns numbers. Anonymous structs and
unions are walked, as the compiler would. Runs in the compile child only: libbpf is already loaded there
(BCC depends on it), and the 7 MB that it needs go away with the child. Source: Documentation/bpf/btf.rst.
"""

from __future__ import annotations

import ctypes
import os

# name used in the eBPF programs (OFF_name) -> (struct, member, its names in other kernels...)
OFFSETS: dict[str, tuple[str, ...]] = {
    "task_tgid": ("task_struct", "tgid"),
    "task_group_leader": ("task_struct", "group_leader"),
    "task_real_parent": ("task_struct", "real_parent"),
    "task_start_boottime": ("task_struct", "start_boottime"),
    "task_self_exec_id": ("task_struct", "self_exec_id"),
    "task_comm": ("task_struct", "comm"),
    "task_files": ("task_struct", "files"),
    "task_signal": ("task_struct", "signal"),
    "signal_live": ("signal_struct", "live"),
    "files_fdt": ("files_struct", "fdt"),
    "fdt_fd": ("fdtable", "fd"),
    "fdt_max_fds": ("fdtable", "max_fds"),
    "file_private_data": ("file", "private_data"),
    "file_inode": ("file", "f_inode"),
    "inode_mode": ("inode", "i_mode"),
    "inode_ino": ("inode", "i_ino"),
    "inode_generation": ("inode", "i_generation"),
    "inode_sb": ("inode", "i_sb"),
    "sb_dev": ("super_block", "s_dev"),
    "mapping_host": ("address_space", "host"),
    "vma_flags": ("vm_area_struct", "vm_flags"),
    "vma_file": ("vm_area_struct", "vm_file"),
    "socket_sk": ("socket", "sk"),
    "sk_family": ("sock_common", "skc_family"),
    "sk_num": ("sock_common", "skc_num"),
    "sk_dport": ("sock_common", "skc_dport"),
    "sk_daddr": ("sock_common", "skc_daddr"),
    "sk_rcv_saddr": ("sock_common", "skc_rcv_saddr"),
    "sk_v6_daddr": ("sock_common", "skc_v6_daddr"),
    "sk_v6_rcv_saddr": ("sock_common", "skc_v6_rcv_saddr"),
    "sk_cookie": ("sock_common", "skc_cookie"),
    "sk_net": ("sock_common", "skc_net"),
    "sk_protocol": ("sock", "sk_protocol"),
    "net_cookie": ("net", "net_cookie"),
    "sk_state": ("sock_common", "skc_state"),
    "sk_uid": ("sock", "sk_uid"),
    "sk_cgroup": ("sock", "sk_cgrp_data"),  # its first member is the pointer
    "icsk_ulp_ops": ("inet_connection_sock", "icsk_ulp_ops"),
    "ulp_name": ("tcp_ulp_ops", "name"),
    "tcp_bytes_acked": ("tcp_sock", "bytes_acked"),
    "tcp_bytes_received": ("tcp_sock", "bytes_received"),
    "task_cgroups": ("task_struct", "cgroups"),
    "css_set_dfl_cgrp": ("css_set", "dfl_cgrp"),
    "cgroup_level": ("cgroup", "level"),
    "cgroup_ancestors": ("cgroup", "ancestors"),
    "cgroup_kn": ("cgroup", "kn"),
    "kn_id": ("kernfs_node", "id"),
    "task_cred": ("task_struct", "cred"),
    "cred_uid": ("cred", "uid"),
    "cred_euid": ("cred", "euid"),
    "kn_name": ("kernfs_node", "name"),
    "kn_parent": ("kernfs_node", "__parent", "parent"),  # renamed in 6.15
    "task_mm": ("task_struct", "mm"),
    "task_fs": ("task_struct", "fs"),
    "mm_exe_file": ("mm_struct", "exe_file"),
    "mm_arg_start": ("mm_struct", "arg_start"),
    "mm_arg_end": ("mm_struct", "arg_end"),
    "fs_root": ("fs_struct", "root"),
    "file_path": ("file", "f_path"),
    "path_mnt": ("path", "mnt"),
    "path_dentry": ("path", "dentry"),
    "dentry_parent": ("dentry", "d_parent"),
    "vfsmount_root": ("vfsmount", "mnt_root"),
    "mount_mnt": ("mount", "mnt"),
    "mount_parent": ("mount", "mnt_parent"),
    "mount_mountpoint": ("mount", "mnt_mountpoint"),
}

_KIND_STRUCT, _KIND_UNION = 4, 5
_KIND_MODIFIERS = (8, 9, 10, 11, 18)  # typedef, volatile, const, restrict, type_tag


class _Member(ctypes.Structure):
    _fields_ = [
        ("name_off", ctypes.c_uint32),
        ("type", ctypes.c_uint32),
        ("offset", ctypes.c_uint32),
    ]


class _Type(ctypes.Structure):
    _fields_ = [
        ("name_off", ctypes.c_uint32),
        ("info", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
    ]


class Btf:
    """One loaded BTF; ``offset`` raises LookupError for what this kernel does not have."""

    def __init__(self, path: str) -> None:
        lib = ctypes.CDLL("libbpf.so.1")
        lib.btf__parse.restype = ctypes.c_void_p
        lib.btf__parse.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
        lib.btf__find_by_name_kind.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32]
        lib.btf__find_by_name_kind.restype = ctypes.c_int32
        lib.btf__type_by_id.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        lib.btf__type_by_id.restype = ctypes.c_void_p
        lib.btf__name_by_offset.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        lib.btf__name_by_offset.restype = ctypes.c_char_p
        self._lib = lib
        self._btf = lib.btf__parse(path.encode(), None)
        if not self._btf or self._btf > (1 << 64) - 4096:
            raise LookupError(f"{path}: no readable BTF")

    def type_id(self, name: str, kind: int) -> int:
        """Id of a named type; LookupError when there is none."""
        found: int = self._lib.btf__find_by_name_kind(self._btf, name.encode(), kind)
        if found < 0:
            raise LookupError(f"kernel BTF has no type {name}")
        return found

    def tracepoint_id(self, name: str) -> int:
        """Id that a typed raw tracepoint program is loaded with (its btf_trace_ typedef)."""
        return self.type_id(f"btf_trace_{name}", 8)

    def iterator_id(self, name: str) -> int:
        """Id that an iterator program is loaded with (the kernel's bpf_iter_ function)."""
        return self.type_id(f"bpf_iter_{name}", 12)

    def function_id(self, name: str) -> int:
        """Id that a program at the entry or exit of a kernel function is loaded with."""
        return self.type_id(name, 12)

    def offset(self, struct_name: str, *members: str) -> int:
        """Byte offset in ``struct_name`` of the first of ``members`` that it has."""
        struct = self.type_id(struct_name, _KIND_STRUCT)
        for member in members:
            bits = self._bits(struct, member.encode())
            if bits is not None and bits % 8 == 0:
                return bits // 8
        raise LookupError(f"kernel BTF has no {struct_name}.{members[0]}")

    def _bits(self, type_id: int, member: bytes) -> int | None:
        address = self._lib.btf__type_by_id(self._btf, type_id)
        kind_type = _Type.from_address(address)
        kind = (kind_type.info >> 24) & 0x1F
        if kind in _KIND_MODIFIERS:
            return self._bits(kind_type.size, member)  # for these, `size` is the type referred to
        if kind not in (_KIND_STRUCT, _KIND_UNION):
            return None
        # kind_flag: the offset carries a bit-field size in its upper byte
        mask = 0xFFFFFF if kind_type.info >> 31 else 0xFFFFFFFF
        members = (_Member * (kind_type.info & 0xFFFF)).from_address(address + ctypes.sizeof(_Type))
        for entry in members:
            name = self._lib.btf__name_by_offset(self._btf, entry.name_off)
            if name == member:
                return int(entry.offset) & mask
            if not name:
                inner = self._bits(entry.type, member)
                if inner is not None:
                    return (int(entry.offset) & mask) + inner
        return None


def all_offsets(btf: Btf) -> dict[str, int]:
    """Every offset that the programs use."""
    offsets = {name: btf.offset(*where) for name, where in OFFSETS.items()}
    offsets["dentry_name"] = btf.offset("dentry", "d_name") + btf.offset("qstr", "name")
    if os.uname().machine == "x86_64":
        # Where a thread's own memory begins: Go programs before 1.17 keep the goroutine there.
        offsets["task_fsbase"] = btf.offset("task_struct", "thread") + btf.offset("thread_struct", "fsbase")
    return offsets
