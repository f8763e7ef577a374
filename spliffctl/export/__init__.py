"""File formats other than text and JSON lines, and the files themselves; one format a module."""
