"""Benchmarks: the package's speed and memory, compared with programs that do the same."""
