"""Where data can be lost: each place by stage and reason, with the counters that count it there.

A table: what the metrics, the statistics block and the line of health tell of losses all comes from it.
"""

from __future__ import annotations

from typing import NamedTuple


class Loss(NamedTuple):
    """Where data can be lost, and which counters count it (None: not counted in that unit)."""

    stage: str
    reason: str
    region: str
    counter: str | None
    byte_counter: str | None


LOSSES: tuple[Loss, ...] = (
    Loss("ring", "ring_full", "kernel", "ring_full_data_records", "ring_full_data_bytes"),
    Loss("ring", "control_ring_full", "kernel", "ring_full_control", None),
    Loss("ring", "process_ring_full", "kernel", "process_ring_full", None),
    Loss("kernel", "overload", "kernel", "shed_exchanges", None),
    Loss("kernel", "fault", "kernel", "fault_records", "fault_bytes"),
    Loss("kernel", "oversize", "kernel", None, "oversize_bytes"),
    Loss("kernel", "call_table_full", "kernel", "call_table_full", None),
    Loss("kernel", "call_unmatched", "kernel", "call_unmatched", None),
    Loss("kernel", "conn_table_full", "kernel", "conn_table_full", None),
    Loss("kernel", "cookie_table_full", "kernel", "cookie_table_full", None),
    Loss("kernel", "flow_table_full", "kernel", "flow_table_full", None),
    Loss("kernel", "flow_evicted", "supervisor", "flows_evicted", None),
    Loss("worker", "gap", "worker", "gaps", "gap_bytes"),
    Loss("worker", "conn_evicted", "worker", "connections_evicted", None),
    Loss("worker", "body_shed", "worker", None, "body_bytes_shed"),
    Loss("worker", "queue_full", "worker", "output_dropped_frames", "output_dropped_bytes"),
    Loss("worker", "deferred_queue_full", "worker", "deferred_queue_full", None),
    Loss("worker", "restart", "supervisor", "worker_restarts", None),
    Loss("api", "restart", "supervisor", "api_restarts", None),
    Loss("subscriber", "body_shed", "api", "subscriber_lost_bodies", None),
    Loss("subscriber", "queue_full", "api", "subscriber_lost_items", None),
    Loss("history", "queue_full", "api", "history_dropped", None),
)
"""A loss may show at two stages: a full ring also leaves a gap in the stream that the worker parses."""
