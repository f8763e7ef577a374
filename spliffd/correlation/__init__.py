"""TLS connections, their two byte streams, and the socket they belong to."""
