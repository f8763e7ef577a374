"""What runs in a machine: sessions of pytest, each from a saved state or a cold boot.

``SESSIONS`` is a table; ``command`` makes the line for the guest's shell. "ways" runs the tests of the checkout's own
layers (kernel, spine, golden thread) as they are run on the host, on the ways of this kernel; "package" and "boot" are
an administrator's life with the package on one disk: install, use, break, upgrade; then boot, remove, purge.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import NamedTuple

INSIDE = "tests/vm/inside"
FALLBACKS = "tests/vm/ways/test_fallbacks.py"

FRESH = 23
"""Fresh processes of a test that counts them; emulation is twenty times slower than the host, where it is 1,009."""


class Session(NamedTuple):
    """One machine's life."""

    name: str
    restored: bool
    """From the saved state; else booted."""
    disk: str
    """Sessions of one name go on with what the one before has left."""
    before: str
    """Shell commands that the tests need."""
    options: str
    files: tuple[str, ...]
    """Below the checkout, in this order; a file or one of its tests."""


PACKAGE_LIFE = f"--config-file=/src/{INSIDE}/pytest.ini --rootdir=/src/{INSIDE}"

SESSIONS = (
    Session(
        "ways", True, "ways",
        f"export SPLIFF_PROGRAMS=/vm/programs FRESH={FRESH} PYTEST_DISABLE_PLUGIN_AUTOLOAD=1; systemd-sysusers /src/packaging/systemd/spliff.sysusers; "
        "mkdir -m 700 /var/cache/spliff; cp /vm/programs/* /var/cache/spliff/",
        f"--config-file=/src/{INSIDE}/pytest.ini --rootdir=/src",
        (FALLBACKS,
         "tests/vm/ways/test_daemon.py::test_every_first_request_is_named_and_has_its_packets[tc]",
         "tests/kernel/test_packets.py", "tests/kernel/test_flow_lookup.py", "tests/kernel/test_occupancy.py",
         "tests/kernel/test_records.py",
         "tests/kernel/test_flow_life.py::test_both_ends_from_open_to_close[127.0.0.1--4]",
         "tests/kernel/test_flow_life.py::test_connections_older_than_the_programs_are_seeded[True]",
         "tests/kernel/test_packets_hooked.py::test_a_path_through_the_host_lists_its_interfaces_in_order",
         "tests/kernel/test_boundaries.py::test_reused_pointers_are_different_connections",
         "tests/kernel/test_boundaries.py::test_a_killed_process_ends_its_connections"),
    ),
    Session(
        "package", True, "life", "export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1", PACKAGE_LIFE,
        tuple(f"{INSIDE}/test_{name}.py" for name in ("1_package", "2_hardening", "3_wireguard", "4_cards",
                                                      "5_recovery", "6_upgrade")),
    ),
    Session(
        "boot", False, "life", "export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1", PACKAGE_LIFE,
        tuple(f"{INSIDE}/test_{name}.py" for name in ("7_boot", "8_removal")),
    ),
)  # fmt: skip

DISKS = ("life", "ways")
"""Longest first."""

ONCE = (
    "7_boot", "8_removal", "test_flow_lookup.py", "test_occupancy.py", "test_records.py", "test_flow_life.py",
    "test_packets_hooked.py", "test_boundaries.py",
)  # fmt: skip
"""On the first kernel of a run only, unless all is asked for: what systemd and dpkg do does not depend on the kernel,
and of the programs the packets' are the ones that are attached in another way on the next."""

AT_LENGTH = ("5_recovery", "6_upgrade", "ways/test_daemon.py")
"""Only when all is asked for: each start of the daemon takes a quarter of a minute under emulation, and these are
starts. On the host's own kernel, tests/system has a killed and a hanging worker and api, with a stand-in for systemd,
and tests/kernel the filters of a killed daemon."""

NEWER = tuple(
    f"{FALLBACKS}::test_{name}"
    for name in ("the_doctor_says_the_way_taken", "a_way_is_there_or_known_to_be_missing",
                 "every_byte_by_either_kind_of_link[True-True]", "each_way_names_the_socket[raw]")
)  # fmt: skip
"""Of the fall-backs, what the first kernel does not have; what it takes in earnest need not be forced on others."""


class Part(NamedTuple):
    """What of it all a kernel of a run gets."""

    first: bool
    """All that depends on a kernel, with the counts of the documentation; on others less, with smaller counts."""
    everything: bool

    @classmethod
    def of(cls, kernel: str, kernels: Sequence[str], *, everything: bool) -> Part:
        """The part of ``kernel`` in a run of ``kernels``."""
        return cls(everything or kernel == kernels[0], everything)


def files(session: Session, part: Part, named: Sequence[str] | None) -> list[str]:
    """What a session runs on a kernel: ``named`` chooses by parts of names."""
    if named:
        return [file for file in session.files if any(name in file for name in named)]
    left_out = (() if part.first else ONCE) + (() if part.everything else AT_LENGTH)
    kept = [file for file in session.files if not any(name in file for name in left_out)]
    return [one for file in kept for one in (NEWER if file == FALLBACKS and not part.first else (file,))]


def command(session: Session, kernel: str, files: Sequence[str], part: Part) -> str:
    """For the guest's shell: its status is pytest's."""
    paths = " ".join(shlex.quote(f"/src/{file}") for file in files)
    whole = "export WHOLE=1\n" if part.first else ""
    return (
        f"export PYTHONDONTWRITEBYTECODE=1\n{whole}{session.before}\ncd /src || exit\n"
        f"/venv/bin/python -m pytest {session.options} --junitxml=/vm/junit-{session.name}.xml "
        f"-o junit_suite_name=vm-{kernel}-{session.name} -o junit_family=xunit1 --tb=short --durations=8 -v {paths}"
    )
