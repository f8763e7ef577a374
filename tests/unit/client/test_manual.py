"""The manual pages: one for each command, every option in it, nothing that roff would take for its own."""

from __future__ import annotations

import gzip
import importlib.util
import re
from pathlib import Path

import click
import pytest

from spliffctl.__main__ import COMMANDS, cli

SOURCE = Path(__file__).resolve().parents[3] / "packaging/deb/manual.py"


@pytest.fixture(scope="module")
def manual():
    spec = importlib.util.spec_from_file_location("manual", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(manual, tmp_path_factory):
    folder = tmp_path_factory.mktemp("man")
    manual.write(str(folder), 1_795_348_800)
    return {path.name[:-3]: gzip.decompress(path.read_bytes()).decode() for path in folder.rglob("*.gz")}


def test_every_command_has_a_page(pages):
    assert set(pages) == {"spliffctl.1", "spliffd.8", *(f"spliffctl-{name}.1" for name in COMMANDS)}
    for name, text in pages.items():
        assert text.startswith(f'.TH "{name[:-2].upper()}" "{name[-1]}" "2026-11-22" "spliff '), name
        assert "\n.SH NAME\n" in text, name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_in_it(pages, name):
    command = cli.get_command(click.Context(cli), name)
    text = pages[f"spliffctl-{name}.1"].replace("\\-", "-")
    for parameter in command.params:
        for option in parameter.opts if isinstance(parameter, click.Option) else ():
            assert re.search(rf"(?m)^\.B .*{re.escape(option)}\b", text), option


def test_no_line_is_taken_for_a_request(pages, manual):
    requests = {".TH", ".SH", ".TP", ".B", ".nf", ".fi"}
    for name, text in pages.items():
        for line in text.splitlines():
            assert not line.startswith("'"), (name, line)
            if line.startswith("."):
                assert line.split()[0] in requests, (name, line)
    assert manual.roff(".x -y\n'z \\n") == "\\&.x \\-y\n\\&'z \\en"


def test_the_daemons_help_is_in_its_page(pages):
    assert "spliffd config show" in pages["spliffd.8"]
    assert "\\-\\-scope\\-cgroup DIR" in pages["spliffd.8"]
