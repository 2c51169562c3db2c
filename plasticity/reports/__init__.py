"""Reports and comparisons from run folders alone."""
