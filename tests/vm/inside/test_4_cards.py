"""Network cards that are plugged and pulled while the daemon runs: virtio-net takes native XDP, e1000e does not."""

import json
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.vm.inside import qmp
from tests.vm.inside.guest import (
    PYTHON,
    WHOLE,
    Watch,
    fetch,
    figure,
    namespace,
    now,
    on_wire,
    run,
    serve,
    trouble,
    wait_for,
)

CARDS = {
    "virtio-net-pci": ("XDP", "native", "hardware"),
    "e1000e": ("TC", "", "XDP: Operation not supported"),
}
"""What is taken for each, and why: native XDP is tried on both, and e1000e's driver refuses it."""
FOLLOWED_SECONDS = 1.0
ROUNDS, MOST_ROUNDS = 2 if WHOLE else 1, 6
PEER, PEER_ADDRESS = "52:54:00:00:00:02", "10.80.0.2"

# Polls the interface list and tells each change: spliffctl would take longer to start than what is measured.
FOLLOW = """
import time, grpc
from spliffd.pb import spliff_pb2 as pb, spliff_pb2_grpc
stub = spliff_pb2_grpc.SpliffStub(grpc.insecure_channel("unix:/run/spliff/spliffd.sock"))
import json
known = None
while True:
    listed = {one.name: (one.hook, one.mode, one.reason) for one in stub.ListInterfaces(pb.ListInterfacesRequest()).interfaces}
    if listed != known:
        known = listed
        print(json.dumps([time.time(), listed]), flush=True)
    time.sleep(0.1)
"""


class Follower:
    """The daemon's interfaces over time."""

    def __init__(self):
        self._process = subprocess.Popen([PYTHON, "-I", "-c", FOLLOW], stdout=subprocess.PIPE)
        self.told = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        wait_for(lambda: self.told, 60, "a list of interfaces")

    def _read(self):
        with self._process.stdout as out:
            for line in out:
                self.told.append(json.loads(line))

    def hooked(self, name, mark, seconds=60):
        """When ``name`` had a hook, and which; ``mark``: how much had been told before it was plugged."""

        def found():
            return [
                (at, listed[name])
                for at, listed in self.told[mark:]
                if listed.get(name, ("NONE",))[0] != "NONE"
            ]

        wait_for(found, seconds, f"a hook on {name}; {self.told[-1]}")
        return found()[0]

    def gone(self, name):
        wait_for(lambda: name not in self.told[-1][1], 60, f"{name} gone from the list")
        return self.told[-1][0]

    def stop(self):
        self._process.kill()
        self._process.wait()
        self._thread.join()


@pytest.fixture(scope="module")
def wire():
    """QEMU's monitor; a second card on the same wire, in a namespace of its own, with a server."""
    monitor = qmp.Monitor()
    monitor.plug("peer", "virtio-net-pci", "rp2", PEER)
    wait_for(lambda: qmp.interface(PEER) not in ("", "eth0"), 60, "the peer's card, renamed")
    enter = namespace("wire")
    run("ip", "link", "set", qmp.interface(PEER), "netns", "wire", "name", "far0")
    run("ip", "-n", "wire", "addr", "add", f"{PEER_ADDRESS}/24", "dev", "far0")
    run("ip", "-n", "wire", "link", "set", "far0", "up")
    server = serve("wire", *enter)
    yield monitor
    server.kill()
    server.wait()
    run("ip", "netns", "del", "wire")
    wait_for(lambda: qmp.interface(PEER), 60, "the peer's card back")
    monitor.unplug("peer")
    monitor.close()


@pytest.fixture(scope="module")
def follower():
    made = Follower()
    yield made
    made.stop()


def index_of(name: str) -> int:
    return int(Path(f"/sys/class/net/{name}/ifindex").read_text())


@pytest.mark.parametrize("driver", CARDS)
def test_a_card_is_followed(wire, follower, driver):
    since, rounds, indices = now(), [], []
    mac = f"52:54:00:00:01:{list(CARDS).index(driver):02x}"
    # Twice, because replugging is part of it; then until the host has given us a second of its own.
    watch = Watch("--path", "/card*")
    for number in range(1, MOST_ROUNDS + 1):
        names, mark = [], len(follower.told)
        wire.plug("card", driver, "rp1", mac)
        wait_for(lambda: qmp.interface(mac), 60, f"{driver} in the guest", every=0.01)
        appeared = time.time()
        index = index_of(qmp.interface(mac))
        while time.time() < appeared + 30 and (not names or names[-1].startswith("eth")):
            time.sleep(0.01)
            name = qmp.interface(mac)
            if name and name not in names[-1:]:
                names.append(name)
        name = names[-1]
        assert index_of(name) == index
        assert f"{name}: renamed from eth" in run("dmesg")
        at, (hook, mode, reason) = follower.hooked(name, mark)
        assert hook == CARDS[driver][0], (hook, mode, reason)
        assert CARDS[driver][1] in mode
        assert reason == CARDS[driver][2]
        run("ip", "addr", "add", "10.80.0.1/24", "dev", name)
        run("ip", "link", "set", name, "up")
        up = time.time()
        fetch(f"https://{PEER_ADDRESS}/card?{number}-[1-7]", "-H", "Connection: close", "--retry", "9",
              "--retry-all-errors", "--retry-delay", "1", "--connect-timeout", "2")  # fmt: skip
        seen = watch.wait(7 * number)[7 * (number - 1) :]
        assert sorted(one["request"]["path"] for one in seen) == [f"/card?{number}-{n}" for n in range(1, 8)]
        for one in seen:
            assert on_wire(one) == (hook, name), one
        shown = json.loads(run("ip", "-j", "-d", "link", "show", name))[0]
        assert ("xdp" in shown) == (hook == "XDP"), shown
        first = min(int(one["end_time_ns"]) for one in seen) / 1e9 - up
        pulled = time.time()
        wire.unplug("card")
        gone = follower.gone(name)
        rounds.append((names, hook, mode, reason, at - appeared, first, gone - pulled))
        indices.append(index)
        if number >= ROUNDS and min(taken for *_, taken, _, _ in rounds) <= FOLLOWED_SECONDS:
            break
    watch.stop()
    assert len(set(indices)) == len(indices)
    assert min(taken for *_, taken, _, _ in rounds) <= FOLLOWED_SECONDS, rounds
    for names, hook, mode, reason, taken, first, left in rounds:
        figure(f"card {driver}", f"{' renamed '.join(names)}, {hook} {mode} ({reason}) "
               f"{taken * 1000:.0f} ms after it appeared; "
               f"7 of 7 exchanges on it, the first {first * 1000:.0f} ms after up; off the list {left * 1000:.0f} ms "
               "after it was pulled")  # fmt: skip
    assert trouble(since) == []
