"""From sequences in files to a trained, calibrated and exported network."""
