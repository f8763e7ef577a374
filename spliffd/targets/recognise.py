"""Says which TLS library a file holds, if any, and where to probe it: asks each kind's own module.

Takes an ``Image``; returns the first ``Inspection`` that is not "skipped". What can
be probed goes first. Nothing else is decided here.
"""

from __future__ import annotations

from spliffd.targets import errors, golang, hidden, named, openssl
from spliffd.targets.elf import Image
from spliffd.targets.sites import Inspection

_KINDS = (openssl.inspect, named.inspect)


def inspect(image: Image, relocate: bool) -> Inspection:
    """What is in ``image``; ``relocate`` False: function entries only."""
    go = golang.inspect(image)
    if go is not None:
        return go
    for kind in _KINDS:
        found = kind(image, relocate)
        if found.state != "skipped":
            return found
    # What notes errors only is no TLS library, but says why the handshakes of one fail.
    return hidden.inspect(image) or errors.inspect(image, relocate)
