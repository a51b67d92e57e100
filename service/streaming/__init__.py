"""Live streams: sequences whose frames come as they happen, over WebSocket or NDJSON.

Messages come in from a connection, through a handler, to a `Stream`. It has the model
compute them (`pool`), keeps the state between them, and encodes the answers (`codecs`).
"""
