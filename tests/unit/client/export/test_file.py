"""The file of -w: whole at any time, under its name only when complete, in series, and on a full disk."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import stat
from pathlib import Path

import pytest

from spliffctl.errors import FileError
from spliffctl.export.file import ExportFile, Layout, Rotation, parse_rotation


class Counted:
    """A format with all three parts; its tail tells how many items came before."""

    def __init__(self):
        self.items = 0

    def layout(self) -> Layout:
        return Layout(self.head, lambda: b"(end)", lambda: b"|%d|" % self.items)

    def head(self) -> bytes:
        self.items = 0
        return b"head"

    def item(self, size: int = 4) -> bytes:
        self.items += 1
        return b"i" * size


def temporaries(folder: Path) -> list[Path]:
    return list(folder.glob(".*.part"))


def test_it_is_whole_at_any_time_and_named_at_the_end(tmp_path):
    form = Counted()
    file = ExportFile(str(tmp_path / "out.har"), form.layout())
    (temporary,) = temporaries(tmp_path)
    assert temporary.read_bytes() == b"head|0|"
    file.write(form.item())
    assert temporary.read_bytes() == b"headiiii|1|"
    assert not (tmp_path / "out.har").exists()
    file.write(form.item())
    file.finish()
    assert (tmp_path / "out.har").read_bytes() == b"headiiiiiiii(end)|2|"
    assert temporaries(tmp_path) == []
    assert file.names == [str(tmp_path / "out.har")]


def test_only_its_owner_may_read_it(tmp_path):
    file = ExportFile(str(tmp_path / "out"), Layout())
    file.finish()
    assert stat.S_IMODE(os.stat(tmp_path / "out").st_mode) == 0o600


def test_a_file_of_before_is_there_until_the_new_one_is_complete(tmp_path):
    (tmp_path / "real").write_text("before")
    (tmp_path / "link").symlink_to("real")
    file = ExportFile(str(tmp_path / "link"), Layout())
    file.write("text \ud800")
    assert (tmp_path / "link").read_text() == "before"
    file.finish()
    assert (tmp_path / "real").read_text() == "text \\ud800"
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("name", ["missing/out", "folder"])
def test_a_place_that_cannot_be_written(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileError, match="cannot write"):
        ExportFile(str(tmp_path / name), Layout())
    assert temporaries(tmp_path) == []


def test_rotation_by_size(tmp_path):
    form = Counted()
    file = ExportFile(str(tmp_path / "out.har"), form.layout(), Rotation(bytes=100))
    for _ in range(5):
        file.write(form.item(60))
    file.finish()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == file.count == 3
    for number, name in enumerate(names, 1):
        assert re.fullmatch(rf"out-\d{{8}}T\d{{6}}-000{number}\.har", name)
    data = [(tmp_path / name).read_bytes() for name in names]
    assert [one[:4] for one in data] == [b"head"] * 3
    assert [one[-8:] for one in data] == [b"(end)|2|", b"(end)|2|", b"(end)|1|"]


def test_a_series_never_replaces_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda *_: "NOW")
    (tmp_path / "out-NOW-0001.har").write_text("of another")
    file = ExportFile(str(tmp_path / "out.har"), Layout(), Rotation(bytes=100))
    file.write("mine")
    file.finish()
    assert (tmp_path / "out-NOW-0001.har").read_text() == "of another"
    assert (tmp_path / "out-NOW-0002.har").read_text() == "mine"


async def test_rotation_by_time_needs_no_traffic(tmp_path):
    file = ExportFile(str(tmp_path / "out"), Layout(), Rotation(seconds=0.05))
    file.write("first")
    deadline = asyncio.get_running_loop().time() + 30
    while not file.count and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0.01)
    file.write("second")
    file.finish()
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["first", "second"]


def test_something_else_than_a_file_is_written_directly(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    form = Counted()
    file = ExportFile(str(tmp_path / "fifo"), form.layout())
    file.write(form.item())
    file.finish()
    assert os.read(reader, 100) == b"headiiii(end)|1|"
    os.close(reader)
    with pytest.raises(FileError, match="--rotate needs regular files"):
        ExportFile("/dev/null", Layout(), Rotation(bytes=100))


@pytest.fixture
def no_room():
    """Files of this process may have 64 KiB, which fails as a full disk does: in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_where_there_is_no_room_what_came_before_is_kept(tmp_path, no_room):
    form = Counted()
    file = ExportFile(str(tmp_path / "out.har"), form.layout())
    for _ in range(13):
        file.write(form.item(5000))
    with pytest.raises(FileError, match=r"File too large; what came before is in .*out\.har") as caught:
        file.write(form.item(5000))
    assert caught.value.exit_code == 74
    with pytest.raises(FileError):
        file.write(b"more")
    file.finish()  # it was told, and there is nothing left to do
    assert re.fullmatch(rb"head(i{5000}){13}\|\d\d\|", (tmp_path / "out.har").read_bytes())
    assert temporaries(tmp_path) == []


async def test_a_problem_that_a_timer_met_is_told_at_the_end(tmp_path):
    (tmp_path / "folder").mkdir()
    file = ExportFile(str(tmp_path / "folder/out"), Layout(), Rotation(seconds=0.01))
    file.write("first")
    for path in (tmp_path / "folder").iterdir():
        path.unlink()
    (tmp_path / "folder").rmdir()
    await asyncio.sleep(0.05)
    with pytest.raises(FileError, match="cannot"):
        file.finish()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100M", Rotation(bytes=100 << 20)),
        ("4K", Rotation(bytes=4096)),
        ("1 GiB", Rotation(bytes=1 << 30)),
        ("10m", Rotation(seconds=600)),
        ("1h30m", Rotation(seconds=5400)),
    ],
)
def test_rotation_as_people_write_it(text, expected):
    assert parse_rotation(text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [("100", "no unit"), ("1K", "too small"), ("10ms", "too short"), ("soon", "neither"), ("10k", "neither")],
)
def test_what_is_no_rotation(text, why):
    with pytest.raises(ValueError, match=why):
        parse_rotation(text)
