"""What others do, as the benchmarks time it: loops of our own with the peers' algorithms, settings and habits."""
