"""The command line of `python -m service`: classify, label, and a chart of a stream."""
