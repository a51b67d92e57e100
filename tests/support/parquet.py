"""Parquet files that say less of themselves than they hold."""


def understate(path, number):
    """Write 7 in the place of a whole number wherever the footer of a file has it."""
    whole, honest = path.read_bytes(), _written(number, 0)
    begin = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    footer = whole[begin:]
    assert honest in footer
    path.write_bytes(whole[:begin] + footer.replace(honest, _written(7, len(honest))))


def _written(number, width):
    """A positive number as Thrift has it, in so many bytes at least."""
    left, out = 2 * number, bytearray()
    while left or len(out) < width:
        out.append(left & 127 | 128)
        left >>= 7
    out[-1] &= 127
    return bytes(out)
