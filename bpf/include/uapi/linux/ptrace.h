/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Registers at a probe, in the kernel's layout (arch/x86/include/asm/ptrace.h, arm64 user_pt_regs). */
#pragma once
#if defined(__x86_64__) || defined(__TARGET_ARCH_x86)
struct pt_regs {
  unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};
#else
struct pt_regs {
  unsigned long regs[31], sp, pc, pstate;
};
#endif
