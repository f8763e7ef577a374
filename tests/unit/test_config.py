"""Configuration: TOML in, a frozen Config out, or one line that names the key."""

from __future__ import annotations

import tomllib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliffd import config
from spliffd.config import Capture, Config, Metrics, Scope
from spliffd.errors import UsageError


def test_nothing_is_the_default():
    assert config.parse("", "x") == Config()
    assert Config().metrics.listen == "127.0.0.1:9469"
    assert Config().socket == "/run/spliff/spliffd.sock"
    assert Config().scope.is_empty()


def test_what_is_said_and_nothing_else_changes():
    found = config.parse('debug = true\n[capture]\nworkers = 2\n[scope]\nusers = ["www-data", "33"]\n', "x")
    assert found == Config(debug=True, capture=Capture(workers=2), scope=Scope(users=["www-data", "33"]))
    assert not found.scope.is_empty()


def test_a_config_does_not_change():
    with pytest.raises(AttributeError):
        Config().debug = True  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("colour = 1", "file: Object contains unknown field `colour`"),
        ("[scope]\ncgroup = []", "unknown field `cgroup` - at `$.scope`"),
        ("debug = 1", "Expected `bool`, got `int` - at `$.debug`"),
        ("[scope]\nusers = [33]", "Expected `str`, got `int` - at `$.scope.users["),
        ("scope = 1", "Expected `object`, got `int` - at `$.scope`"),
        ("debug =", "file: not valid TOML"),
        ("[capture]\nunwatched = 'no'", 'capture.unwatched is "no"'),
        (
            "[capture]\nunwatched_rate = -1",
            "capture.unwatched_rate is -1 – use 0 (never leave any out) to 1000000",
        ),
        ("[capture]\nring_mib = 0", "capture.ring_mib is 0"),
        ("[capture]\nring_mib = 512", "capture.ring_mib is 512"),
        ("[capture]\nworkers = 17", "capture.workers is 17 – use 1 to 16"),
        (
            "[interfaces]\nmode = 'everywhere'",
            'interfaces.mode is "everywhere" – use one of auto, tc, clsact, xdp, xdp-generic, off',
        ),
        ("[interfaces]\ninclude = 'eth*'", "Expected `array`, got `str` - at `$.interfaces.include"),
        ("[access]\nqueue_mib = 0", "access.queue_mib is 0 – use 1 to 1024"),
        ("[access]\nqueue_mib = 1025", "access.queue_mib is 1025"),
        ("[metrics]\nlisten = ''", 'metrics.listen is ""'),
    ],
)
def test_what_is_wrong_is_named(text, says):
    with pytest.raises(UsageError) as caught:
        config.parse(text, "file")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9469", ("127.0.0.1", 9469)),
        ("[::1]:9469", ("::1", 9469)),
        ("localhost:0", ("localhost", 0)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
    ],
)
def test_addresses(text, address):
    assert config.parse_address(text, "x") == address


@pytest.mark.parametrize(
    "text", ["", ":", "9469", "host", "host:", ":9469", "host:-1", "host:65536", "host:x", "host:²"]
)
def test_no_addresses(text):
    with pytest.raises(UsageError, match="use ADDR:PORT"):
        config.parse_address(text, "x")


def test_files(tmp_path):
    file = tmp_path / "spliffd.toml"
    file.write_text("debug = true\n")
    assert config.load(file).debug
    with pytest.raises(UsageError, match=r"none\.toml: no such file"):
        config.load(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        config.load(tmp_path)
    file.write_bytes(b"# \xff")
    with pytest.raises(UsageError, match="not UTF-8 text, from byte 2 on"):
        config.load(file)


def test_the_default_file_may_be_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "none.toml")
    assert config.load(None) == Config()
    (tmp_path / "none.toml").write_text("debug = true")
    assert config.load(None).debug


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
lists = st.lists(texts, max_size=3)


@given(
    st.builds(
        Config,
        socket=texts,
        debug=st.booleans(),
        scope=st.builds(Scope, lists, lists, lists, lists, lists, lists),
        capture=st.builds(Capture, ring_mib=st.sampled_from([1, 256]), workers=st.integers(1, 16)),
        metrics=st.sampled_from([Metrics("off"), Metrics("[::1]:80")]),
    )
)
def test_what_is_shown_is_the_same_configuration(found):
    shown = config.show(found)
    assert config.parse(shown, "shown") == found
    # Every key is there, defaults included.
    assert tomllib.loads(shown).keys() == msgspec.to_builtins(found).keys()
