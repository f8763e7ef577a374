"""What is not HTTP is named and shown as raw chunks: Redis and real clients of mail, first messages of the rest."""

from __future__ import annotations

import json
import socket
import subprocess

from spliffd.pb import spliff_pb2
from tests.support.daemon import Daemon, Watch
from tests.support.lab import PYTHON, Lab, wait_for
from tests.support.servers import free_port
from tests.support.shared import daemon_of_the_file, lab_of_the_file
from tests.unit.protocols.test_recognise import ASKED

PEERS = r"""
import imaplib, json, poplib, smtplib, socket, ssl, sys, threading
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
client = ssl._create_unverified_context()

def serve(listener, greeting, answers):
    raw, _ = listener.accept()
    with context.wrap_socket(raw, server_side=True) as tls:
        if greeting:
            tls.sendall(greeting)
        for answer in answers:
            if not tls.recv(65536):
                break
            tls.sendall(answer)

def start(greeting, answers):
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=serve, args=(listener, greeting, answers))
    thread.start()
    return thread, listener.getsockname()[1]

def smtp():
    thread, port = start(b"220 mail ready\r\n", [b"250 mail\r\n", b"221 bye\r\n"])
    with smtplib.SMTP_SSL("127.0.0.1", port, local_hostname="me", context=client) as smtp:
        smtp.ehlo()
    thread.join()

def imap():
    thread, port = start(b"* OK ready\r\n", [])
    tls = client.wrap_socket(socket.create_connection(("127.0.0.1", port)))
    tls.recv(100)
    tls.close()
    thread.join()

def pop3():
    thread, port = start(b"+OK POP3 ready\r\n", [b"+OK bye\r\n"])
    poplib.POP3_SSL("127.0.0.1", port, context=client).quit()
    thread.join()

def first(text):
    thread, port = start(b"", [b"\0"])
    tls = client.wrap_socket(socket.create_connection(("127.0.0.1", port)))
    tls.sendall(bytes.fromhex(text))
    tls.recv(1)
    tls.close()
    thread.join()

smtp()
imap()
pop3()
for text in json.loads(sys.argv[3]):
    first(text)
"""


lab = lab_of_the_file("raw")
daemon = daemon_of_the_file()


def chunks(watch: Watch) -> list[spliff_pb2.Chunk]:
    return [item.chunk for item in watch.items if item.WhichOneof("kind") == "chunk"]


def test_redis_is_named_and_shown_at_both_ends(lab: Lab, daemon: Daemon):
    port = free_port()
    lab.start(
        "redis-server", "--port", "0", "--tls-port", str(port), "--tls-cert-file", lab.certificate,
        "--tls-key-file", lab.key, "--tls-auth-clients", "no", "--save", "", "--dir", lab.folder,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_for(answers, 30, "redis")
    daemon.wait_attached()
    watch = daemon.watch(messages=True, bodies=True, filter=spliff_pb2.Filter(protocols=["redis"]))
    every = daemon.watch(messages=True, filter=spliff_pb2.Filter(protocols=["raw"]))
    done = lab.run("redis-cli", "--tls", "--insecure", "-p", str(port), "SET", "key", "value of it")
    assert done.stdout == b"OK\n"
    wait_for(lambda: sum(b"+OK\r\n" in chunk.data for chunk in chunks(watch)) == 2, 30, "the answers")
    watch.settle(0.3)
    every.settle(0)
    for one in (watch, every):
        one.stop()
    for role in ("client", "server"):
        seen = [chunk for chunk in chunks(watch) if chunk.connection.role == role]
        sent = {way: b"".join(c.data for c in seen if c.direction == way) for way in ("sent", "received")}
        asked, answered = (
            (sent["sent"], sent["received"]) if role == "client" else (sent["received"], sent["sent"])
        )
        assert asked.endswith(b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$11\r\nvalue of it\r\n"), chunks(watch)
        assert answered.endswith(b"+OK\r\n"), chunks(watch)
        assert {chunk.protocol for chunk in seen} == {"redis"}
        assert {chunk.correlation.wire for chunk in seen} == {"TC"}
        times = [chunk.time_ns for chunk in seen]
        assert times == sorted(times)
        for way in ("sent", "received"):
            at = 0
            for chunk in (chunk for chunk in seen if chunk.direction == way):
                assert chunk.offset == at
                at += chunk.size
    assert len(chunks(every)) == len(chunks(watch))
    assert {chunk.data for chunk in chunks(every)} == {b""}  # it asked for no bodies


def test_others_are_named_by_what_they_say_first(lab: Lab, daemon: Daemon):
    watch = daemon.watch(messages=True, bodies=True)
    firsts = {name: data for name, (data, *_) in ASKED.items() if name not in ("smtp", "imap", "pop3")}
    arguments = json.dumps([data.hex() for data in firsts.values()])
    done = lab.run(PYTHON, "-c", PEERS, lab.certificate, lab.key, arguments)
    assert done.returncode == 0, done.stderr.decode()

    def named() -> set[str]:
        return {chunk.protocol for chunk in chunks(watch)} - {"unknown"}

    wait_for(lambda: named() == set(ASKED), 30, f"all of {sorted(ASKED)}")
    watch.settle(0.3)
    watch.stop()
    for name, data in firsts.items():
        seen = [chunk for chunk in chunks(watch) if chunk.data == data]
        assert {chunk.protocol for chunk in seen} == {name}
        assert sorted(chunk.direction for chunk in seen) == ["received", "sent"]
    # A greeting that could be anybody's has no name; what follows it has.
    greeting = [chunk for chunk in chunks(watch) if chunk.data == b"220 mail ready\r\n"]
    assert {chunk.protocol for chunk in greeting} == {"unknown"}
    assert watch.exchanges == []


def test_spliffctl_filters_by_the_name(lab: Lab, daemon: Daemon):
    client = daemon.client("watch", "-b", "-C", "--protocol", "smtp", "--for", "60s")
    wait_for(lambda: daemon.stats()["spliff_subscribers"] == 1, 30, "a watcher")
    lab.run(PYTHON, "-c", PEERS, lab.certificate, lab.key, "[]")
    assert client.stdout is not None
    lines = [client.stdout.readline().decode() for _ in range(2)]
    assert " → raw smtp 9 B at 0 " in lines[0]
    assert lines[1] == "    ehlo me\n"
