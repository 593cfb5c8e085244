"""Finds damage of JPEGs that libjpeg decodes without a word: scans that are missing, and zeros within them.

A file that was cut between two scans and closed with an end marker decodes to coarser or grey pixels. Blocks of a disk
that were lost read as zeros, and Huffman codes find back to the right bits after them. Zeros are a code as any other:
here they are refused where no encoder writes so many, which depends on what the code of zeros stands for.
"""

from collections.abc import Iterable

# Code of a marker, its place, where its segment starts, with the length, and ends.
Segment = tuple[int, int, int, int]

SEQUENTIAL, PROGRESSIVE = (0xC0, 0xC1), 0xC2  # Huffman-coded frames (ITU T.81, B.1)
TABLES, SCAN, END = 0xC4, 0xDA, 0xD9
# What the code of zeros stands for in the tables of ITU T.81, K.3, which files without tables use: class and number of
# the table -> symbol. 1 is a coefficient, which is -1 as its bit is 0; 0 is the end of a block, or no difference.
USUAL_SYMBOLS = {0x00: 0, 0x01: 0, 0x10: 1, 0x11: 0}
AC_CLASS = 0x10
NUM_COEFFICIENTS = 64
# Bytes of zeros. Two whole blocks of coefficients of -1 are fewer than the first; the second are a long even gradient,
# or all bits that correct what earlier scans said, of which libjpeg writes 1000 together.
MAX_ZEROS, MAX_PLAIN_ZEROS = 47, 255


def require_sound_scans(content: bytes, segments: Iterable[Segment]) -> None:
    """Checks the scans of a JPEG that libjpeg decoded without a warning.

    Args:
        content: the file.
        segments: its segments, up to the end marker.

    Raises:
        ValueError: a scan is missing or has a block of zeros; the message states which.
    """
    try:
        _check_scans(content, segments)
    except (IndexError, KeyError):  # of a table, a component or a length that nothing before has stated
        raise ValueError('the segments of the JPEG contradict each other') from None


def _check_scans(content: bytes, segments: Iterable[Segment]) -> None:
    has_zeros = bytes(MAX_ZEROS + 1) in content
    symbols, missing_bits = dict(USUAL_SYMBOLS), dict[int, list[int]]()
    limit, scan_end, kind = None, 0, 0
    for marker, place, start, end in segments:
        if limit is not None and bytes(limit + 1) in content[scan_end:place].rstrip(b'\0'):
            raise ValueError(f'a scan of the JPEG has a block of more than {limit} zeros')
        limit = None
        body = content[start + 2 : end]
        if marker in (*SEQUENTIAL, PROGRESSIVE):
            kind = marker
            missing_bits = {body[6 + 3 * one]: [NUM_COEFFICIENTS] * NUM_COEFFICIENTS for one in range(body[5])}
        elif marker == TABLES:
            symbols |= _symbols_of_zeros(body)
        elif marker == SCAN and missing_bits:
            tables = {body[1 + 2 * one]: body[2 + 2 * one] for one in range(body[0])}
            first, last, bits = body[1 + 2 * body[0] : 4 + 2 * body[0]]
            if kind == PROGRESSIVE:
                for component in tables:
                    missing_bits[component][first : last + 1] = [bits & 15] * (last + 1 - first)
            else:
                missing_bits |= {component: [0] for component in tables}
                if not has_zeros and len(tables) == len(missing_bits):
                    return  # The only scan: looking for the end marker takes time.
            if has_zeros:
                limit = _most_zeros(tables.values(), symbols, first=first, earlier=bits >> 4, kind=kind)
            scan_end = end
    if any(any(bits) for bits in missing_bits.values()):
        raise ValueError('scans of the JPEG are missing: the file is truncated between two scans')


def _symbols_of_zeros(body: bytes) -> dict[int, int]:
    """Class and number of each table of a segment -> the symbol of its first code, whose bits are zeros."""
    symbols, position = {}, 0
    while position + 17 < len(body):
        symbols[body[position]] = body[position + 17]
        position += 17 + sum(body[position + 1 : position + 17])
    return symbols


def _most_zeros(tables: Iterable[int], symbols: dict[int, int], *, first: int, earlier: int, kind: int) -> int | None:
    """How many bytes of zeros a scan can have; None: any number, as in an image of one colour."""
    for_dc = {symbols.get(one >> 4, 0) for one in tables}
    for_ac = {symbols.get(AC_CLASS | one & 15, 0) for one in tables}
    if kind != PROGRESSIVE:
        return MAX_ZEROS if any(for_ac) else None
    if first == 0:
        return MAX_PLAIN_ZEROS if any(for_dc) and not earlier else None
    return MAX_PLAIN_ZEROS if earlier else MAX_ZEROS if any(for_ac) else None
