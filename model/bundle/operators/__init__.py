"""The operators that a bundle may use: its networks compute, and nothing else."""
