"""The work of other libraries, as it is timed: loops of our own with the peers' algorithms, settings and habits."""
