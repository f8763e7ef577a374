"""Tokens: what they prove, for how long, and that nobody else can make them."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliffd.api.tokens import LIFE_NS, Identity, Peer, TokenError, Tokens, peer_of

NOW = 1_700_000_000_000_000_000


def test_a_token_proves_what_the_kernel_said():
    tokens = Tokens(1009)
    for peer, reveal in (
        (Peer(1000, 7, frozenset((1000, 1009))), True),
        (Peer(1000, 7, frozenset((1000,))), False),
        (Peer(0, 7, frozenset((0,))), True),
    ):
        token, expiry = tokens.issue(peer, NOW)
        assert tokens.read(token, NOW) == Identity(peer.uid, 7, reveal)
        assert expiry == NOW + LIFE_NS
        assert tokens.read(token, expiry).uid == peer.uid
        with pytest.raises(TokenError, match="older than 300 s"):
            tokens.read(token, expiry + 1)


def test_without_a_group_nobody_may_not_even_root():
    tokens = Tokens(None)
    token, _ = tokens.issue(Peer(0, 7, frozenset((0,))), NOW)
    assert not tokens.read(token, NOW).reveal


def test_tokens_of_another_run_are_void():
    token, _ = Tokens(1).issue(Peer(0, 7, frozenset()), NOW)
    with pytest.raises(TokenError, match="not genuine"):
        Tokens(1).read(token, NOW)


@given(st.data())
def test_no_other_text_is_a_token(data):
    tokens = Tokens(5)
    token, _ = tokens.issue(Peer(1000, 7, frozenset()), NOW)
    at = data.draw(st.integers(0, len(token) - 1))
    other = token[:at] + data.draw(st.characters().filter(lambda one: one != token[at])) + token[at + 1 :]
    for text in (
        other,
        data.draw(st.text()),
        token[:at],
        token + "0",
        "." + token,
        token.replace(".-.", ".r."),
    ):
        with pytest.raises(TokenError):
            tokens.read(text, NOW)


def test_the_kernel_says_who_the_peer_is():
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        peer = peer_of(ours)
    assert (peer.uid, peer.pid) == (os.getuid(), os.getpid())
    assert peer.groups == {os.getgid(), *os.getgroups()}
