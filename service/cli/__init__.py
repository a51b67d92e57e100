"""What the commands of `python -m service` do."""
