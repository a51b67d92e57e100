"""The contract between training and serving: a folder that holds a network.

What may be in it, its golden answers, signatures and digests. Nothing here needs
TensorFlow, and the service imports little else of `model`.
"""

from model.bundle.bundle import (
    NETWORK,
    TOLERANCE,
    Bundle,
    BundleError,
    Metadata,
    find,
    names,
    read,
    seal,
    versions,
    writing,
)

__all__ = [
    "NETWORK",
    "TOLERANCE",
    "Bundle",
    "BundleError",
    "Metadata",
    "find",
    "names",
    "read",
    "seal",
    "versions",
    "writing",
]
