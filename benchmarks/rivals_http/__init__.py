"""The other servers of `benchmarks.peers`: their environments, their serving code, and one load for all."""
