"""What bodies are: content codings undone within limits, types told from bytes. For daemon and client."""
