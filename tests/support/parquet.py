"""Parquet files whose footer understates their content."""


def understate(path, number):
    """Replace a number by 7 wherever it is in the footer of a file."""
    content, encoded = path.read_bytes(), _varint(number, 0)
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    footer = content[start:]
    assert encoded in footer
    footer = footer.replace(encoded, _varint(7, len(encoded)))
    path.write_bytes(content[:start] + footer)


def _varint(number, width):
    """A positive number as Thrift encodes it, in at least `width` bytes."""
    left, out = 2 * number, bytearray()
    while left or len(out) < width:
        out.append(left & 127 | 128)
        left >>= 7
    out[-1] &= 127
    return bytes(out)
