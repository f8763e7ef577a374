"""Rates of the statistics page, from counters as the daemon gives them."""

from __future__ import annotations

import pytest

from spliffctl.top.filtering import line_of, parse
from spliffctl.top.statistics import LENGTH, Rates, bars
from spliffd.pb import spliff_pb2 as pb


def counted(tied: int, timing: int, none: int) -> dict[str, float]:
    return {
        'spliff_exchanges_total{method="SOCKET_NESTED",wire="XDP"}': tied,
        'spliff_exchanges_total{method="PROCESS_TIMING",wire="NONE"}': timing,
        'spliff_exchanges_total{method="NONE",wire="NONE"}': none,
        "spliff_exchanges_total_of_another_name": 10**9,
        'spliff_lost_total{stage="ring"}': 4,
    }


def test_rates_and_shares():
    rates = Rates()
    rates.add(counted(100, 100, 100), 10.0)
    assert rates.rates["exchanges/s"].latest is None
    rates.add(counted(180, 110, 110), 12.0)
    assert rates.rates["exchanges/s"].latest == pytest.approx(50)
    assert rates.rates["lost/s"].latest == 0
    assert rates.shares["tied to a connection"].latest == pytest.approx(90)
    assert rates.shares["seen on the wire"].latest == pytest.approx(80)


def test_nothing_happened():
    rates = Rates()
    for now, tied in enumerate((5, 10, 10)):
        rates.add(counted(tied, 0, 0), float(now))
    share = rates.shares["tied to a connection"]
    assert share.latest is None
    assert list(share.points) == [100, 100]


def test_another_run_of_the_daemon_is_no_negative_rate():
    rates = Rates()
    rates.add(counted(100, 0, 0), 1.0)
    rates.add(counted(3, 0, 0), 2.0)
    assert rates.rates["exchanges/s"].latest is None
    rates.add(counted(8, 0, 0), 3.0)
    assert rates.rates["exchanges/s"].latest == 5


def test_bars():
    assert bars([0, 1, 50, 100], 10, 100) == " ▁▄█"
    assert bars([1, 2, 4], 2) == "▄█"
    assert bars([0, 0], 5) == "  "
    assert bars([1], 0) == bars([], 5) == ""


def test_series_are_bounded():
    rates = Rates()
    for now in range(LENGTH * 2):
        rates.add(counted(now, 0, 0), float(now))
    assert len(rates.rates["exchanges/s"].points) == LENGTH


def test_a_line_becomes_a_filter():
    assert parse("") == pb.Filter()
    assert parse("  response.status == 500") == pb.Filter(expression="response.status == 500")
    assert parse("--method get --filter 'a == \"b c\"'") == pb.Filter(
        methods=["GET"], expression='a == "b c"'
    )


@pytest.mark.parametrize("line", ["--nonsense", "--host", "--status x", "--host 'open", "--pid 1 word"])
def test_a_line_that_is_none(line):
    with pytest.raises(ValueError, match=r"."):
        parse(line)


def test_options_become_a_line_that_means_the_same():
    values = {"pids": (5, 6), "statuses": ((500, 599),), "hosts": ("a b*",), "expression": "x > 1"}
    line = line_of(values)
    assert line == "--pid 5 --pid 6 --host 'a b*' --status 500-599 --filter 'x > 1'"
    assert parse(line) == pb.Filter(
        pids=[5, 6], hosts=["a b*"], statuses=[pb.StatusRange(first=500, last=599)], expression="x > 1"
    )
    assert line_of({"expression": None}) == ""
