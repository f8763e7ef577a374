"""spliffd's command line: argv in, settings and exit codes out. Nothing is started here."""

from __future__ import annotations

import tomllib

import pytest

from spliffd import __main__ as program
from spliffd import __version__
from spliffd.config import Metrics, Scope
from spliffd.errors import AlreadyRunningError, HostError, UsageError


def settings(*arguments: str):
    return program.settings(program.parser().parse_args(arguments))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "spliffd.toml"
    path.write_text(
        'socket = "/run/a.sock"\n[scope]\ncgroups = ["/a"]\nexclude_users = ["bob"]\n[metrics]\nlisten = "off"\n'
    )
    return str(path)


def test_the_file_speaks_where_the_command_line_is_silent(file):
    found = settings("--config", file)
    assert found.socket == "/run/a.sock"
    assert found.scope == Scope(cgroups=["/a"], exclude_users=["bob"])
    assert found.metrics == Metrics("off")
    assert not found.debug


def test_probes_stay_at_first_instructions_when_file_or_command_line_says_so(tmp_path):
    path = tmp_path / "spliffd.toml"
    path.write_text("[capture]\nrelocate = false\n")

    assert settings().capture.relocate
    assert not settings("--no-relocate").capture.relocate
    assert not settings("--config", str(path)).capture.relocate


def test_the_command_line_has_the_last_word(file):
    found = settings("--config", file, "--socket", "/b.sock", "--metrics", "[::1]:1", "-d")
    assert (found.socket, found.metrics.listen, found.debug) == ("/b.sock", "[::1]:1", True)


def test_a_scope_of_the_command_line_replaces_the_files(file):
    assert settings("--config", file, "--scope-user", "alice").scope == Scope(users=["alice"])
    found = settings(
        "--scope-cgroup", "/a", "--scope-cgroup", "/b", "--scope-path", "/opt/*", "--scope-exclude-path", "*.so.1",
        "--scope-exclude-cgroup", "/a/b", "--scope-exclude-user", "0",
    )  # fmt: skip
    assert found.scope == Scope(["/a", "/b"], [], ["/opt/*"], ["/a/b"], ["0"], ["*.so.1"])


def test_an_address_of_the_command_line_is_checked(file):
    with pytest.raises(UsageError, match=r"command line: metrics\.listen"):
        settings("--config", file, "--metrics", "9469")


def test_config_show_prints_what_would_be_used(file, capsys):
    assert program.run(["--config", file, "--metrics", "127.0.0.1:1", "config", "show"]) == 0
    shown = tomllib.loads(capsys.readouterr().out)
    assert (shown["socket"], shown["metrics"]["listen"]) == ("/run/a.sock", "127.0.0.1:1")


def test_config_check(file, capsys):
    assert program.run(["--config", file, "config", "check"]) == 0
    assert capsys.readouterr().out == "configuration is valid\n"


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (UsageError("a", "b"), "spliffd: a – b\n", 2),
        (HostError("a"), "spliffd: a\n", 3),
        (AlreadyRunningError("a", "b"), "spliffd: a – b\n", 4),
    ],
)
def test_problems_are_one_line_and_a_code(monkeypatch, capsys, error, line, code):
    def fail() -> int:
        raise error

    monkeypatch.setattr(program, "run", fail)
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == code
    assert capsys.readouterr().err == line


def test_version_and_usage(capsys):
    with pytest.raises(SystemExit) as ended:
        program.run(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"spliffd {__version__}\n"
    with pytest.raises(SystemExit) as ended:
        program.run(["config", "frobnicate"])
    assert ended.value.code == 2
