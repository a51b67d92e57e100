"""From a data set to a trained, calibrated and evaluated network."""
