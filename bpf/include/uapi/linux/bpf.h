/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Empty on purpose: BCC brings its own bpf.h, and its helpers include this file by name. */
