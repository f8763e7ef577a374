"""spliffd: shows what a Linux host says over TLS, tied to process, socket and packets.

The folders follow the data: ``kernel`` -> ``correlation`` -> ``protocols`` -> ``api``; ``supervisor``
is the map of how they are put together.
"""

__version__ = "0.10.0"
