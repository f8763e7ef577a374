"""Protobuf schemas that the user has: what the messages of a gRPC method are.

Takes descriptor sets (``protoc --include_imports --descriptor_set_out``) and folders of .proto files, which
protoc compiles; answers with an empty message for a method's request or response. Raises ClientError with
what to do for a file that cannot be used. Reads files at start only.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from spliffctl.errors import ClientError

if TYPE_CHECKING:
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message import Message

PROTOC_SECONDS = 60
"""How long protoc may take: it compiles a thousand files in one."""


class Schema:
    """The types of all descriptor sets together."""

    def __init__(self, sets: Sequence[bytes] = ()) -> None:
        from google.protobuf import descriptor_pool

        self._pool: DescriptorPool = descriptor_pool.DescriptorPool()
        for data in sets:
            self._add(data)

    def _add(self, data: bytes) -> None:
        from google.protobuf import descriptor_pb2
        from google.protobuf.message import DecodeError

        try:
            found = descriptor_pb2.FileDescriptorSet.FromString(data)
        except DecodeError:
            raise ClientError(
                "a descriptor set is none: make one with protoc --include_imports --descriptor_set_out=FILE"
            ) from None
        known = {file.name: file for file in found.file}
        done: set[str] = set()

        def add(name: str) -> None:
            if name in done or name not in known:
                return
            done.add(name)
            for imported in known[name].dependency:
                add(imported)
            self._pool.Add(known[name])

        try:
            for name in known:
                add(name)
        except (TypeError, ValueError) as error:
            raise ClientError(
                f"a descriptor set cannot be used: {error} (was it made with --include_imports?)"
            ) from None

    def message(self, service: str, method: str, *, response: bool) -> Message | None:
        """An empty message of a method's type; None when no schema names it."""
        from google.protobuf import message_factory

        try:
            found = self._pool.FindServiceByName(service).FindMethodByName(method)
        except KeyError:
            return None
        kind = found.output_type if response else found.input_type
        message: Message = message_factory.GetMessageClass(kind)()
        return message


def load(descriptor_sets: Sequence[str], proto_paths: Sequence[str]) -> Schema | None:
    """The schema of these files; None when there are none."""
    if not descriptor_sets and not proto_paths:
        return None
    sets = []
    for name in descriptor_sets:
        try:
            sets.append(Path(name).read_bytes())
        except OSError as error:
            raise ClientError(f"cannot read the descriptor set {name}: {error.strerror}") from None
    if proto_paths:
        sets.append(_compiled(proto_paths))
    return Schema(sets)


def _compiled(folders: Sequence[str]) -> bytes:
    files = []
    for folder in folders:
        found = sorted(Path(folder).rglob("*.proto"))
        if not found:
            raise ClientError(f"there is no .proto file in {folder}")
        files += [str(file.relative_to(folder)) for file in found]
    command = [shutil.which("protoc") or ""]
    if not command[0]:
        if find_spec("grpc_tools") is None:
            raise ClientError(
                "--proto-path needs protoc: sudo apt install protobuf-compiler "
                "(or give --descriptor-set FILE, made elsewhere)"
            )
        command = [sys.executable, "-m", "grpc_tools.protoc"]
    with tempfile.TemporaryDirectory(prefix="spliffctl-") as place:
        out = Path(place) / "set"
        include = [f"-I{folder}" for folder in folders]
        done = subprocess.run(
            [*command, *include, "--include_imports", f"--descriptor_set_out={out}", *files],
            capture_output=True, text=True, timeout=PROTOC_SECONDS, check=False,
        )  # fmt: skip
        if done.returncode:
            raise ClientError(f"protoc: {done.stderr.strip()[:500]}")
        return out.read_bytes()
