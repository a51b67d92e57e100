"""Files of millions of sequences, computed on a Ray cluster."""
