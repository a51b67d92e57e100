"""The event loop's side of the workers: admission, sending jobs, replacing who died.

It speaks `worker.protocol` over a socket to each worker process.
"""
