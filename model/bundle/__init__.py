"""The bundle, a folder that holds a network: written by training, read by the service.

Metadata, digests, golden answers, signatures, and the check that a network's graph only
computes. Nothing here imports TensorFlow. The service imports little else of `model`.
"""

from model.bundle.bundle import (
    NETWORK,
    TOLERANCE,
    Bundle,
    BundleError,
    names,
    read,
    seal,
    versions,
    writing,
)
from model.bundle.metadata import Metadata

__all__ = [
    "NETWORK",
    "TOLERANCE",
    "Bundle",
    "BundleError",
    "Metadata",
    "names",
    "read",
    "seal",
    "versions",
    "writing",
]
