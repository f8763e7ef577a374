"""Fuzzes the reader of ELF files of strangers: any bytes give an Inspection, within bounds, in time.

Run: ``python fuzz/fuzz_elf.py fuzz/corpus/elf -max_total_time=60``. The seeds are hand-made libraries of
2 KiB in the shapes that the proofs know (tests/unit/targets/conftest.py makes them).
"""

from __future__ import annotations

import os
import sys

import atheris

from tests.support import pure

pure.sources_only()  # branches are counted in byte code

with atheris.instrument_imports(include=["spliffd"]):
    from spliffd.targets.inspector import inspect_fd
    from spliffd.targets.sites import check, decode_inspection, encode_inspection


def one_input(data: bytes) -> None:
    fd = os.memfd_create("fuzz")
    try:
        os.write(fd, data)
        inspection = inspect_fd(fd, relocate=True)
    finally:
        os.close(fd)
    if inspection.reason.startswith("cannot be inspected"):
        raise AssertionError(inspection.reason)
    if inspection.state != "attach" and not inspection.reason:
        raise AssertionError("no reason")
    problem = check(inspection, len(data))
    if problem:
        raise AssertionError(problem)
    if decode_inspection(encode_inspection(inspection)) != inspection:
        raise AssertionError("the answer does not survive the socket")


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
