"""What a server answers when it is asked for more than it can: `python -m bench.overload`."""
