"""The models: bundles are loaded into the workers, looked up by name, and replaced.

It gets bundles from the folder of the settings and gives `Model`s to `api`, `compat` and
`streaming`.
"""
