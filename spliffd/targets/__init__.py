"""Which files hold TLS code, and at which instructions to probe it."""
