"""An export to standard output: ``watch -o pcapng | wireshark -k -i -``.

Takes bytes batch by batch as the file of ``-w`` does, writes them to standard output behind the format's
head, and its tail at the end. A reader that went away ends the watch silently, as with text.
"""

from __future__ import annotations

import contextlib

from spliffctl.export.file import Layout
from spliffctl.output import Output, OutputClosedError


class ExportStream:
    """Standard output as the target of an export."""

    def __init__(self, output: Output, layout: Layout) -> None:
        self._output = output
        self._layout = layout
        output.write(layout.head())

    def write(self, data: bytes | str) -> None:
        """Appends a batch."""
        self._output.write(data)

    def finish(self) -> None:
        """Completes the format; nobody has to be there to read it."""
        with contextlib.suppress(OutputClosedError):
            self._output.write(self._layout.end() + self._layout.tail())
