"""spliffctl: the unprivileged client of spliffd. Knows the contract (spliffd.pb), nothing else."""
