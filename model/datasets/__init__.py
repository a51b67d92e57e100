"""Data sets of sequences: built-in ones, and readers for your own files."""
