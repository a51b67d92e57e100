"""The service's own API: `/classify`, `/label`, `/stream`, models, health, the page.

A request comes in from `http`. `predict` chooses a model (`registry`), parses the body
(`codecs`), has the sequences computed (`pool`), and encodes the response.
"""
