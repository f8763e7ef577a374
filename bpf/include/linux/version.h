/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Only BCC's helpers.h looks at it; our programs never depend on a version number. */
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(6, 1, 0)
