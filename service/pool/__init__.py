"""The event loop's side of the workers: admission control, dispatch and supervision.

Jobs go to the worker processes over a socket each (`worker.protocol`).
"""
