"""Who asks, what is held for them, and whose turn it is."""
