"""The coverage ledger as metrics: processes that speak TLS, by whether it is seen decrypted, and why not.

Takes the supervisor's counters; returns families whose labels are words of ours, each there from the start.
"""

from __future__ import annotations

from collections.abc import Mapping

from spliffd.counters import REASONS
from spliffd.series import Family, Sample, counter


def families(supervisor: Mapping[str, int]) -> list[Family]:
    """What ``stages.ledger`` counts."""
    rows = [("covered", "", "processes_covered")]
    rows += [
        (covered, reason, f"processes_{covered}_{reason}")
        for covered in ("partly", "not")
        for reason in REASONS
    ]
    return [
        Family(
            "spliff_processes",
            "gauge",
            "Processes that speak TLS, by whether it is seen decrypted, and why not.",
            [
                Sample("", (("covered", covered), ("reason", reason)), supervisor[name])
                for covered, reason, name in rows
            ],
        ),
        counter(
            "spliff_processes_forgotten_total",
            "Processes that the coverage ledger had no more room for.",
            supervisor["processes_forgotten"],
        ),
    ]
