"""The daemon in a network namespace of its own: interfaces come, are listed, counted, reconfigured."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator

import pytest

from spliffd.pb import spliff_pb2
from tests.support.daemon import Daemon
from tests.support.lab import Lab, wait_for
from tests.support.net import Namespace, Network, run


@pytest.fixture
def net() -> Iterator[Network]:
    with Network("hook") as net:
        yield net


@pytest.fixture
def ns(net: Network) -> Namespace:
    return net.namespace()


def listed(daemon: Daemon) -> dict[str, tuple[str, str]]:
    """Hook and mode by name."""
    answer = daemon.stub().ListInterfaces(spliff_pb2.ListInterfacesRequest())
    return {one.name: (one.hook, one.mode) for one in answer.interfaces}


def packets(daemon: Daemon, name: str) -> tuple[int, int]:
    answer = daemon.stub().ListInterfaces(spliff_pb2.ListInterfacesRequest())
    (found,) = [one for one in answer.interfaces if one.name == name]
    return found.packets, found.bytes


def reload(daemon: Daemon, config: str) -> None:
    (daemon.lab.folder / "spliffd.toml").write_text(config)
    daemon.process.send_signal(signal.SIGHUP)


@pytest.mark.parametrize("mode", ["tc", "clsact", "xdp"])
def test_every_packet_of_an_interface_is_counted(lab: Lab, net: Network, ns: Namespace, mode: str):
    far = net.namespace()
    net.pair(ns, far)
    daemon = Daemon(lab, namespace=ns, config=f'[interfaces]\nmode = "{mode}"\n')
    assert listed(daemon)["eth0"] == {
        "tc": ("TC", "tcx"), "clsact": ("TC", "clsact"), "xdp": ("XDP", "native"),
    }[mode]  # fmt: skip

    def agreed() -> tuple[tuple[int, int], int] | None:
        """What the hooks and the interface have counted, when nothing came between the two questions."""
        own = sum(ns.counters("eth0"))
        counted = packets(daemon, "eth0")
        return (counted, own) if sum(ns.counters("eth0")) == own else None

    time.sleep(0.5)  # router solicitations of IPv6
    while (now := agreed()) is None:
        pass
    before, own_before = now
    send = "import socket; s = socket.socket(type=2); [s.sendto(bytes(972), ('10.91.0.{}', 9)) for _ in range(211)]"
    run(*ns.enter("python3", "-c", send.format(2)))
    run(*far.enter("python3", "-c", send.format(1)))
    # Others are counted in between: ARP, and the refusals of what nobody listens to.
    wait_for(
        lambda: packets(daemon, "eth0")[0] - before[0] == sum(ns.counters("eth0")) - own_before,
        30,
        f"hooks and interface agree: {packets(daemon, 'eth0')}, {ns.counters('eth0')}",
    )
    after = packets(daemon, "eth0")
    assert after[0] - before[0] >= 2 * 211
    assert after[1] - before[1] >= 2 * 211 * 1014  # 972 and the headers of UDP, IPv4, Ethernet
    daemon.stop()


def test_the_client_lists_what_comes_and_reload_takes_effect_at_once(lab: Lab, net: Network, ns: Namespace):
    daemon = Daemon(lab, namespace=ns)

    def hooked_within_a_second() -> bool:
        ns.ip("link add v0 type veth peer name v1", "link set v0 up")
        try:
            wait_for(lambda: listed(daemon).get("v0") == ("TC", "tcx"), 1, "v0 hooked")
        except TimeoutError:
            ns.ip("link del v0")
            wait_for(lambda: not {"v0", "v1"} & listed(daemon).keys(), 30, "v0 and v1 forgotten")
            return False
        return True

    # The machine may stand still for that long once, hardly three times.
    assert any(hooked_within_a_second() for _ in range(3))
    wait_for(lambda: listed(daemon).get("v1") == ("TC", "tcx"), 30, "v1 hooked")
    out, _ = daemon.client("interfaces").communicate(timeout=60)
    lines = out.decode().splitlines()
    assert lines[0].split() == ["NAME", "HOOK", "MODE", "PACKETS", "BYTES", "REASON"]
    assert [line.split()[:3] for line in lines[1:]] == [[name, "TC", "tcx"] for name in ("lo", "v1", "v0")]
    assert "interfaces: 3 on TC tcx" in daemon.client("status").communicate(timeout=60)[0].decode()
    assert daemon.stats()['spliff_interfaces{hook="TC",mode="tcx"}'] == 3

    reload(daemon, '[interfaces]\nexclude = ["v1"]\nmode = "xdp"\n')
    wanted = {"lo": ("TC", "tcx"), "v0": ("XDP", "native"), "v1": ("NONE", "")}
    wait_for(lambda: listed(daemon) == wanted, 30, "the new settings")
    reload(daemon, '[interfaces]\nmode = "everywhere"\n')
    wait_for(lambda: "reload refused" in daemon.text(), 30, "refusal")
    assert listed(daemon) == wanted
    out, _ = daemon.client("interfaces", "-o", "json").communicate(timeout=60)
    assert {line["interface"]["name"] for line in map(json.loads, out.splitlines())} == {"lo", "v0", "v1"}
    log = daemon.stop()
    assert (
        "error" not in log.partition("reload refused")[2].partition("statistics over")[0].partition("\n")[2]
    )
    assert "xdp" not in json.loads(run("ip", "-n", ns.name, "-j", "-d", "link", "show", "v0"))[0]
