"""What the commands of `python -m model` need."""
