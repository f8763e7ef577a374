"""What runs on which kernel of a run: together everything, and on one kernel alone all of it."""

from __future__ import annotations

import pytest

from tests.vm.sessions import AT_LENGTH, FALLBACKS, NEWER, SESSIONS, Part, Session, command, files

KERNELS = ("6.1", "6.12")


def on(kernel: str, kernels: tuple[str, ...] = KERNELS, *, everything: bool = False) -> set[str]:
    part = Part.of(kernel, kernels, everything=everything)
    return {file for session in SESSIONS for file in files(session, part, None)}


EVERYTHING = {file for session in SESSIONS for file in session.files}


def test_what_takes_long_runs_when_all_is_asked_for():
    left = EVERYTHING - on("6.1") - on("6.12")
    assert left == {file for file in EVERYTHING if any(name in file for name in AT_LENGTH)}
    assert len(left) == len(AT_LENGTH)


def test_the_newer_kernel_has_the_fall_backs_that_the_first_lacks():
    assert FALLBACKS in on("6.1")
    assert not set(NEWER) & on("6.1")
    assert set(NEWER) < on("6.12")
    assert FALLBACKS not in on("6.12")


@pytest.mark.parametrize("kernel", KERNELS)
def test_with_all_asked_for_each_kernel_has_everything(kernel: str):
    assert on(kernel, everything=True) == EVERYTHING


@pytest.mark.parametrize("kernel", KERNELS)
def test_each_kernel_has_the_package_the_tunnel_and_the_cards(kernel: str):
    for name in ("1_package", "2_hardening", "3_wireguard", "4_cards"):
        assert f"tests/vm/inside/test_{name}.py" in on(kernel)


def test_what_is_named_runs_wherever_it_is_asked_for():
    part = Part.of("6.12", KERNELS, everything=False)
    chosen = [file for session in SESSIONS for file in files(session, part, ["7_boot"])]
    assert chosen == ["tests/vm/inside/test_7_boot.py"]


@pytest.mark.parametrize(("kernel", "whole"), [("6.1", True), ("6.12", False)])
def test_counts_are_those_of_the_documentation_on_the_first_kernel(kernel: str, whole: bool):
    session: Session = SESSIONS[1]
    part = Part.of(kernel, KERNELS, everything=False)
    assert ("export WHOLE=1" in command(session, kernel, ["x"], part)) == whole
