"""A worker process: schedules sequences in batches and runs the inference engine.

Nothing here knows HTTP. Jobs come in over a socket (`protocol`), and results go out.
"""
