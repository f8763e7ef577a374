"""Rows of the list: what they say, and that they fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliffctl.top import lines
from spliffctl.units import Clock
from spliffd.pb import spliff_pb2 as pb

UTC = Clock(utc=True)


def text(exchange: pb.Exchange, width: int) -> str:
    return "".join(piece for piece, _ in lines.row(exchange, width, UTC)).rstrip()


def test_a_wide_terminal_has_room_for_milliseconds(build):
    exchange = build.exchange(process__comm="a-name-of-16-let")
    assert text(exchange, 120) == (
        "12:00:59.346 GET     200    294.3 ms  a-name-of-16-l…  api.example.com/users"
    )
    assert lines.heading(120) == "TIME         METHOD  STATUS     TOOK  PROCESS          URL"


def test_a_narrow_one_keeps_room_for_the_url(build):
    assert text(build.exchange(), 80) == "12:00:59 GET     200    294.3 ms  curl        api.example.com/users"
    assert lines.heading(80) == "TIME     METHOD  STATUS     TOOK  PROCESS     URL"


def test_what_is_not_whole_is_marked(build):
    exchange = build.exchange(completeness__state="response_missing")
    exchange.ClearField("response")
    assert "GET     -    ! 294.3 ms" in text(exchange, 80)


@pytest.mark.parametrize(
    ("status", "style"),
    [
        (0, "warning"),
        (101, "good"),
        (204, "good"),
        (302, "moved"),
        (404, "client-error"),
        (503, "server-error"),
    ],
)
def test_statuses_have_styles(status, style):
    assert lines.style_of(status) == style


@given(st.data(), st.integers(60, 200))
def test_every_row_fits_and_is_printable(build, data, width):
    exchange = data.draw(build.any_message(pb.Exchange, st.text(max_size=40)))
    exchange.duration_ns = data.draw(st.integers(0, 10**14))
    row = "".join(piece for piece, _ in lines.row(exchange, width, UTC))
    assert row.isprintable()
    assert len(row) <= width
