"""Finding libraries through processes of our own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from spliffd.targets import discovery
from spliffd.targets.discovery import (
    attach_key,
    in_scope,
    is_library_name,
    known_library_files,
    open_file,
    pids_in_scope,
    scan,
)

LOAD = "import ctypes, sys; ctypes.CDLL(sys.argv[1]); print('ready', flush=True); sys.stdin.read()"


@pytest.fixture
def loader():
    """Starts processes that map a library and wait."""
    children = []

    def start(path):
        child = subprocess.Popen(
            [sys.executable, "-c", LOAD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        children.append(child)
        assert child.stdout.readline() == "ready\n"
        return child

    yield start
    for child in children:
        child.communicate(timeout=10)


@pytest.fixture
def copy(tmp_path, libssl):
    return shutil.copy(libssl, tmp_path / "libssl-private.so.3")


def test_a_library_is_found_once_with_everybody_who_maps_it(loader, copy):
    pids = [loader(copy).pid, loader(copy).pid]
    [candidate] = [c for c in scan(pids) if c.path == str(copy)]
    assert candidate.inode == os.stat(copy).st_ino
    assert sorted(m.pid for m in candidate.mappings) == sorted(pids)
    assert (candidate.deleted, candidate.executable) == (False, False)
    fd = open_file(candidate)
    try:
        with open(copy, "rb") as file:
            assert attach_key(fd) == attach_key(file.fileno())
    finally:
        os.close(fd)


def test_the_main_program_is_a_candidate_if_it_is_large(loader, copy, monkeypatch):
    child = loader(copy)
    program = os.path.realpath(f"/proc/{child.pid}/exe")
    found = {c.path: c for c in scan([child.pid])}
    assert os.stat(program).st_size >= discovery.MIN_EXECUTABLE
    assert found[program].executable
    monkeypatch.setattr(discovery, "MIN_EXECUTABLE", 1 << 40)
    assert program not in {c.path for c in scan([child.pid])}


def test_what_is_out_of_scope_is_not_a_candidate(loader, copy, tmp_path):
    pid = loader(copy).pid
    assert [c.path for c in scan([pid], paths=[f"{tmp_path}/*"])] == [str(copy)]
    assert str(copy) not in [c.path for c in scan([pid], exclude_paths=[f"{tmp_path}/*"])]


@pytest.mark.skipif(os.geteuid() != 0, reason="/proc/PID/map_files needs CAP_SYS_ADMIN")
def test_a_library_replaced_on_disk_is_opened_through_its_mapping(loader, copy, libssl):
    child = loader(copy)
    with open(copy, "rb") as file:
        key = attach_key(file.fileno())[:3]
    [before] = [c for c in scan([child.pid]) if c.path == str(copy)]
    os.rename(shutil.copy(libssl, f"{copy}.new"), copy)
    [after] = [c for c in scan([child.pid]) if c.path == str(copy)]
    assert (before.deleted, after.deleted) == (False, True)
    for candidate in (before, after):
        fd = open_file(candidate)
        assert attach_key(fd)[:3] == key
        os.close(fd)


def test_a_device_or_another_file_at_the_path_is_not_opened(loader, copy, tmp_path):
    [candidate] = [c for c in scan([loader(copy).pid]) if c.path == str(copy)]
    candidate.mappings = []
    os.rename(copy, tmp_path / "away")
    for replace in (lambda: os.mkfifo(copy), lambda: os.symlink("/dev/zero", copy)):
        replace()
        with pytest.raises(FileNotFoundError, match="another file by now"):
            open_file(candidate)
        os.unlink(copy)


def test_a_process_that_is_gone_is_no_error(loader, copy):
    child = loader(copy)
    [candidate] = [c for c in scan([child.pid]) if c.path == str(copy)]
    child.communicate(timeout=10)
    assert list(scan([child.pid, 0])) == []
    with pytest.raises(OSError, match=str(child.pid)):
        open_file(candidate)


def test_a_name_with_a_newline_is_read_as_it_is(loader, copy, tmp_path):
    odd = tmp_path / "libssl\nodd name.so"
    os.rename(copy, odd)
    assert str(odd) in [c.path for c in scan([loader(odd).pid])]


def test_processes_of_cgroups_and_nothing_else(tmp_path):
    """Directories stand for cgroups: what is read of them are cgroup.procs files."""
    for folder, pids in {"a": "11\n13\n", "a/b": "17\n", "a/b/c": "", "other": "19\n"}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "cgroup.procs").write_text(pids)
    (tmp_path / "threaded").mkdir()
    (tmp_path / "threaded" / "cgroup.threads").write_text("23\n29\n")
    assert pids_in_scope([str(tmp_path / "a")]) == {11, 13, 17}
    assert pids_in_scope([str(tmp_path / "a"), str(tmp_path / "other")]) == {11, 13, 17, 19}
    assert pids_in_scope([str(tmp_path / "a")], [str(tmp_path / "a/b")]) == {11, 13}
    assert pids_in_scope([str(tmp_path / "threaded")]) == {23, 29}
    assert pids_in_scope([str(tmp_path / "gone")]) == set()
    assert os.getpid() in pids_in_scope()


def test_globs_of_the_scope():
    assert in_scope("/usr/lib/libssl.so.3", [], [])
    assert in_scope("/opt/app/lib/libssl.so.3", ["/opt/*"], [])
    assert not in_scope("/usr/lib/libssl.so.3", ["/opt/*"], [])
    assert not in_scope("/opt/app/lib/libssl.so.3", ["/opt/*"], ["*/app/*"])


@pytest.mark.parametrize("name", ["libssl.so.3", "libssl.so.1.1", "libssl-3a880ada.so.1.1", "libssl3.so"])
def test_names_worth_a_look(name):
    assert is_library_name(f"/usr/lib/{name}")
    assert not is_library_name(f"/usr/lib/x{name}")


def test_libraries_that_nobody_maps_yet_are_known(libssl):
    paths = [c.path for c in known_library_files()]
    assert str(libssl) in paths
    assert len(paths) == len(set(paths))
    [candidate] = known_library_files(paths=[str(libssl)])
    os.close(open_file(candidate))
    assert known_library_files(exclude_paths=["*"]) == []
