"""Secrets on the wire are masked before they leave the worker; who may see them asks, and the journal says so."""

from __future__ import annotations

import base64
import grp
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from spliffd.pb import spliff_pb2
from tests.support.client import exchanges
from tests.support.daemon import PYTHON, Daemon
from tests.support.http_programs import HttpServer
from tests.support.lab import REPOSITORY, Lab
from tests.support.servers import Nginx
from tests.support.shared import lab_of_the_file

STRANGER = 65534
REVEAL = "daemon"
"""A group that every Debian has, and nobody is in."""

SECRETS = {
    "Authorization": "Bearer S3CR3T-authorization",
    "Cookie": "session=S3CR3T-cookie",
    "X-Api-Key": "S3CR3T-key",
    "Referer": "https://h/?token=S3CR3T-referer",
}
MARK = b"S3CR3T"


lab = lab_of_the_file("secrets")


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    daemon = Daemon(lab, "--metrics", "127.0.0.1:0", config=f'[access]\nreveal_group = "{REVEAL}"\n')
    yield daemon
    daemon.stop()


@pytest.fixture(scope="module")
def server(lab: Lab, daemon: Daemon) -> Nginx:
    server = Nginx(lab, tls="default_type application/json; gzip on; gzip_types *;")
    daemon.wait_attached()
    return server


def spliffctl(
    daemon: Daemon, *arguments: str, groups: tuple[str, ...] = ("spliff",)
) -> subprocess.Popen[str]:
    """spliffctl as a user without privileges who is in ``groups``."""
    ids = ",".join(str(grp.getgrnam(group).gr_gid) for group in groups)
    return subprocess.Popen(
        ["setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", f"--groups={ids}", "--inh-caps=-all",
         "--no-new-privs", PYTHON, "-m", "spliffctl", "--socket", str(daemon.socket), *arguments],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def send(lab: Lab, server: Nginx, path: str = "/hello?token=S3CR3T-query&a=1", *options: str) -> None:
    headers = [part for name, value in SECRETS.items() for part in ("-H", f"{name}: {value}")]
    done = lab.run("curl", "-sk", *headers, *options, server.url(path))
    assert done.returncode == 0


def test_no_secret_reaches_a_watcher_the_metrics_or_the_log(lab: Lab, daemon: Daemon, server: Nginx):
    watch = daemon.watch(bodies=True, handshakes=True, messages=True)
    send(lab, server)
    send(lab, server)
    watch.wait_for(4)
    watch.settle(0.3)
    watch.stop()
    hashes: dict[str, set[str]] = {}
    for exchange in watch.exchanges:
        assert MARK not in exchange.SerializeToString()
        for header in exchange.request.headers:
            if header.HasField("masked"):
                hashes.setdefault(header.name.lower(), set()).add(header.masked.hash)
                assert header.masked.length == len(SECRETS[header.name.title()])
        assert exchange.request.path.startswith("/hello?token=***(12:")
        assert exchange.request.path.endswith(")&a=1")
    # Equal secrets compare equal, at both ends and in both exchanges.
    assert {name: len(found) for name, found in hashes.items()} == {
        "authorization": 1,
        "cookie": 1,
        "x-api-key": 1,
    }
    for item in watch.items:
        assert MARK not in item.SerializeToString()
    stats = daemon.stub().GetStats(spliff_pb2.GetStatsRequest())
    assert MARK not in stats.SerializeToString()
    assert MARK.decode() not in daemon.text()


def test_bodies(lab: Lab, daemon: Daemon, server: Nginx):
    reply = {"id": 7, "access_token": "S3CR3T-json", "pad": "x" * 2000}
    server.file("token", json.dumps(reply).encode())
    watch = daemon.watch(bodies=True)
    form = "user=me&password=S3CR3T-form&remember=1"
    # nginx answers a POST to a file before the body is there; this one reads it first.
    reader = f"https://127.0.0.1:{HttpServer(lab).port}/up"
    for options, url in (
        (["--data", form], reader),
        (["--json", json.dumps(reply)], reader),
        (["-F", "password=S3CR3T-part", "-F", "a=b"], reader),
        ([], server.url("/token")),
    ):
        assert lab.run("curl", "-sk", "--compressed", *options, url).returncode == 0
    watch.wait_for(8)
    watch.settle(0.3)
    watch.stop()
    for exchange in watch.exchanges:
        assert MARK not in exchange.SerializeToString()
    sent = [exchange for exchange in watch.exchanges if exchange.connection.role == "client"]
    assert sent[0].request.body.startswith(b"user=me&password=*")
    assert sent[0].request.body.endswith(b"&remember=1")
    assert len(sent[0].request.body) == sent[0].request.body_size == len(form)
    assert json.loads(sent[1].request.body)["id"] == 7
    assert b'name="a"\r\n\r\nb\r\n' in sent[2].request.body
    for exchange in (sent[3], next(one for one in watch.exchanges[::-1] if one.connection.role == "server")):
        answer = exchange.response
        assert answer.content_encoding == "gzip"
        assert answer.body_size < 500  # on the wire
        assert answer.decoded_size == len(answer.body) == len(json.dumps(reply))
        assert json.loads(answer.body)["pad"] == reply["pad"]
        assert json.loads(answer.body)["access_token"].startswith("*")
        assert exchange.completeness.body_not_sent == 0


def test_a_filter_does_not_tell_a_secret(lab: Lab, daemon: Daemon, server: Nginx):
    guessed = daemon.watch(filter=spliff_pb2.Filter(paths=["*S3CR3T*", "/hello?token=S*"]))
    every = daemon.watch(filter=spliff_pb2.Filter(paths=["/hello?token=*&a=1"]))
    send(lab, server)
    every.wait_for(2)
    guessed.settle(0.2)
    assert guessed.exchanges == []
    every.stop()
    guessed.stop()


def test_a_member_of_the_reveal_group_sees_them_and_the_journal_says_so(
    lab: Lab, daemon: Daemon, server: Nginx
):
    other = daemon.watch()
    client = spliffctl(
        daemon,
        "watch",
        "--reveal",
        "-b",
        "--count",
        "2",
        "--path",
        "/hello*",
        "-o",
        "json",
        groups=("spliff", REVEAL),
    )
    lab.processes.append(client)
    while daemon.stats()["spliff_subscribers"] < 2:
        assert client.poll() is None, client.communicate()
    send(lab, server, "/hello?token=S3CR3T-query&a=1", "--data", "password=S3CR3T-form")
    out, err = client.communicate(timeout=60)
    assert (client.returncode, err) == (0, "")
    for exchange in exchanges(out):
        headers = {header["name"]: header.get("value", "") for header in exchange["request"]["headers"]}
        assert {name: headers[name] for name in SECRETS} == SECRETS
        assert exchange["request"]["path"] == "/hello?token=S3CR3T-query&a=1"
        assert "revealed" not in exchange
        assert base64.b64decode(exchange["request"]["body"]) == b"password=S3CR3T-form"
    other.wait_for(2)
    other.stop()
    assert not [exchange for exchange in other.exchanges if MARK in exchange.SerializeToString()]
    (line,) = [line for line in daemon.text().splitlines() if "secrets are revealed" in line]
    assert f"uid={STRANGER} user=nobody pid={client.pid}" in line
    assert "/hello*" in line
    assert MARK.decode() not in daemon.text()


def test_others_are_refused_with_the_reason(daemon: Daemon):
    client = spliffctl(daemon, "watch", "--reveal")
    out, err = client.communicate(timeout=60)
    assert (client.returncode, out) == (77, "")
    (line,) = err.splitlines()
    assert f"only members of group {REVEAL} may see secrets" in line
    assert "a watcher asked for secrets and was refused" in daemon.text()


def test_a_token_proves_who_asks(daemon: Daemon):
    client = spliffctl(daemon, "token", groups=("spliff", REVEAL))
    token, err = client.communicate(timeout=60)
    assert (client.returncode, err) == (0, "")
    uid, pid, roles, _expiry, _signature = token.strip().split(".")
    assert (uid, pid, roles) == (str(STRANGER), str(client.pid), "r")
    for metadata in (
        None,
        (("authorization", "Bearer x"),),
        (("authorization", "Bearer " + token.strip()[:-1] + "g"),),
    ):
        call = daemon.stub().Watch(spliff_pb2.WatchRequest(reveal=True), metadata=metadata)
        with pytest.raises(grpc.RpcError) as error:
            next(iter(call))
        assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_the_socket_of_tokens_is_as_closed_as_the_other(daemon: Daemon):
    place = Path(daemon.socket).with_name("auth.sock")
    assert oct(place.stat().st_mode & 0o777) == "0o660"
    client = spliffctl(daemon, "token", groups=("nogroup",))
    _, err = client.communicate(timeout=60)
    assert (client.returncode, err.count("\n")) == (77, 1)
