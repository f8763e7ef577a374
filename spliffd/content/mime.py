"""What a body is: its Content-Type, or what its first bytes say when they contradict it.

Takes a Content-Type value and the first bytes of a decoded body; returns a media type (RFC 6838) in lower
case without parameters. The table holds formats with an unmistakable beginning; a declared type is
contradicted only by one of them, and not when both are of one family (a .docx is a ZIP). Never raises.
"""

from __future__ import annotations

from typing import Final

SNIFFED: Final = 512
"""Bytes looked at: every signature is within the first 300."""

_MAGIC: Final = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (0, b"%PDF-", "application/pdf"),
    (0, b"PK\x03\x04", "application/zip"),
    (0, b"PK\x05\x06", "application/zip"),
    (0, b"\x1f\x8b\x08", "application/gzip"),
    (0, b"\x28\xb5\x2f\xfd", "application/zstd"),
    (0, b"BZh", "application/x-bzip2"),
    (0, b"\xfd7zXZ\x00", "application/x-xz"),
    (0, b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
    (0, b"Rar!\x1a\x07", "application/vnd.rar"),
    (0, b"\x7fELF", "application/x-elf"),
    (0, b"\x00asm", "application/wasm"),
    (0, b"wOFF", "font/woff"),
    (0, b"wOF2", "font/woff2"),
    (0, b"OTTO", "font/otf"),
    (0, b"\x00\x01\x00\x00\x00", "font/ttf"),
    (0, b"OggS", "application/ogg"),
    (0, b"fLaC", "audio/flac"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"\x1a\x45\xdf\xa3", "video/webm"),
    (0, b"\x00\x00\x01\x00", "image/x-icon"),
    (0, b"II*\x00", "image/tiff"),
    (0, b"MM\x00*", "image/tiff"),
    (0, b"SQLite format 3\x00", "application/vnd.sqlite3"),
    (4, b"ftypavif", "image/avif"),
    (4, b"ftyp", "video/mp4"),
    (8, b"WEBP", "image/webp"),
    (8, b"WAVE", "audio/wav"),
    (257, b"ustar", "application/x-tar"),
)
"""(offset, signature, type); the first that fits counts."""

_ANY: Final = ("", "application/octet-stream", "binary/octet-stream", "application/x-download", "text/plain")
"""Declared types that say nothing: servers send text/plain for what they do not know."""


def declared(content_type: str) -> str:
    """The media type of a Content-Type value, without parameters."""
    return content_type.partition(";")[0].strip().lower()


def from_bytes(data: bytes) -> str:
    """The type that the first bytes prove; "" when they prove none."""
    head = data[:SNIFFED]
    for offset, signature, kind in _MAGIC:
        if head.startswith(signature, offset):
            return kind
    return ""


def media_type(content_type: str, data: bytes) -> tuple[str, bool]:
    """(type, whether the bytes contradict what was declared)."""
    said = declared(content_type)
    seen = from_bytes(data)
    if not seen:
        return said, False
    if said in _ANY:
        return seen, False
    return (said, False) if _agree(said, seen) else (seen, True)


def _agree(said: str, seen: str) -> bool:
    family, _, kind = said.partition("/")
    if said == seen or kind.removeprefix("x-") == seen.partition("/")[2].removeprefix("x-"):
        return True
    if seen == "application/zip":
        # Office documents, Java archives, EPUB, Android packages: all ZIP inside.
        return family == "application" and "json" not in kind and "xml" not in kind.replace("openxml", "")
    if seen in ("video/mp4", "video/webm", "application/ogg"):
        return family in ("video", "audio") or kind in ("mp4", "webm", "ogg")
    if seen == "image/x-icon":
        return kind in ("vnd.microsoft.icon", "ico")
    if seen == "image/jpeg":
        return kind in ("jpg", "pjpeg")
    if seen.startswith("font/"):
        return "font" in kind or family == "font"
    return False
