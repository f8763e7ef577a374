"""WebSocket between real peers: every message at both ends, tied to its exchange, secrets masked."""

from __future__ import annotations

import json
import random
import shutil

import pytest

from spliffd.pb import spliff_pb2
from tests.support.daemon import Daemon, Watch
from tests.support.lab import Lab, stop, wait_for
from tests.support.shared import daemon_of_the_file, lab_of_the_file
from tests.support.speakers import attached
from tests.support.websockets import WebSocketServer, websocket_client

LARGE = 3 * 256 * 1024 + 17

NODE = """
const socket = new WebSocket(`wss://127.0.0.1:${process.argv[1]}/node`);
let left = 13;
socket.onopen = () => { for (let n = 0; n < 13; n++) socket.send(JSON.stringify({number: n, password: "S3CR3T"})); };
socket.onmessage = () => { if (!--left) socket.close(4002, "enough"); };
socket.onerror = () => process.exit(1);
"""


lab = lab_of_the_file("websocket")
daemon = daemon_of_the_file()


def messages(watch: Watch, count: int) -> dict[str, list[spliff_pb2.Message]]:
    """By the role of the end that saw them, once ``count`` are there in all."""
    wait_for(lambda: len(watch.items) >= count, 30, f"{count} messages")
    watch.settle(0.3)
    watch.stop()
    assert {item.WhichOneof("kind") for item in watch.items} == {"message"}
    found: dict[str, list[spliff_pb2.Message]] = {"client": [], "server": []}
    for item in watch.items:
        found[item.message.connection.role].append(item.message)
    return found


@pytest.mark.parametrize("deflate", [True, False], ids=["deflate", "plain"])
def test_every_message_is_seen_at_both_ends(lab: Lab, daemon: Daemon, deflate: bool):
    server = WebSocketServer(lab, deflate=deflate)
    daemon.wait_attached()
    watch = daemon.watch(bodies=True, messages=True)
    steps = [
        {"text": json.dumps({"user": "me", "password": "S3CR3T-message"})},
        {"binary": 70_001, "seed": 3, "fragments": 5},
        {"ping": "are you there"},
        {"text": "burst 101", "answers": 101},
        {"binary": LARGE, "seed": 5},
        {"close": [4001, "enough"]},
    ]
    received = websocket_client(lab, server.port, steps, deflate=deflate)
    found = messages(watch, 2 * (4 + 104 + 2 + 2))

    exchanges = {exchange.connection.role: exchange for exchange in watch.exchanges}
    assert sorted(exchanges) == ["client", "server"]
    for role, seen in found.items():
        exchange = exchanges[role]
        assert (exchange.protocol, exchange.response.status) == ("websocket", 101)
        assert exchange.request.path.startswith("/chat?token=***(")
        assert {message.exchange_part_key for message in seen} == {exchange.part_key}
        assert {message.completeness.state for message in seen} == {"complete"}
        up = [m for m in seen if (m.direction == "sent") == (role == "client")]
        down = [m for m in seen if (m.direction == "sent") != (role == "client")]
        assert [m.type for m in up] == ["text", "binary", "ping", "text", "binary", "close"]
        assert json.loads(up[0].data)["user"] == "me"
        assert up[1].data == random.Random(3).randbytes(70_001)
        assert up[1].frames == 6  # the library ends it with an empty one
        assert up[2].data == b"are you there"
        assert (up[4].data, up[4].size) == (random.Random(5).randbytes(LARGE)[: 256 * 1024], LARGE)
        assert (up[5].close_code, up[5].data[2:]) == (4001, b"enough")
        assert [m.type for m in down if m.type != "text"] == ["pong", "close"]
        texts = [m for m in down if m.type == "text"]
        assert [m.data.decode() for m in texts[1:]] == received[1:]
        assert all(m.compressed == deflate for m in texts)
        for message in seen:
            assert b"S3CR3T" not in message.SerializeToString()
    assert watch.losses == []


def test_node_as_the_client(lab: Lab, daemon: Daemon):
    """Its own implementation (undici), over memory BIOs; the messages are those that the server has seen."""
    node = lab.folder / "node"
    shutil.copy("/usr/bin/node", node)
    idle = lab.start(node, "-e", "setTimeout(() => {}, 60000)")
    wait_for(lambda: attached(daemon, node), 30, "node probed")
    server = WebSocketServer(lab)
    daemon.wait_attached()
    watch = daemon.watch(bodies=True, messages=True)
    environment = {"NODE_TLS_REJECT_UNAUTHORIZED": "0", "NODE_NO_WARNINGS": "1"}
    client = lab.run(node, "--experimental-websocket", "-e", NODE, str(server.port), env=environment)
    assert client.returncode == 0, client.stderr
    found = messages(watch, 2 * (13 + 13 + 2))
    assert {message.process.comm for message in found["client"]} == {"node"}
    for role, seen in found.items():
        up = [m for m in seen if (m.direction == "sent") == (role == "client")]
        assert [m.type for m in up] == ["text"] * 13 + ["close"]
        assert [json.loads(m.data)["number"] for m in up[:13]] == list(range(13))
        assert (up[13].close_code, up[13].data[2:]) == (4002, b"enough")
        assert b"S3CR3T" not in b"".join(m.data for m in seen)  # the program's text is its command line
        assert {m.completeness.state for m in seen} == {"complete"}
    stop(idle)


def test_a_filter_on_the_exchange_selects_its_messages(lab: Lab, daemon: Daemon):
    server = WebSocketServer(lab)
    wanted = daemon.watch(messages=True, filter=spliff_pb2.Filter(paths=["/chat*"], protocols=["websocket"]))
    other = daemon.watch(messages=True, filter=spliff_pb2.Filter(paths=["/other*"]))
    websocket_client(lab, server.port, [{"text": "hello"}])
    found = messages(wanted, 8)
    assert [message.type for message in found["client"]] == ["text", "text", "close", "close"]
    assert {message.data for message in found["client"]} == {b""}  # bodies were not asked for
    assert [message.size for message in found["client"]] == [5, 5, 2, 2]
    other.stop()
    assert (other.items, other.exchanges) == ([], [])


def test_spliffctl_shows_them(lab: Lab, daemon: Daemon):
    server = WebSocketServer(lab)
    client = daemon.client("watch", "-b", "-C", "--comm", "python*", "--for", "60s")
    wait_for(lambda: daemon.stats()["spliff_subscribers"] == 1, 30, "a watcher")
    websocket_client(lab, server.port, [{"text": '{"a": [1, 2]}'}, {"close": [1000, "done"]}])
    lines: list[str] = []
    assert client.stdout is not None
    while sum(" ws close 1000 " in line for line in lines) < 4:
        line = client.stdout.readline().decode()
        assert line, client.communicate()
        lines.append(line.rstrip("\n"))
    text = "\n".join(lines)
    assert " → GET https://127.0.0.1:" in text
    assert "  ws " in text
    at = next(index for index, line in enumerate(lines) if "→ ws text 13 B (" in line)
    assert [line.strip() for line in lines[at + 1 : at + 7]] == ["{", '"a": [', "1,", "2", "]", "}"]
    assert "    done" in lines
