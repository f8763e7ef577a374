"""A real PostgreSQL server and psql over TLS: both ends are captured from the first message on.

Needs Debian's postgresql, 70 MB that nobody's set-up installs.
"""

from __future__ import annotations

import glob
import os
import pwd
import subprocess
from pathlib import Path

import pytest

from spliffd.pb import spliff_pb2
from tests.support.daemon import Daemon
from tests.support.lab import Lab, wait_for
from tests.support.servers import free_port
from tests.support.shared import daemon_of_the_file, lab_of_the_file

PROGRAMS = sorted(Path(one).parent for one in glob.glob("/usr/lib/postgresql/*/bin/postgres"))

pytestmark = pytest.mark.skipif(not PROGRAMS, reason="no server: apt-get install postgresql")

USER = "nobody"
"""It refuses to run as root."""

lab = lab_of_the_file("postgres")
daemon = daemon_of_the_file()


def test_psql_and_its_server(lab: Lab, daemon: Daemon):
    programs = PROGRAMS[-1]
    data = lab.folder / "postgres"
    data.mkdir()
    uid = pwd.getpwnam(USER).pw_uid
    os.chown(data, uid, -1)
    lab.folder.chmod(0o755)
    as_user = ["setpriv", f"--reuid={USER}", "--clear-groups"]
    made = lab.run(*as_user, programs / "initdb", "-D", data, "-U", "spliff", "-A", "trust", "--no-sync")
    assert made.returncode == 0, made.stderr.decode()
    for name, source in (("server.crt", lab.certificate), ("server.key", lab.key)):
        (data / name).write_bytes(Path(source).read_bytes())
        (data / name).chmod(0o600)
        os.chown(data / name, uid, -1)
    port = free_port()
    options = ["-c", "ssl=on", "-c", "unix_socket_directories=", "-c", "listen_addresses=127.0.0.1"]
    lab.start(
        *as_user, programs / "postgres", "-D", data, "-p", str(port), *options,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    ready = [programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
    wait_for(lambda: lab.run(*ready, env={"PGSSLMODE": "disable"}).returncode == 0, 30, "the server")
    daemon.wait_attached()

    watch = daemon.watch(messages=True, bodies=True)
    where = f"host=127.0.0.1 port={port} user=spliff dbname=postgres sslmode=require gssencmode=disable"
    done = lab.run(programs / "psql", where, "-Atc", "SELECT 'spl' || 'iff'")
    assert done.stdout == b"spliff\n", done.stderr.decode()

    def chunks(role: str) -> list[spliff_pb2.Chunk]:
        every = [item.chunk for item in list(watch.items) if item.WhichOneof("kind") == "chunk"]
        return [chunk for chunk in every if chunk.connection.role == role]

    def moved(role: str, direction: str) -> bytes:
        return b"".join(chunk.data for chunk in chunks(role) if chunk.direction == direction)

    for role, asked, answered in (("client", "sent", "received"), ("server", "received", "sent")):
        wait_for(lambda role=role, way=answered: b"spliff" in moved(role, way), 30, f"the {role}'s answer")
        assert b"user\0spliff\0" in moved(role, asked)  # the first message
        assert b"SELECT 'spl' || 'iff'" in moved(role, asked)
        assert {chunk.protocol for chunk in chunks(role)} == {"postgresql"}
        assert {chunk.correlation.method for chunk in chunks(role)} == {"SOCKET_NESTED"}
    watch.stop()
    mine, theirs = chunks("client")[0], chunks("server")[0]
    assert (mine.process.comm, theirs.process.comm) == ("psql", "postgres")
    assert (mine.connection.local, mine.connection.remote) == (
        theirs.connection.remote,
        theirs.connection.local,
    )
    assert mine.connection.remote.port == port
