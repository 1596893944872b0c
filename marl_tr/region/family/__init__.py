"""Published trust-region and proximal mechanisms, one module each."""
