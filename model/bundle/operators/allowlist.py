"""Check the files of a bundle before an engine opens them.

Digests prove that a bundle is as its author wrote it, not that the author means well.
A recurrent network needs few operators, so a bundle with any other operator is refused,
and the operator named. An unknown file is refused too: TensorFlow looks for some files
by their names.
"""

import re

from model.bundle import vocabulary
from model.bundle.bundle import (
    GOLDEN,
    INT8,
    INT8_GOLDEN,
    NETWORK,
    REPORT,
    SEQUENCES,
    Bundle,
    BundleError,
)
from model.bundle.operators import onnx_ops, tensorflow_ops

GRAPH = "saved_model.pb"
CHECKS = {
    GRAPH: tensorflow_ops.check,
    NETWORK.as_posix(): onnx_ops.check,
    INT8.as_posix(): onnx_ops.check,
}
# Weights and arrays: TensorFlow and NumPy read them as numbers only.
ARRAYS = "|".join(re.escape(p.as_posix()) for p in (GOLDEN, INT8_GOLDEN, SEQUENCES))
NUMBERS = (
    rf"fingerprint\.pb|variables/variables\.(index|data-\d{{5}}-of-\d{{5}})|{ARRAYS}"
)
REPORTS = rf"{re.escape(REPORT.as_posix())}/[^/]+"
KNOWN = re.compile(f"{NUMBERS}|{REPORTS}|{re.escape(vocabulary.FILE.as_posix())}")
# Size limits of parsed files. A SavedModel's graph holds no weights, and a few bytes of it
# take hundreds in memory; the project's own have some 200 KB.
MAX_BYTES = {GRAPH: 4 * 2**20}
PROTOBUF_LIMIT = 2**31 - 1


def check(bundle: Bundle) -> None:
    """Refuse a bundle whose networks could do more than compute.

    Raises:
        BundleError: names the file and the operator.
    """
    for name in bundle.metadata.files:
        path = bundle.folder / name
        if name in CHECKS:
            try:
                max_bytes = MAX_BYTES.get(name, PROTOBUF_LIMIT)
                if path.stat().st_size > max_bytes:
                    raise ValueError(f"is longer than {max_bytes} bytes")
                CHECKS[name](bundle.content(name))
            except BundleError:
                raise
            except (ValueError, OSError) as error:
                raise BundleError(f"{path}: {error}") from None
        elif not KNOWN.fullmatch(name):
            raise BundleError(f"{path}: a bundle has no such file")
