"""Says which TLS library a file holds, if any, and where to probe it: asks each kind's own module.

Takes an ``Image``; returns the first ``Inspection`` that is not "skipped". Nothing else is decided here.
"""

from __future__ import annotations

from spliffd.targets import golang, named, openssl
from spliffd.targets.elf import Image
from spliffd.targets.sites import Inspection

_KINDS = (openssl.inspect, named.inspect)


def inspect(image: Image, relocate: bool) -> Inspection:
    """What is in ``image``; ``relocate`` False: function entries only."""
    go = golang.inspect(image)
    if go is not None:
        return go
    skipped = Inspection("skipped", build_id=image.build_id, reason="no TLS library that is known")
    for kind in _KINDS:
        found = kind(image, relocate)
        if found.state != "skipped":
            return found
    return skipped
