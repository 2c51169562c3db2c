"""Files of a run: atomic writes, locks, checkpoints without code in them, random states."""
