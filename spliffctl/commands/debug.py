"""``spliffctl debug on|off``: the daemon's debug log.

Takes on or off; proves who asks, because only root and the reveal group may. Prints what it was before.
"""

from __future__ import annotations

import click


@click.command(
    "debug",
    epilog="""\b
The log goes where the daemon's log goes: journalctl -u spliffd -f

\b
Examples:
  sudo spliffctl debug on
  sudo spliffctl debug off""",
)
@click.argument("state", type=click.Choice(["on", "off"]))
@click.pass_obj
def command(path: str, state: str) -> int:
    """Switch the daemon's debug log, for root and the reveal group."""
    from spliffctl import client
    from spliffd.pb import spliff_pb2

    question = spliff_pb2.SetDebugRequest(enabled=state == "on")
    proof = client.bearer(path)
    answer = client.call(
        path, lambda stub: stub.SetDebug(question, timeout=client.CALL_TIMEOUT_S, metadata=proof)
    )
    click.echo(f"debug log {state} (was {'on' if answer.was_enabled else 'off'})")
    return 0
