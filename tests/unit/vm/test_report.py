"""docs/kernels.md: made from figures, and compared with other figures."""

from __future__ import annotations

from tests.vm import report

FIGURES = [
    {"kernel": "6.12.117+deb12-amd64", "subject": "doctor: attach", "text": "uprobe_multi"},
    {"kernel": "6.1.0-56-amd64", "subject": "doctor: attach", "text": "perf | event"},
    {"kernel": "6.1.0-56-amd64", "subject": "start", "text": "READY 9 s"},
]


def figure(kernel: str, subject: str, text: str) -> dict[str, str]:
    return {"kernel": kernel, "subject": subject, "text": text}


def test_a_column_for_each_series_oldest_first():
    page = report.page(FIGURES)
    assert "| | 6.1 | 6.12 |\n" in page
    assert "| doctor: attach | perf \\| event | uprobe_multi |\n" in page
    assert "| start | READY 9 s |\n" in page.partition("## Results")[2]


def test_the_page_agrees_with_what_it_was_made_from():
    assert report.differences(report.page(FIGURES), FIGURES) == []


def test_another_way_is_a_difference():
    (line,) = report.differences(report.page(FIGURES), [figure("6.1.0-57-amd64", "doctor: attach", "none")])
    assert line == "6.1, doctor: attach: the page has 'perf \\\\| event', found was 'none'"


def test_another_time_is_none_and_a_new_way_is_one():
    page = report.page(FIGURES)
    assert report.differences(page, [figure("6.1.0-56-amd64", "start", "READY 11 s")]) == []
    assert len(report.differences(page, [figure("6.1.0-56-amd64", "doctor: flows", "raw")])) == 1


def test_a_kernel_that_the_page_does_not_have_is_passed_over():
    assert report.differences(report.page(FIGURES), [figure("6.18.4", "doctor: attach", "other")]) == []


def test_what_is_said_twice_is_said_once():
    twice = [*FIGURES, FIGURES[0], figure("6.12.1", "doctor: attach", "and more")]
    assert report.cells(twice)["doctor: attach"]["6.12"] == "uprobe_multi<br>and more"
