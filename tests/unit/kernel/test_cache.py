"""Compiled programs are kept between starts, and believed only from files that only root could write."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from spliffd.errors import HostError
from spliffd.kernel import cache
from spliffd.kernel.compile import Compiled

RESULT = Compiled(code={"tls_enter": b"\xb7\0\0\0\0\0\0\0"}, offsets={"sk_net": 48}, bcc="0.26.0")


@pytest.fixture
def btf(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinux"
    path.write_bytes(b"\x9f\xeb")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each compile, by the type information it was for."""
    made: list[str] = []

    def compile_programs(_uid: int, _gid: int, btf: str) -> Compiled:
        made.append(btf)
        return RESULT

    monkeypatch.setattr(cache, "compile_programs", compile_programs)
    return made


def ask(btf: Path, folder: Path) -> tuple[Compiled, bool]:
    return cache.programs(1, 1, str(btf), folder)


def test_the_second_start_compiles_nothing(btf, folder, compiles):
    assert ask(btf, folder) == (RESULT, False)
    assert ask(btf, folder) == (RESULT, True)
    assert len(compiles) == 1


def test_another_kernel_is_another_result(btf, folder, compiles):
    ask(btf, folder)
    btf.write_bytes(b"another kernel's types")
    assert ask(btf, folder) == (RESULT, False)
    assert len(compiles) == 2


def test_another_compiler_is_another_result(btf, folder, compiles, monkeypatch):
    ask(btf, folder)
    monkeypatch.setattr(cache, "COMPILERS", str(btf))  # some other file in libbcc's place
    assert ask(btf, folder) == (RESULT, False)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_others_may_write_is_not_believed(btf, folder, compiles, what):
    ask(btf, folder)
    (file,) = folder.iterdir()
    (file if what == "file" else folder).chmod(0o777)
    assert ask(btf, folder) == (RESULT, False)


def test_a_link_is_not_followed(btf, folder, compiles):
    ask(btf, folder)
    (file,) = folder.iterdir()
    target = file.rename(file.with_name("elsewhere"))
    file.symlink_to(target)
    assert ask(btf, folder) == (RESULT, False)


@pytest.mark.parametrize("seed", range(17))
def test_a_damaged_file_costs_one_compile(btf, folder, compiles, seed):
    ask(btf, folder)
    (file,) = folder.iterdir()
    data = file.read_bytes()
    file.write_bytes(data[: random.Random(seed).randrange(len(data))])
    assert ask(btf, folder) == (RESULT, False)
    assert ask(btf, folder) == (RESULT, True)


def test_without_a_folder_every_start_compiles(btf, tmp_path, compiles):
    (tmp_path / "taken").write_text("a file, not a folder")
    for _ in range(2):
        assert ask(btf, tmp_path / "taken") == (RESULT, False)


def test_the_oldest_go(btf, folder, compiles):
    for kernel in range(cache.MAX_FILES + 3):
        btf.write_bytes(kernel.to_bytes(2, "little"))
        ask(btf, folder)
        os.utime(folder / f"{cache.key_of(str(btf))}.programs", ns=(kernel, kernel))
    assert len(list(folder.iterdir())) == cache.MAX_FILES
    assert ask(btf, folder) == (RESULT, True)


def test_missing_type_information_is_the_compilers_to_tell(tmp_path, folder):
    with pytest.raises(HostError, match="no kernel type information"):
        cache.programs(1, 1, str(tmp_path / "none"), folder)
