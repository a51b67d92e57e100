"""What may be in a bundle's files before an engine sees a byte of them.

Digests say that a bundle is as it was written, not that it was written in good faith.
A network that multiplies matrices needs few operators; a bundle that holds any
other is refused, by name. So is a file that no bundle has: TensorFlow looks for
some by their names.
"""

import re

from model.bundle import onnx_ops, tensorflow_ops
from model.bundle.bundle import GOLDEN, INT8, NETWORK, REPORT, Bundle, BundleError

GRAPH = "saved_model.pb"
CHECKS = {
    GRAPH: tensorflow_ops.check,
    NETWORK.as_posix(): onnx_ops.check,
    INT8.as_posix(): onnx_ops.check,
}
# Numbers: read by TensorFlow and NumPy as such, wherever they come from.
NUMBERS = rf"fingerprint\.pb|variables/variables\.(index|data-\d{{5}}-of-\d{{5}})|{re.escape(GOLDEN.as_posix())}"
SHOWN = rf"{re.escape(REPORT.as_posix())}/[^/]+"
KNOWN = re.compile(f"{NUMBERS}|{SHOWN}")
# Of a file that is parsed: Protocol Buffers' own limit. The graph has no weights in it,
# and a few of its bytes become hundreds in memory; ours have some 200 KB.
MAX_BYTES = {GRAPH: 4 * 2**20}
LIMIT = 2**31 - 1


def check(found: Bundle) -> None:
    """Refuse a bundle that could do more than compute.

    Raises:
        BundleError: names the file and the operator.
    """
    for name in found.metadata.files:
        path = found.folder / name
        if name in CHECKS:
            try:
                most = MAX_BYTES.get(name, LIMIT)
                if path.stat().st_size > most:
                    raise ValueError(f"is longer than {most} bytes")
                CHECKS[name](found.content(name))
            except BundleError:
                raise
            except (ValueError, OSError) as error:
                raise BundleError(f"{path}: {error}") from None
        elif not KNOWN.fullmatch(name):
            raise BundleError(f"{path}: no bundle has such a file")
