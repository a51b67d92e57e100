"""The commands that call a service: `predict`, `classify`, `label` and `stream`.

In: a file or standard input. Out: a table, JSON lines, or a chart on a terminal.
"""
