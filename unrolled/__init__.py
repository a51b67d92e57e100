"""The command `unrolled`: `model` and `service` as one tool.

Import the client from `service.client`. In a wheel the shipped bundles are in this folder.
"""
