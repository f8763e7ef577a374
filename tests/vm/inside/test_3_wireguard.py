"""WireGuard of the kernel: every exchange through the tunnel has the tunnel's interface and the inner tuple."""

import subprocess
import threading
from pathlib import Path

import pytest

from tests.vm.inside.guest import (
    WHOLE,
    fetch,
    figure,
    namespace,
    now,
    on_wire,
    run,
    serve,
    sh,
    trouble,
    watching,
    ways,
)

COUNTS = ((11, 155), (11, 155), (31, 136)) if WHOLE else ((3, 17), (3, 17), (11, 50))
"""Through the tunnel, through one made anew, through one that is made anew meanwhile: 499, or 101. Of each, those that
have a connection of their own, and those that share one."""
TOTAL = 499 if WHOLE else 101
NEAR, FAR = "10.82.0.1", "10.82.0.2"
URL = f"https://{FAR}/"


@pytest.fixture(scope="module", autouse=True)
def tunnel():
    enter = namespace("wgfar")
    sh("""
        ip link add under0 type veth peer name under0 netns wgfar
        ip addr add 10.81.0.1/24 dev under0; ip link set under0 up
        ip -n wgfar addr add 10.81.0.2/24 dev under0; ip -n wgfar link set under0 up
        umask 077; for end in near far; do wg genkey > /tmp/$end.key; wg pubkey < /tmp/$end.key > /tmp/$end.pub; done
        ip -n wgfar link add wg0 type wireguard
        nsenter --net=/run/netns/wgfar wg set wg0 private-key /tmp/far.key listen-port 51820 \
            peer $(cat /tmp/near.pub) allowed-ips 10.82.0.1/32 endpoint 10.81.0.1:51820
        ip -n wgfar addr add 10.82.0.2/24 dev wg0; ip -n wgfar link set wg0 up
    """)
    make()
    server = serve("wg", *enter)
    yield
    server.kill()
    server.wait()
    sh("ip link del wg0; ip link del under0; ip netns del wgfar")


def make() -> None:
    """Our end of the tunnel."""
    sh("""
        ip link add wg0 type wireguard
        wg set wg0 private-key /tmp/near.key listen-port 51820 \
            peer $(cat /tmp/far.pub) allowed-ips 10.82.0.2/32 endpoint 10.81.0.2:51820
        ip addr add 10.82.0.1/24 dev wg0; ip link set wg0 up
    """)


def make_again() -> None:
    run("ip", "link", "del", "wg0")
    make()


def through(watch, name: str, counts: tuple[int, int]) -> list[str]:
    """Requests in connections of their own, then in one; their paths."""
    again = ("--retry", "9", "--retry-all-errors", "--retry-delay", "1", "--connect-timeout", "3")
    fetch(f"{URL}{name}-own?[1-{counts[0]}]", "-H", "Connection: close", *again)
    fetch(f"{URL}{name}-one?[1-{counts[1]}]", *again)
    return [
        f"/{name}-{how}?{number}"
        for how, count in zip(("own", "one"), counts, strict=True)
        for number in range(1, count + 1)
    ]


def test_it_is_the_kernels():
    assert "wireguard" in run("ip", "-d", "link", "show", "wg0")
    assert Path("/sys/module/wireguard").exists()
    assert not subprocess.run(["pgrep", "wireguard-go"], capture_output=True, check=False).stdout


def test_every_exchange_is_inside_the_tunnel():
    since = now()
    with watching("--port", "443", "--path", "/wg*") as watch:
        wanted = through(watch, "wg-up", COUNTS[0])
        make_again()
        wanted += through(watch, "wg-again", COUNTS[1])
        remaking = threading.Timer(1.0, make_again)
        remaking.start()
        wanted += through(watch, "wg-meanwhile", COUNTS[2])
        remaking.join()
        watch.wait(len(wanted))
        complete = [one for one in watch.exchanges() if one["completeness"]["state"] == "complete"]
        both = len(watch.exchanges("server"))
    assert len(wanted) == TOTAL
    assert sorted(one["request"]["path"] for one in complete) == sorted(wanted)
    for one in complete:
        connection = one["connection"]
        assert on_wire(one) == ("TC", "wg0"), one
        assert (connection["local"]["address"], connection["remote"]["address"]) == (NEAR, FAR)
        assert {hop["interface"] for hop in connection["path"]} == {"wg0"}, one
        assert int(connection["packets_sent"]) >= 1
    figure("kernel WireGuard", f"{len(complete)} of {TOTAL} exchanges with the inner tuple: {ways(complete)}; "
           f"{both} seen at the far end, too")  # fmt: skip
    assert trouble(since) == []
