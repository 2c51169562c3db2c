"""Observation of a running model: hooks, what they gather, and the reading that comes out of it."""
