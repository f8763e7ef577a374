"""Virtual machines of Debian, and the tests that run in them."""
