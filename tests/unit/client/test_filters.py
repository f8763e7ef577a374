"""What operators type becomes the filter they mean, or a message that says what to type."""

from __future__ import annotations

import pytest

from spliffctl import filters, units
from spliffctl.__main__ import main
from spliffd.pb import spliff_pb2 as pb


def kind(option: str) -> filters.Checked:
    return next(kind for name, _, kind, _ in filters.OPTIONS if name == option)


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("--pid", "1234", 1234),
        ("--status", "2xx", (200, 299)),
        ("--status", "4XX", (400, 499)),
        ("--status", "404", (404, 404)),
        ("--status", "400-499", (400, 499)),
        ("--method", "get", "GET"),
        ("--protocol", "h2", "http2"),
        ("--protocol", "WebSocket", "websocket"),
        ("--library", "OpenSSL", "openssl"),
        ("--port", "443", 443),
        ("--container", "ABCDEF012345", "abcdef012345"),
        ("--host", "*.example.com", "*.example.com"),
        ("--host", "2001:db8::1", "2001:db8::1"),
        ("--path", "/v1/*?page=*", "/v1/*?page=*"),
        ("--path", "*users*", "*users*"),
        ("--user", "1000", "1000"),
    ],
)
def test_what_is_meant(option, text, value):
    assert kind(option).check(text) == value


@pytest.mark.parametrize(
    ("option", "text", "says"),
    [
        ("--pid", "0", "'0' is not a number from 1 to 4194304"),
        ("--pid", "curl", "'curl' is not a number"),
        ("--pid", "-5", "'-5' is not a number"),
        ("--pid", "²", "is not a number"),
        ("--status", "20", "write 404, 2xx or 400-499"),
        ("--status", "499-400", "write 400-499"),
        ("--status", "099", "statuses begin at 100"),
        ("--method", "GET /", "is not a request method"),
        ("--protocol", "http3", "is not one of http1, http2, grpc, websocket, raw"),
        ("--library", "opensll", "is not one of openssl"),
        ("--port", "65536", "from 1 to 65535"),
        ("--container", "web", "hexadecimal"),
        ("--container", "abc", "at least 6 digits"),
        ("--host", "https://api.example.com", "more than a host"),
        ("--host", "api.example.com:8443", "write --host api.example.com --port 8443"),
        ("--path", "users", "write '/users' or '*users*'"),
        ("--comm", "", "it is empty"),
    ],
)
def test_what_cannot_be_meant(capsys, option, text, says):
    assert main(["watch", option, text]) == 2
    error = capsys.readouterr().err
    assert f"Invalid value for '{option}'" in error
    assert says in error


def test_the_filter_of_the_contract():
    values = {"pids": (1, 2), "statuses": ((200, 299), (404, 404)), "hosts": ("a", "b"), "methods": ("GET",)}
    assert filters.build(values) == pb.Filter(
        pids=[1, 2], hosts=["a", "b"], methods=["GET"],
        statuses=[pb.StatusRange(first=200, last=299), pb.StatusRange(first=404, last=404)],
    )  # fmt: skip


def test_every_field_of_the_filter_has_its_option_except_expressions():
    fields = {field.name for field in pb.Filter.DESCRIPTOR.fields} - {"expression"}
    assert {field for _, field, _, _ in filters.OPTIONS} == fields


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-o", "json", "-x"], "-x shapes text"),
        (["-o", "json", "-c"], "-c shapes text"),
        (["-c", "-b"], "cannot show bodies"),
        (["--pid", "5", "--", "true"], "watched by its own pid"),
        (["--for", "soon"], "is not a duration: write 30s"),
        (["--count", "0"], "is not a number from 1"),
        (["--body-limit", "0"], "leave -b away"),
        (["--nonsense"], "No such option"),
    ],
)
def test_contradictions_are_usage_errors(capsys, arguments, says):
    assert main(["watch", *arguments]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30),
        ("30s", 30),
        ("1.5s", 1.5),
        ("500ms", 0.5),
        ("5m", 300),
        ("1h", 3600),
        ("1h30m", 5400),
        ("2d", 172800),
    ],
)
def test_durations(text, seconds):
    assert units.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "5x", "5 m", "-5", "0", "0s", "m5", "1h30"])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="duration"):
        units.parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"), [("10", 10), ("4K", 4096), ("64KiB", 65536), ("1m", 1 << 20), ("2GB", 2 << 30)]
)
def test_sizes(text, size):
    assert units.parse_size(text) == size


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (12_400, "12 µs"), (294_300_000, "294.3 ms"), (999_949_999, "999.9 ms"), (999_960_000, "1.00 s"),
        (1_204_000_000, "1.20 s"), (125_000_000_000, "2 min 5 s"),
    ],
)  # fmt: skip
def test_durations_for_people(nanoseconds, text):
    assert units.duration(nanoseconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1234, "1.2 KiB"), ((1 << 20) - 1, "1.0 MiB"), (5 << 40, "5.0 TiB")],
)
def test_sizes_for_people(number, text):
    assert units.size(number) == text


def test_times_that_are_not_known_or_cannot_be():
    clock = units.Clock(utc=True)
    assert clock.time_of_day(0) == "--:--:--.---"
    assert clock.time_of_day(2**64 - 1).endswith(".709")
    assert clock.time_of_day(1_795_348_800_000_000_000) == "12:00:00.000"
