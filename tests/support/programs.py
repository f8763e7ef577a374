"""The compiled eBPF programs, once for a test run, or from a folder that outlives it.

LLVM takes a second here and a minute under emulation, so a virtual machine is given what its host has compiled:
``SPLIFF_PROGRAMS`` names a folder of ``spliffd.kernel.cache``, which decides itself whether that fits this kernel
and these sources, and compiles when it does not.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import msgspec

from spliffd.kernel import cache, probes
from spliffd.kernel.compile import BTF_PATH, Compiled, compile_programs

_COMPILED: list[Compiled] = []


def programs() -> Compiled:
    """For this kernel; raises HostError."""
    if not _COMPILED:
        user = pwd.getpwnam("nobody")
        folder = os.environ.get("SPLIFF_PROGRAMS")
        if folder:
            _COMPILED.append(_without_go(cache.programs(user.pw_uid, user.pw_gid, BTF_PATH, Path(folder))[0]))
        else:
            _COMPILED.append(compile_programs(user.pw_uid, user.pw_gid))
    return _COMPILED[0]


def _without_go(compiled: Compiled) -> Compiled:
    """Go's programs take the verifier half of all its time, two seconds under emulation, and nothing there runs Go."""
    code = {name: probes.RETURN_0 if name.startswith("go_") else each for name, each in compiled.code.items()}
    return msgspec.structs.replace(compiled, code=code)
