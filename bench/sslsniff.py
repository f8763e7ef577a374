"""What sslsniff does, in little: the yardstick for "with another tool".

The same probes as Debian's sslsniff-bpfcc (SSL_read, SSL_write and SSL_do_handshake at function entry
and return), the same way out of the kernel (a perf buffer, one event a call, up to 8 KiB of data) and
the same way to the screen (BCC's callback, one printed block an event). Attached to one library file
only. Started as root with the path of that file; prints what it saw when told to end.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from spliffd.kernel.compile import source_folder

PROGRAM = """
#include <uapi/linux/ptrace.h>
struct event { u64 time, took; u32 pid, tid; s32 size, op; char comm[16]; u8 data[8192]; };
struct call { u64 buffer, began; };
BPF_HASH(calls, u64, struct call);
BPF_PERCPU_ARRAY(scratch, struct event, 1);
BPF_PERF_OUTPUT(events);

int enter(struct pt_regs *ctx, void *ssl, u64 buffer) {
  u64 id = bpf_get_current_pid_tgid();
  struct call call = {.buffer = buffer, .began = bpf_ktime_get_ns()};
  calls.update(&id, &call);
  return 0;
}
static int leave(struct pt_regs *ctx, int op) {
  u64 id = bpf_get_current_pid_tgid();
  int zero = 0, size = PT_REGS_RC(ctx);
  u64 copied = size;
  struct call *call = calls.lookup(&id);
  struct event *event = scratch.lookup(&zero);
  if (!call || !event || size <= 0)
    return 0;
  if (op == 2)
    copied = 0;
  asm volatile("" : "+r"(copied)); /* one copy of the length, or the verifier loses its bound */
  if (copied > 8192)
    copied = 8192;
  event->time = bpf_ktime_get_ns();
  event->took = event->time - call->began;
  event->pid = id >> 32;
  event->tid = id;
  event->size = size;
  event->op = op;
  bpf_get_current_comm(event->comm, sizeof(event->comm));
  bpf_probe_read_user(event->data, copied, (void *)call->buffer);
  calls.delete(&id);
  events.perf_submit(ctx, event, sizeof(*event) - 8192 + copied);
  return 0;
}
int leave_read(struct pt_regs *ctx) { return leave(ctx, 0); }
int leave_write(struct pt_regs *ctx) { return leave(ctx, 1); }
int leave_handshake(struct pt_regs *ctx) { return leave(ctx, 2); }
"""

NAMES = ("READ/RECV", "WRITE/SEND", "HANDSHAKE")


class Event(ctypes.Structure):
    """As in the program above."""

    _fields_ = (
        ("time", ctypes.c_uint64), ("took", ctypes.c_uint64),
        ("pid", ctypes.c_uint32), ("tid", ctypes.c_uint32),
        ("size", ctypes.c_int32), ("op", ctypes.c_int32), ("comm", ctypes.c_char * 16),
        ("data", ctypes.c_uint8 * 8192),
    )  # fmt: skip


def main() -> None:
    """Attaches, prints, counts."""
    import bcc

    os.environ["BCC_KERNEL_SOURCE"] = str(source_folder())
    # BCC 0.26 passes six of seven arguments; the missing one becomes a garbage reference counter.
    attach = bcc.lib.bpf_attach_uprobe
    attach.argtypes = [
        ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p,
        ctypes.c_ulonglong, ctypes.c_int, ctypes.c_uint32,
    ]  # fmt: skip
    bcc.lib.__dict__["bpf_attach_uprobe"] = lambda *arguments: attach(*arguments, 0)
    bpf = bcc.BPF(text=PROGRAM)
    places = [
        ("SSL_read", "leave_read"),
        ("SSL_write", "leave_write"),
        ("SSL_do_handshake", "leave_handshake"),
    ]
    if len(sys.argv) > 2:  # another library's
        places = [(sys.argv[2], "leave_read"), (sys.argv[3], "leave_write")]
    for symbol, leaving in places:
        bpf.attach_uprobe(name=sys.argv[1], sym=symbol, fn_name="enter")
        bpf.attach_uretprobe(name=sys.argv[1], sym=symbol, fn_name=leaving)
    seen = lost = 0
    out = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open for as long as the process lives

    def show(_cpu: int, data: int, _size: int) -> None:
        nonlocal seen
        seen += 1
        event = ctypes.cast(data, ctypes.POINTER(Event)).contents
        text = bytes(event.data[: min(event.size, 8192)] if event.op != 2 else b"")
        comm = event.comm.decode(errors="replace")
        print(
            f"{NAMES[event.op]:<12} {event.time / 1e9:18.9f} {comm:<16} {event.pid:<7} {event.size:<6}\n"
            f"----- DATA -----\n{text.decode('utf-8', 'replace')}\n----- END DATA -----",
            file=out,
        )

    def lose(count: int) -> None:
        nonlocal lost
        lost += count

    bpf["events"].open_perf_buffer(show, lost_cb=lose)
    running = True

    def end(*_: object) -> None:
        nonlocal running
        running = False

    signal.signal(signal.SIGTERM, end)
    print("ready", flush=True)
    while running:
        bpf.perf_buffer_poll(200)
    print(seen, lost, flush=True)
    os._exit(0)  # BCC's atexit wants tracefs to detach; the kernel detaches with the fds


if __name__ == "__main__":
    main()
