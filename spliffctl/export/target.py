"""Where ``watch`` writes: standard output or the file of ``-w``, as text, JSON or a file format.

Takes the options, returns the printer that the stream feeds; ``finished`` completes the file whatever ends
the watch, and says on standard error what was written, what was lost, and what the format has no place for.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from spliffctl import units
from spliffctl.export.form import FORMS, SUFFIXES, make
from spliffctl.render.quote import quote

if TYPE_CHECKING:
    from spliffctl.export.file import ExportFile, Rotation
    from spliffctl.export.stream import ExportStream
    from spliffctl.items import Printer
    from spliffctl.output import Output
    from spliffctl.render.text import TextRenderer

__all__ = ["FORMS", "Target", "form_of", "refuse"]


def form_of(file: str | None) -> str:
    """The format that the name of ``-w`` stands for, else text."""
    return SUFFIXES.get(os.path.splitext(file or "")[1].lower(), "text")


def refuse(form: str, file: str | None, rotate: Rotation | None) -> None:
    """Usage errors for what cannot be meant."""
    if file == "":
        raise click.UsageError("-w needs the name of a file.")
    if rotate and file is None:
        raise click.UsageError("--rotate is about files: name one with -w.")
    if form in FORMS and file is None and make(form).binary and os.isatty(1):
        raise click.UsageError(f"{form} is not for a terminal: write it to a file with -w, or into a pipe.")


class Target:
    """One of three: standard output as it is, standard output as a file format, a file."""

    def __init__(self, form: str, file: str | None, rotate: Rotation | None, output: Output) -> None:
        self._output = output
        self._form = make(form) if form in FORMS else None
        self._json = form == "json"
        self._file: ExportFile | None = None
        self._stream: ExportStream | None = None
        if file is None and self._form is None:
            return
        from spliffctl.export.file import ExportFile, Layout

        layout = Layout(self._form.head, self._form.end, self._form.tail) if self._form else Layout()
        if file is not None:
            self._file = ExportFile(file, layout, rotate)
        else:
            from spliffctl.export.stream import ExportStream

            self._stream = ExportStream(output, layout)

    def printer(self, renderer: TextRenderer | None, *, bodies: bool, body_limit: int, count: int) -> Printer:
        """What turns items into bytes for this target."""
        if self._form is None:
            from spliffctl.items import ItemPrinter

            target = self._file or self._output
            return ItemPrinter(target, renderer, bodies=bodies, body_limit=body_limit, count=count)
        from spliffctl.export.printer import ExportPrinter

        into = self._file or self._stream
        assert into is not None, "a format has somewhere to go"
        return ExportPrinter(into, self._form, body_limit=body_limit, count=count)

    @contextlib.contextmanager
    def finished(self, printer: Printer) -> Iterator[None]:
        """Completes what was written, also when the watch fails."""
        try:
            yield
        finally:
            unfinished = self._file or self._stream
            if unfinished:
                unfinished.finish()
            self._tell(printer)

    def _tell(self, printer: Printer) -> None:
        facts = []
        if self._file:
            facts.append(f"{printer.totals} in {_names(self._file)}")
        for what, number in (self._form.left_out() if self._form else {}).items():
            if number:
                facts.append(f"{units.count(number, what)} left out: this format has no place for them")
        for fact in facts:
            print(f"spliffctl: {fact}", file=sys.stderr)


def _names(file: ExportFile) -> str:
    """``capture.har``, or how many files there are and the last one's name."""
    if not file.names:
        return "no file"
    last = quote(os.path.basename(file.names[-1]))
    return last if file.count == 1 else f"{file.count} files, the last is {last}"
