"""Sans-IO parsers: bytes and time in, messages out."""
