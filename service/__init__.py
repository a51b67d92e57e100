"""From a request's sequences to its answer, over HTTP."""
