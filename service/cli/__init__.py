"""The commands that call a service: `classify`, `label` and `stream`.

In: a file or standard input. Out: JSON lines, or a chart on a terminal.
"""
