"""Text and JSON output."""
