"""The constants of HPACK: the static table and the Huffman code (RFC 7541 appendices A and B).

Nothing but tables. The Huffman code is canonical: codes of one length follow each other in the order of
their symbols, shorter codes first. So the lengths alone say everything.
"""

from __future__ import annotations

from typing import Final

STATIC: Final[list[tuple[bytes, bytes]]] = [
    (b"", b""),  # index 0 means nothing and is never looked up
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
]
"""Index 1 to 61; the dynamic table follows."""

STATIC_LAST: Final = 61

EOS: Final = 256
"""The symbol that no string may contain; the bits of its code are the padding."""

# Symbols by the length of their code, in bits. 0 to 255 are bytes, 256 is EOS.
SYMBOLS_BY_LENGTH: Final[dict[int, list[int]]] = {
    5: [*b"012aceiost"],
    6: [*b" %-./3456789=A_bdfghlmnpru"],
    7: [*b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"],
    8: [*b"&*,;XZ"],
    10: [*b'!"()?'],
    11: [*b"'+|"],
    12: [*b"#>"],
    13: [*b"\x00$@[]~"],
    14: [*b"^}"],
    15: [*b"<`{"],
    19: [92, 195, 208],
    20: [128, 130, 131, 162, 184, 194, 224, 226],
    21: [153, 161, 167, 172, 176, 177, 179, 209, 216, 217, 227, 229, 230],
    22: [
        *(129, 132, 133, 134, 136, 146, 154, 156, 160, 163, 164, 169, 170),
        *(173, 178, 181, 185, 186, 187, 189, 190, 196, 198, 228, 232, 233),
    ],
    23: [
        *(1, 135, 137, 138, 139, 140, 141, 143, 147, 149, 150, 151, 152, 155, 157),
        *(158, 165, 166, 168, 174, 175, 180, 182, 183, 188, 191, 197, 231, 239),
    ],
    24: [9, 142, 144, 145, 148, 159, 171, 206, 215, 225, 236, 237],
    25: [199, 207, 234, 235],
    26: [192, 193, 200, 201, 202, 205, 210, 213, 218, 219, 238, 240, 242, 243, 255],
    27: [203, 204, 211, 212, 214, 221, 222, 223, 241, *range(244, 249), 250, 251, 252, 253, 254],
    28: [*range(2, 9), 11, 12, *range(14, 22), *range(23, 32), 127, 220, 249],
    30: [10, 13, 22, EOS],
}


def huffman_codes() -> dict[int, tuple[int, int]]:
    """Symbol to (code, its length in bits)."""
    codes: dict[int, tuple[int, int]] = {}
    code = 0
    last = 5
    for length, symbols in SYMBOLS_BY_LENGTH.items():
        code <<= length - last
        last = length
        for symbol in symbols:
            codes[symbol] = (code, length)
            code += 1
    return codes
