"""The report beside a network: plots, figures, and a model card."""
