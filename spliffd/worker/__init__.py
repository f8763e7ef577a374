"""The worker: ring -> engine -> protocols -> batches for the api."""
