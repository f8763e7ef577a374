"""``spliffctl token``: a short-lived proof of who runs it, for gRPC clients other than spliffctl.

Takes the daemon's socket; prints the token. To be sent as metadata ``authorization: Bearer TOKEN`` with a
call that asks for secrets (``WatchRequest.reveal``).
"""

from __future__ import annotations

import click


@click.command(
    "token",
    epilog="""The daemon asks the kernel who runs this, so the token is yours and says nothing
else; it starts calls for five minutes. spliffctl watch --reveal fetches its own.

\b
Examples:
  TOKEN=$(spliffctl token)
  grpcurl -H "authorization: Bearer $TOKEN" ... spliff.v1.Spliff/Watch""",
)
@click.pass_obj
def command(path: str) -> int:
    """Print a token that proves who you are, for other gRPC clients."""
    from spliffctl import client

    click.echo(client.token(path))
    return 0
