"""QEMU's monitor (QMP) from inside the machine, over a virtio-serial port: network cards come and go."""

from __future__ import annotations

import json
import os
import select
import time
from pathlib import Path
from typing import Any

PORT = "/dev/virtio-ports/qmp"
HUB = 7
"""Network cards on one hub of QEMU's are on one wire."""


class Monitor:
    """One conversation with the monitor; it takes one at a time."""

    def __init__(self) -> None:
        self._fd = os.open(PORT, os.O_RDWR | os.O_NONBLOCK)
        self._buffer = b""
        self._events: list[dict[str, Any]] = []
        self("qmp_capabilities")

    def close(self) -> None:
        """Closes the port."""
        os.close(self._fd)

    def __call__(self, command: str, **arguments: Any) -> Any:
        """Executes a command, returns its answer."""
        os.write(self._fd, json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            told = self._line(20)
            if "error" in told:
                raise RuntimeError(f"{command}: {told['error'].get('desc')}")
            if "return" in told:
                return told["return"]
            self._events.append(told)

    def wait(self, event: str, device: str) -> None:
        """Until the event of a device has come; QEMU sends some twice, once without the device's name."""
        while True:
            for told in self._events:
                if told.get("event") == event and told["data"].get("device") == device:
                    self._events.clear()
                    return
            self._events.append(self._line(30))

    def _line(self, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            if not select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError("QEMU's monitor does not answer")
            self._buffer += os.read(self._fd, 65536)
        line, self._buffer = self._buffer.split(b"\n", 1)
        return dict(json.loads(line))

    def plug(self, name: str, driver: str, slot: str, address: str) -> None:
        """Puts a network card with this MAC address into a slot, its cable into the hub."""
        self("netdev_add", type="hubport", hubid=HUB, id=f"wire-{name}")
        self("device_add", driver=driver, netdev=f"wire-{name}", id=name, bus=slot, mac=address)

    def unplug(self, name: str) -> None:
        """Takes it out again, as an operator would: the guest is asked to let go first."""
        self("device_del", id=name)
        self.wait("DEVICE_DELETED", name)
        self("netdev_del", id=f"wire-{name}")


def interface(address: str) -> str:
    """Name of the interface with a MAC address, "" when there is none."""
    for path in Path("/sys/class/net").iterdir():
        try:
            if (path / "address").read_text().strip() == address:
                return path.name
        except OSError:
            continue
    return ""
