"""Generated from proto/spliff.proto by `make proto`."""
