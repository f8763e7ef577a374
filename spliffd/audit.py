"""What the journal is told when somebody uses a role: made by the api, written by the supervisor.

Travels as the payload of an ``ipc.Query`` called ``Audit``, encoded like the query itself.
"""

from __future__ import annotations

import msgspec


class Audited(msgspec.Struct, array_like=True):
    """Somebody asked for what takes a role: who (as the kernel says), what for, and what came of it.

    ``what`` is "reveal" (secrets; ``filter`` says of what) or "debug" (the debug log; ``filter`` is on or
    off). Of somebody with a certificate only the ``name`` in it is known, and ``uid`` is -1.
    """

    uid: int
    pid: int
    granted: bool
    reason: str
    filter: str
    name: str = ""
    what: str = "reveal"


decode = msgspec.msgpack.Decoder(Audited).decode
