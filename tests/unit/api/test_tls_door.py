"""The TCP listener: mutual TLS and nothing else, and what each certificate's names allow."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import grpc.aio
import pytest
from api_harness import Stream, exchange

from spliffd import audit, ipc
from spliffd.config import Tls
from spliffd.pb import spliff_pb2 as pb
from spliffd.pb import spliff_pb2_grpc


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def authority(folder: Path, name: str) -> None:
    openssl(
        folder, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
        "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}",
    )  # fmt: skip


def certificate(folder: Path, name: str, signer: str, alternative: str = "") -> None:
    openssl(
        folder, "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}",
    )  # fmt: skip
    (folder / f"{name}.ext").write_text(f"subjectAltName=DNS:{alternative or name}\n")
    openssl(
        folder, "x509", "-req", "-in", f"{name}.csr", "-CA", f"{signer}.pem", "-CAkey", f"{signer}.key",
        "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.pem",
    )  # fmt: skip


@pytest.fixture
def pki(folder) -> Path:
    for name in ("ours", "theirs"):
        authority(folder, name)
    certificate(folder, "daemon", "ours", "localhost")
    for name in ("viewer", "boss", "stranger"):
        certificate(folder, name, "ours")
    certificate(folder, "other", "ours", "viewer.example")  # its alternative name is on the list
    certificate(folder, "forger", "theirs", "boss")
    return folder


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture
def api(start, pki, port):
    tls = Tls(
        f"127.0.0.1:{port}", f"{pki}/daemon.pem", f"{pki}/daemon.key", f"{pki}/ours.pem",
        ["viewer", "viewer.example"], ["boss"],
    )  # fmt: skip
    found = start(tls=tls)
    assert found.hear() == ipc.Ready()
    return found


def channel(pki: Path, port: int, name: str) -> grpc.aio.Channel:
    pieces = [(pki / file).read_bytes() for file in ("ours.pem", f"{name}.key", f"{name}.pem")]
    options = [("grpc.ssl_target_name_override", "localhost")]
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(*pieces), options)


async def refused(call) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code().name, error.value.details()


@pytest.mark.parametrize("name", ["viewer", "other", "boss"])
async def test_names_on_the_lists_watch_everything(api, pki, port, name):
    worker = api.link()
    async with channel(pki, port, name) as opened:
        stream = Stream(spliff_pb2_grpc.SpliffStub(opened).Watch(pb.WatchRequest()))
        await asyncio.to_thread(worker.demand)
        await stream.kind("started")
        worker.send([exchange("/1", uid=4_000_007)])
        assert (await stream.kind("exchange")).request.path == "/1"


async def test_others_of_the_same_authority_learn_their_name_and_nothing_else(api, pki, port):
    async with channel(pki, port, "stranger") as opened:
        stub = spliff_pb2_grpc.SpliffStub(opened)
        for call in (stub.Watch(pb.WatchRequest()).read(), stub.GetStats(pb.GetStatsRequest())):
            code, why = await refused(call)
            assert (code, "(stranger)" in why) == ("PERMISSION_DENIED", True)


async def test_another_authority_and_no_certificate_do_not_get_in(api, pki, port):
    async with channel(pki, port, "forger") as opened:
        code, _ = await refused(spliff_pb2_grpc.SpliffStub(opened).GetStats(pb.GetStatsRequest(), timeout=5))
        assert code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
    bare = grpc.ssl_channel_credentials((pki / "ours.pem").read_bytes())
    for opened in (
        grpc.aio.secure_channel(f"127.0.0.1:{port}", bare, [("grpc.ssl_target_name_override", "localhost")]),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}"),
    ):
        async with opened:
            stub = spliff_pb2_grpc.SpliffStub(opened)
            assert (await refused(stub.GetStats(pb.GetStatsRequest(), timeout=5)))[0] in (
                "UNAVAILABLE",
                "DEADLINE_EXCEEDED",
            )


async def test_secrets_and_the_debug_log_take_the_other_list(api, pki, port):
    api.link()

    async def asked(name: str, call, *, answers: int) -> audit.Audited:
        query = await asyncio.to_thread(api.hear)
        assert query.name == "Audit"
        audited = audit.decode(query.payload)
        api.tell(ipc.Answer(number=query.number, payload=b""))
        for _ in range(answers):
            query = await asyncio.to_thread(api.hear)
            api.tell(ipc.Answer(number=query.number, payload=pb.SetDebugResponse().SerializeToString()))
        assert (audited.name, audited.uid) == (name, -1)
        return audited

    for name, granted in (("viewer", False), ("boss", True)):
        async with channel(pki, port, name) as opened:
            stub = spliff_pb2_grpc.SpliffStub(opened)
            revealed = asyncio.ensure_future(stub.Watch(pb.WatchRequest(reveal=True)).read())
            assert (await asked(name, revealed, answers=0)).granted is granted
            switched = asyncio.ensure_future(stub.SetDebug(pb.SetDebugRequest(enabled=True)))
            if not granted:
                assert (await refused(revealed))[0] == "PERMISSION_DENIED"
            assert (await asked(name, switched, answers=granted)).granted is granted
            if granted:
                await switched
                revealed.cancel()
            else:
                assert (await refused(switched))[0] == "PERMISSION_DENIED"


def test_the_client_comes_by_its_options(api, pki, port):
    command = [sys.executable, "-m", "spliffctl", "--tls", f"127.0.0.1:{port}", "--tls-ca", f"{pki}/ours.pem"]
    proof = ["--tls-cert", f"{pki}/viewer.pem", "--tls-key", f"{pki}/viewer.key", "--tls-name", "localhost"]
    done = subprocess.run(
        [*command, *proof, "stats"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, "Subscribers" in done.stdout) == (0, True), done.stderr
    done = subprocess.run([*command, "stats"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "--tls-cert" in done.stderr) == (2, True)


@pytest.mark.parametrize("broken", ["key", "certificate", "client_ca"])
def test_a_file_that_is_missing_is_named(start, pki, port, broken):
    files = {"certificate": f"{pki}/daemon.pem", "key": f"{pki}/daemon.key", "client_ca": f"{pki}/ours.pem"}
    api = start(tls=Tls(listen=f"127.0.0.1:{port}", watch=["viewer"], **{**files, broken: f"{pki}/none"}))
    failed = api.hear()
    assert failed.message.startswith(f"tls.{broken}: {pki}/none cannot be read")
    assert api.finish() == 1
