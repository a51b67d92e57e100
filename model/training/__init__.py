"""Train, calibrate and evaluate a network on a data set."""
