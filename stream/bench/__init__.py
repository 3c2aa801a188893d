"""Benchmarks that anyone can run: clips made on the spot, `unmask video` as users start it."""
