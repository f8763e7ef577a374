"""Runs a virtual machine under QEMU's software emulation: parks one, restores it in 2 s, runs a command in it.

Takes the files of an image and a shell command; returns the command's exit status. The command runs as root under
the guest's systemd, after multi-user.target, with folders of the host: ``/src`` (the checkout) and ``/venv`` (its
virtual environment), read-only, and ``/vm`` (the run's own). Nothing of a run is kept but what it writes to ``/vm``, unless ``disk`` is given.

One processor, always: with two, QEMU's emulation runs them in threads of their own and is not safe against the
kernel patching its text (static keys, kprobes), which is what eBPF does all the time ("Oops: int3" within a
minute, 5 times of 6). Neither needs nor uses KVM: whether a machine has it must not decide what is tested.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEGABYTES = 2048
"""LLVM compiles spliff's programs in 400 MB; the rest is for servers, clients and the page cache."""

BOOT_SECONDS = 400
"""Longest first boot: 16 s on an idle machine."""

TIMED_OUT, NO_STATUS = 124, 125
"""What ``run`` returns when the machine was ended, or ended itself without a word (a kernel panic)."""

STARTED = b"VM-STARTED"
"""What the guest says when it has its shares and begins with the command (guest/usr/lib/vm/run)."""

DEVICES = (
    *("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-smp", "1", "-m", str(MEGABYTES)),
    # Two free PCI Express slots, for network cards that come and go.
    *("-M", "q35", "-device", "pcie-root-port,id=rp1,chassis=1,slot=1"),
    *("-device", "pcie-root-port,id=rp2,chassis=2,slot=2"),
    *("-nodefaults", "-display", "none", "-no-reboot", "-device", "virtio-rng-pci"),
)
"""The same for the machine that is parked and those restored from it."""

KERNEL_LINE = (
    "console=ttyS0 panic=-1 quiet loglevel=4 mitigations=off nokaslr audit=0 rcupdate.rcu_expedited=1 "
    "systemd.unit=vm.target"
)


def save_state(vmlinux: Path, initrd: Path, base: Path, disk: Path, state: Path) -> None:
    """Boots, waits until the guest is parked, and saves its memory: what it wrote is in ``disk``."""
    disk.unlink(missing_ok=True)
    _overlay(base, "raw", disk)
    unfinished = state.with_suffix(".unfinished")
    with tempfile.TemporaryDirectory(prefix="spliff-vm-") as folder:
        share = Path(folder)
        console = share / "console.log"
        command = _command(vmlinux, initrd, disk, share, share, "vm.park", temporary=False)
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as qemu:
            try:
                _wait(
                    qemu,
                    lambda: console.exists() and "VM-PARKED" in console.read_text(errors="replace"),
                    console,
                )
                time.sleep(2)  # what the console has said is not yet what systemd has finished
                monitor = Monitor(share / "monitor")
                # A guest that is stopped first would be stopped after each restore.
                monitor("migrate-set-parameters", **{"max-bandwidth": 10**10})
                monitor("migrate", uri=f"exec:cat > {shlex.quote(str(unfinished))}")
                while (status := monitor("query-migrate").get("status")) not in ("completed", "failed"):
                    time.sleep(0.1)
                if status == "failed":
                    raise RuntimeError("QEMU could not save the machine's state")
                monitor("quit")
                qemu.wait(20)
            finally:
                qemu.kill()
    unfinished.rename(state)


def run(
    command: str,
    *,
    vmlinux: Path,
    initrd: Path,
    disk: Path,
    share: Path,
    source: Path,
    state: Path | None,
    seconds: float,
    tell: Callable[[str], None],
    devices: tuple[str, ...] = (),
) -> int:
    """Runs ``command`` in the machine and returns its status; each line that it prints is given to ``tell``.

    ``started`` in ``share`` tells the guest how many seconds there were from QEMU's start to the command's.

    ``disk`` is written to: make it an ``overlay``. Without ``state`` the machine boots from it.
    """
    share.mkdir(parents=True, exist_ok=True)
    for name in ("status", "monitor", "started"):
        (share / name).unlink(missing_ok=True)
    (share / "command").write_text(command + "\n")
    more = list(devices)
    if state is not None:
        for name in ("go.in", "go.out"):
            (share / name).unlink(missing_ok=True)
            os.mkfifo(share / name)
        more += ["-incoming", f"exec:cat {shlex.quote(str(state))}"]
    line = "vm.park" if state is not None else ""
    go = f"pipe,path={share}/go" if state is not None else "null"
    begun = time.monotonic()
    # Its own session: a Ctrl-C is for us, and we end it. It does not outlive us, however we end.
    qemu = subprocess.Popen(
        ["setpriv", "--pdeathsig", "TERM", "timeout", "-k", "5", str(int(seconds)),
         *_command(vmlinux, initrd, disk, share, source, line, temporary=False, go=go), *more],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        if state is not None:
            with open(os.open(share / "go.in", os.O_RDWR), "w") as port:
                port.write(f"go {int(time.time())}\n")
                port.flush()
                _read(qemu, share, begun, tell)
        else:
            _read(qemu, share, begun, tell)
    finally:
        if qemu.poll() is None:
            qemu.terminate()  # timeout(1) passes it on
    ended = qemu.wait()
    if (share / "status").exists():
        return int((share / "status").read_text())
    tell((share / "console.log").read_text(errors="replace")[-2000:])
    return TIMED_OUT if ended in (124, 137) else NO_STATUS


def overlay(below: Path, disk: Path) -> Path:
    """A disk that takes what is written to ``below``; returns it."""
    disk.unlink(missing_ok=True)
    _overlay(below, "qcow2", disk)
    return disk


def _overlay(below: Path, kind: str, disk: Path) -> None:
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", below.resolve(), "-F", kind, disk], check=True
    )


def _read(qemu: subprocess.Popen[bytes], share: Path, begun: float, tell: Callable[[str], None]) -> None:
    assert qemu.stdout is not None
    with qemu.stdout as out:
        for line in out:
            if line.strip() == STARTED:
                (share / "started").write_text(f"{time.monotonic() - begun:.1f}")
            else:
                tell(line.decode(errors="replace").rstrip())


def _wait(qemu: subprocess.Popen[bytes], condition: Callable[[], bool], console: Path) -> None:
    deadline = time.monotonic() + BOOT_SECONDS
    while not condition():
        if qemu.poll() is not None or time.monotonic() > deadline:
            said = console.read_text(errors="replace")[-2000:] if console.exists() else ""
            raise RuntimeError(f"the guest did not boot within {BOOT_SECONDS} s:\n{said}")
        time.sleep(0.2)


def _command(
    vmlinux: Path,
    initrd: Path,
    disk: Path,
    share: Path,
    source: Path,
    line: str,
    *,
    temporary: bool,
    go: str = "null",
) -> list[str]:
    def shared(folder: Path, tag: str, more: str = "") -> list[str]:
        return ["-virtfs", f"local,path={folder},mount_tag={tag},security_model=none,multidevs=remap{more}"]

    # Wherever it lies: the guest could not follow a link that leads out of its share.
    venv = (source / ".venv").resolve() if (source / ".venv").exists() else source

    def port(name: str, backend: str) -> list[str]:
        return ["-chardev", f"{backend},id={name}", "-device", f"virtserialport,chardev={name},name={name}"]

    return [
        "qemu-system-x86_64", *DEVICES, "-kernel", str(vmlinux), "-initrd", str(initrd),
        "-append", f"{KERNEL_LINE} {line}",
        "-drive", f"if=none,id=hd,file={disk},format=qcow2,cache=unsafe{',snapshot=on' if temporary else ''}",
        "-device", "virtio-blk-pci,drive=hd",
        *shared(share, "vm"), *shared(source, "src", ",readonly=on"), *shared(venv, "venv", ",readonly=on"),
        "-serial", f"file:{share}/console.log", "-device", "virtio-serial-pci",
        # Not stdio: its end of file closes the port, and the guest blocks.
        *port("out", "file,path=/dev/stdout,append=on"), *port("go", go),
        "-chardev", f"socket,id=control,path={share}/monitor,server=on,wait=off",
        "-mon", "chardev=control,mode=control",
        # QEMU's own monitor as a port of the guest: tests inside plug devices. While parking it is ours.
        *port("qmp", "null" if line == "vm.park" and go == "null" else f"socket,path={share}/monitor,reconnect=1"),
    ]  # fmt: skip


class Monitor:
    """QEMU's monitor (QMP) by its socket, one client at a time."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rw")
        self._file.readline()  # its greeting
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Executes a command, returns its answer; events meanwhile are passed over."""
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        while True:
            told = json.loads(self._file.readline())
            if "error" in told:
                raise RuntimeError(f"{command}: {told['error'].get('desc')}")
            if "return" in told:
                return dict(told["return"])
