"""The command line of `python -m model`: arguments, tables, progress bars."""
