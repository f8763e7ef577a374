/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* BCC's helpers.h refuses to compile without it. */
#define CONFIG_BPF_SYSCALL 1
