"""HTTP, whatever the model: connections, limits, TLS, keys, bodies, errors.

Nothing here knows a model. Bytes come in, and requests go to an ASGI application.
"""
