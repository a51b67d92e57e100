"""The service's own API: `/classify`, `/label`, `/stream`, models, health, the page.

A request comes in from `http`; `predict` parses it (`codecs`), chooses a model (`registry`),
has it computed (`pool`), and writes the answer.
"""
