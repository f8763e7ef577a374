"""Network interfaces: which packet hook each one gets."""
