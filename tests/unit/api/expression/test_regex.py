"""Patterns against Python's own engine, the patterns that kill it, and the refusals."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spliffd.api.expression import regex
from spliffd.api.expression.regex import MAX_TEXT, RegexError, compile_regex

ATOMS = ["a", "b", "c", ".", "[ab]", "[^a]", "[a-c]", r"\d", r"\w", r"\s", r"\D", "é", r"\.", r"\x61", "-"]
atoms = st.sampled_from(ATOMS)


def extended(inner):
    repeated = st.builds(lambda part, mark: f"(?:{part}){mark}", inner, st.sampled_from("*+?"))
    counted = st.builds(
        lambda part, least, more: f"({part}){{{least},{least + more}}}",
        inner,
        st.integers(0, 3),
        st.integers(0, 2),
    )
    joined = st.builds("".join, st.lists(inner, min_size=1, max_size=3))
    choice = st.builds(lambda one, two: f"({one}|{two})", inner, inner)
    anchored = st.builds(
        lambda part, form: form.format(part), inner, st.sampled_from(["^{}", "{}$", "(^|b){}"])
    )
    return st.one_of(repeated, counted, joined, choice, anchored)


patterns = st.recursive(atoms, extended, max_leaves=6)
texts = st.text(st.sampled_from("aAbc.-1é \n\u2028"), max_size=12)


@settings(max_examples=400, deadline=None)
@given(patterns, st.lists(texts, min_size=1, max_size=8), st.booleans())
def test_it_finds_what_python_finds(pattern, several, fold):
    pattern = f"(?i){pattern}" if fold else pattern
    # Python's $ also matches before a last newline, and its classes are those of Unicode.
    oracle = re.compile(pattern.replace("$", r"\Z"), re.ASCII)
    search = compile_regex(pattern)

    for text in several:
        assert search(text) is bool(oracle.search(text)), (pattern, text)


@pytest.mark.parametrize("pattern", ["(a*)*b", "(a|aa)+$b", "(.*)*x(.*)*y", "(a|a)*b", "((a+)+)+b"])
def test_patterns_that_explode_elsewhere_look_at_each_character_once(pattern, monkeypatch):
    looked = 0

    class Counting(str):
        __slots__ = ()

        def __iter__(self):
            nonlocal looked
            for character in "a" * 10_007:
                looked += 1
                yield character

    assert compile_regex(pattern)(Counting("a" * 10_007)) is False
    assert looked == 10_007


def test_of_an_endless_text_only_the_begin_is_looked_at():
    search = compile_regex("b")

    assert search("a" * (MAX_TEXT - 1) + "b")
    assert not search("a" * MAX_TEXT + "b")


@pytest.mark.parametrize(
    ("pattern", "column", "why"),
    [
        ("a)", 1, "without its ("),
        ("x(a", 1, "without its )"),
        ("[a", 0, "without its ]"),
        ("ab**", 3, "repetition behind another"),
        ("a+?", 2, "repetition behind another"),
        ("*a", 0, "nothing to repeat"),
        ("^*", 1, "nothing to repeat"),
        ("[b-a]", 1, "goes from"),
        (r"[\d-a]", 1, "goes from"),
        (r"a\1", 1, "is not known"),
        (r"\bword", 0, "is not known"),
        ("(?=a)", 0, "there is only (?:"),
        ("(?P<n>a)", 0, "there is only (?:"),
        ("[[:alpha:]]", 1, "a-zA-Z"),
        ("a{", 1, "write {3}"),
        ("a{2,1}", 1, "from 0 to"),
        ("a{65}", 1, "from 0 to 64"),
        ("\\", 0, "is not known"),
        ("(" * 17 + ")" * 17, 16, "more than 16 groups"),
        ("a" * 513, 0, "513 characters"),
        ("((a{64}){64}){64}", 0, "too long once its repetitions"),
        ("(a|b)*a(a|b){12}", 0, "too complex"),
        ("x.{20}y", 0, "too complex"),
    ],
)
def test_what_it_cannot_do_is_refused_at_the_column(pattern, column, why):
    with pytest.raises(RegexError, match=re.escape(why)) as error:
        compile_regex(pattern)

    assert error.value.column == column


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from(r"ab()[]{}|*+?.^$\d-1,:"), max_size=24))
def test_any_text_is_a_pattern_or_refused(pattern):
    try:
        column, answer = 0, compile_regex(pattern)("ab1")
    except RegexError as error:
        column, answer = error.column, False

    assert 0 <= column <= len(pattern)
    assert answer in (True, False)


def test_no_table_is_larger_than_its_bound(monkeypatch):
    made = []
    matcher = regex._matcher
    monkeypatch.setattr(
        regex, "_matcher", lambda bounds, rows, *rest: made.append(rows) or matcher(bounds, rows, *rest)
    )
    wide = "[" + "".join(chr(1000 + 2 * n) for n in range(200)) + "]"
    for pattern in (wide, wide + "{20}", "[a-z]{60}$", "(abc|abd|xyz){20}"):
        with contextlib.suppress(RegexError):
            compile_regex(pattern)

    assert made
    assert all(sum(map(len, rows)) <= regex.MAX_CELLS for rows in made)
