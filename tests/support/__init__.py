"""What kernel and system tests, the demo and the bench share: a lab of their own, real servers, the daemon."""
