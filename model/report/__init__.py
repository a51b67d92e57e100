"""The report of a network: plots, metrics and the model card."""
