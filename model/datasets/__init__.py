"""Sets of sequences: those that come with the package, and files of your own."""
