"""Fixtures: a running api process and a client of it."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc.aio
import pytest

from spliffd import ipc
from spliffd.pb import spliff_pb2_grpc

# pytest's importlib mode leaves sys.path alone: the harness beside this file is found through it.
sys.path.insert(0, str(Path(__file__).parent))

from api_harness import Api


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: a Unix socket's has at most 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="spliff-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Api]]:
    """Starts api processes; ends them after the test."""
    running: list[Api] = []

    def run(**options: object) -> Api:
        api = Api(folder, **options)
        running.append(api)
        return api

    yield run
    for api in running:
        api.close()


@pytest.fixture
def api(start) -> Api:
    """A process that serves."""
    found = start()
    assert found.hear() == ipc.Ready()
    return found


@pytest.fixture
async def stub(api: Api) -> AsyncIterator[spliff_pb2_grpc.SpliffStub]:
    """A client of ``api``."""
    options = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(f"unix:{api.path}", options=options) as channel:
        yield spliff_pb2_grpc.SpliffStub(channel)
