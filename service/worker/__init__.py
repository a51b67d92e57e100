"""A worker process: schedules sequences in batches and runs the engine.

Nothing here knows HTTP. Jobs come in over a socket, answers go out.
"""
