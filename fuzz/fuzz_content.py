"""Fuzzes what looks into bodies: masks of JSON, forms and multipart forms, codings, URLs, JSON layout.

The first byte chooses what, the second the size of the pieces, the rest is the body. Checked: no exception,
no byte more or less, the same whatever the pieces, bounded output, no secret of valid JSON in what comes out.

Run: .venv/bin/python fuzz/fuzz_content.py -max_total_time=60 fuzz/corpus/content
"""

from __future__ import annotations

import json
import sys

import atheris

from tests.support import pure

pure.sources_only()  # branches are counted in byte code

with atheris.instrument_imports(include=["spliffd.protocols", "spliffd.content", "spliffctl.render"]):
    from spliffctl.render.content import indented
    from spliffd.config import Access
    from spliffd.content.coding import CHUNK, Decoder
    from spliffd.protocols.mask_bodies import FormMask, JsonMask, MultipartMask
    from spliffd.protocols.mask_command import mask_command
    from spliffd.protocols.masking import Masker

MASKER = Masker(b"k" * 32, Access().mask_headers, Access().mask_fields)
CODINGS = ("gzip", "deflate", "br", "zstd", "gzip, br", "zstd, deflate")
LIMIT = 4 << 20


def masked(kind: type, data: bytes, size: int) -> bytes:
    mask = kind(MASKER)
    out = b""
    for at in range(0, len(data), size):
        out += mask.feed(data[at : at + size], at + size >= len(data))
    return out


def decoded(value: str, data: bytes, size: int) -> tuple[bytes, str]:
    decoder = Decoder(value, max_size=LIMIT, max_ratio=1 << 30)
    out = bytearray()
    for at in range(0, len(data), size):
        for piece in decoder.feed(data[at : at + size]):
            if len(piece) > 2 * CHUNK:
                raise AssertionError("a piece too large")
            out += piece
    if len(out) > LIMIT:
        raise AssertionError("more than the limit")
    return bytes(out), decoder.problem


def secrets_of(value: object, secret: bool) -> list[str]:
    """Long marked strings behind secret keys."""
    if isinstance(value, str):
        return [value] if secret and value.startswith("S3CR3T") else []
    if isinstance(value, list):
        return [found for one in value for found in secrets_of(one, secret)]
    if isinstance(value, dict):
        return [
            found
            for key, one in value.items()
            for found in secrets_of(one, secret or MASKER.is_field(key.encode("utf-8", "replace")))
        ]
    return []


def one_input(data: bytes) -> None:
    if len(data) < 3:
        return
    what, size, body = data[0] % 6, data[1] or 1, data[2:]
    if what < 3:
        kind = (JsonMask, FormMask, MultipartMask)[what]
        out = masked(kind, body, size)
        if len(out) != len(body):
            raise AssertionError(f"{len(body)} bytes became {len(out)}")
        if len(body) < 30_000 and out != masked(kind, body, 1 << 30):
            raise AssertionError("the pieces matter")
        if what == 0:
            try:
                document = json.loads(body)
            except (ValueError, RecursionError):
                return
            if secrets_of(document, False) and b"S3CR3T" in body:
                try:
                    left = secrets_of(json.loads(out), False)
                except (ValueError, RecursionError):
                    left = []
                if left:
                    raise AssertionError(f"not masked: {left}")
    elif what == 3:
        value = CODINGS[data[1] % len(CODINGS)]
        one, problem = decoded(value, body, 1 << 20)
        other, same = decoded(value, body, size)
        if not problem and not same and one != other:
            raise AssertionError("the pieces matter")
    elif what == 4:
        text = body.decode("latin-1")
        MASKER.path(text)
        MASKER.authority(text)
        mask_command(text, MASKER)
        MASKER.url(body)
    else:
        text = body.decode("utf-8", "backslashreplace")
        laid_out = "".join("".join(indented(text)).split())
        if laid_out != "".join(text.split()) and '"' not in text:
            raise AssertionError("indenting changed a token")


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
