"""Decodes JPEGs as OpenCV does, and refuses those that libjpeg would have to guess at.

libjpeg fills in what is missing or broken with grey or with pixels of other places, and only warns. simplejpeg makes
errors of these warnings; it is libjpeg-turbo, as in OpenCV's wheels, and gives the same pixels in the same time.
Some damage libjpeg takes for sound; `_require_sound_scans` finds it, but for changed bits that decode without a
contradiction. A file that was cut between two scans and closed with an end marker decodes to coarser or grey pixels.
Blocks of a disk that were lost read as zeros, and Huffman codes find back to the right bits after them. Zeros are a
code as any other: they are refused where no encoder writes so many, which depends on what the code of zeros stands for.

Bytes after the end marker are not looked at, so further images in a file (MPO) do not matter. Zeros between the
segments, or between a scan and the marker after it, are padding: they are taken out, and what is left must decode
without a warning. Other bytes there may come from inside the scan, so such a file is refused.
"""

import re
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

# A marker is 0xff and a code; 0xff00 is a stuffed byte, 0xffd0..0xffd7 restart a scan, 0xffff is fill (ITU T.81, B.1).
MARKER = re.compile(rb'\xff([\x01-\xcf\xd8-\xfe])')
START = b'\xff\xd8\xff'
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
SEQUENTIAL, PROGRESSIVE = (0xC0, 0xC1), 0xC2  # Huffman-coded frames
TABLES, SCAN, END, EXIF = 0xC4, 0xDA, 0xD9, 0xE1
EXIF_NAME, JFIF_NAME = b'Exif\0\0', b'JFIF\0'
VERSION_PLACE = 4 + len(JFIF_NAME)  # behind marker, length and name
WITHOUT_LENGTH = (0x01, 0xD8, END)
# What the code of zeros stands for in the tables of ITU T.81, K.3, which files without tables use: class and number of
# the table -> symbol. 1 is a coefficient, which is -1 as its bit is 0; 0 is the end of a block, or no difference.
USUAL_SYMBOLS = {0x00: 0, 0x01: 0, 0x10: 1, 0x11: 0}
AC_CLASS = 0x10
NUM_COEFFICIENTS = 64
# Bytes of zeros. Two whole blocks of coefficients of -1 are fewer than the first; the second are a long even gradient,
# or all bits that correct what earlier scans said, of which libjpeg writes 1000 together.
MAX_ZEROS, MAX_PLAIN_ZEROS = 47, 255

ORIENTATION_TAG, UPRIGHT = 0x0112, 1
# What simplejpeg says of samplings that it has no name for, such as 4:1:0.
UNKNOWN_SAMPLING = 'subsampling'
DECODE_STDIN = 'import sys, cv2, numpy; cv2.imdecode(numpy.frombuffer(sys.stdin.buffer.read(), numpy.uint8), 1)'


def jpeg_size(content: bytes) -> tuple[int, int]:
    """(height, width) in px as the header says, before any EXIF orientation."""
    for marker, _, start, end in _segments(content):
        if marker in FRAMES and end >= start + 7:
            return int.from_bytes(content[start + 3 : start + 5]), int.from_bytes(content[start + 5 : start + 7])
        if marker == SCAN:
            break
    raise ValueError('the JPEG ends before its header does')


def decode_jpeg(content: bytes) -> npt.NDArray[Any] | None:
    """The pixels (height, width, 3), BGR, turned as the EXIF orientation says; None where OpenCV cannot decode them."""
    pixels: npt.NDArray[Any]
    try:
        pixels = simplejpeg.decode_jpeg(content, 'BGR', strict=True)
    except ValueError as error:
        if UNKNOWN_SAMPLING in str(error):
            _require_no_complaint(content)
            found = decoded_by_opencv(content)
            if found is not None:
                _require_sound_scans(content)
            return found
        content = _tidied(content)
        try:
            pixels = simplejpeg.decode_jpeg(content, 'BGR', strict=True)
        except ValueError:
            raise error from None
    _require_sound_scans(content)
    return pixels if _is_upright(content) else decoded_by_opencv(content)


def decoded_by_opencv(content: bytes) -> npt.NDArray[Any] | None:
    """The pixels (height, width, 3), BGR, of an image of any kind; None where OpenCV cannot decode it."""
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)


def _require_no_complaint(content: bytes) -> None:
    """Lets OpenCV decode a file of a rare kind in a process of its own, to see its stderr: 0.3 s for each."""
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', DECODE_STDIN], input=content, capture_output=True)
    if result.stderr:
        raise ValueError(result.stderr.decode(errors='replace').strip().splitlines()[0])


def _segments(content: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Code of each marker up to the end marker, its place, and where its segment starts, with the length, and ends.

    The data of a scan follows its segment. Skipping a segment by its length passes over thumbnails inside it.
    """
    position = len(START) - 1
    while match := MARKER.search(content, position):
        marker, start = match[1][0], match.end()
        has_length = marker not in WITHOUT_LENGTH
        position = start + int.from_bytes(content[start : start + 2]) if has_length else start
        yield marker, match.start(), start, position
        if marker == END:
            return


def _tidied(content: bytes) -> bytes:
    """The file up to its end marker, without what libjpeg warns of though it changes no pixel.

    That is zeros between the segments and behind the scans, and a version of JFIF that is not 1.
    """
    parts, position = [], 0
    for _, place, start, end in _segments(content):
        between = content[position:place].rstrip(b'\0')
        stuffed = b'\0' if between.endswith(b'\xff') else b''
        segment = content[place:end]
        if content.startswith(JFIF_NAME, start + 2):
            segment = segment[:VERSION_PLACE] + b'\1' + segment[VERSION_PLACE + 1 :]
        parts += [between, stuffed, segment]
        position = end
    return b''.join(parts)


def _is_upright(content: bytes) -> bool:
    """Whether no EXIF record makes OpenCV rotate or mirror the image; in doubt False."""
    for marker, _, start, end in _segments(content):
        if marker == EXIF and not _says_upright(content[start + 2 + len(EXIF_NAME) : end]):
            return False
        if marker == SCAN:
            break
    return True


def _says_upright(tiff: bytes) -> bool:
    """Whether the first directory of a TIFF file, which EXIF records are, has no other orientation than upright."""
    order = {b'II': '<', b'MM': '>'}.get(tiff[:2])
    if order is None:  # XMP, for instance
        return True
    try:
        (start,) = struct.unpack_from(f'{order}I', tiff, 4)
        (num_entries,) = struct.unpack_from(f'{order}H', tiff, start)
        for place in range(start + 2, start + 2 + 12 * num_entries, 12):
            tag, value = struct.unpack_from(f'{order}H6xH', tiff, place)
            if tag == ORIENTATION_TAG and value != UPRIGHT:
                return False
    except struct.error:
        return False
    return True


def _require_sound_scans(content: bytes) -> None:
    """Refuses a JPEG that libjpeg decoded without a warning though a scan is missing or has a block of zeros."""
    try:
        _check_scans(content)
    except (IndexError, KeyError):  # of a table, a component or a length that nothing before has stated
        raise ValueError('the segments of the JPEG contradict each other') from None


def _check_scans(content: bytes) -> None:
    has_zeros = bytes(MAX_ZEROS + 1) in content
    symbols, missing_bits = dict(USUAL_SYMBOLS), dict[int, list[int]]()
    limit, scan_end, kind = None, 0, 0
    for marker, place, start, end in _segments(content):
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
