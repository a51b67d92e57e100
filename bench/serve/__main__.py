"""The former name of `python -m bench.serving`."""

from bench.serving.__main__ import main

main()
