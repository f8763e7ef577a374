"""The gRPC service, its subscribers, and the Prometheus endpoint."""
