"""Decodes JPEGs as OpenCV does, and refuses those that libjpeg would have to guess at.

libjpeg fills in what is missing or broken with grey or with pixels of other places, and only warns. simplejpeg makes
errors of these warnings; it is libjpeg-turbo, as in OpenCV's wheels, and gives the same pixels in the same time. Of
what libjpeg takes for sound `mtpd.data.jpeg_scans` finds the rest, but for changed bits that decode without a
contradiction.

Bytes after the end marker are not looked at, so further images in a file (MPO) do not matter. Zeros between the
segments, or between a scan and the marker after it, are padding: they are taken out, and what is left must decode
without a warning. Other bytes there may come from inside the scan, so such a file is refused.
"""

import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from mtpd.data.jpeg_scans import require_sound_scans

# A marker is 0xff and a code; 0xff00 is a stuffed byte, 0xffd0..0xffd7 restart a scan, 0xffff is fill (ITU T.81, B.1).
MARKER = re.compile(rb'\xff([\x01-\xcf\xd8-\xfe])')
START = b'\xff\xd8\xff'
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
SCAN, END, EXIF = 0xDA, 0xD9, 0xE1
EXIF_NAME, JFIF_NAME = b'Exif\0\0', b'JFIF\0'
VERSION_PLACE = 4 + len(JFIF_NAME)  # behind marker, length and name
WITHOUT_LENGTH = (0x01, 0xD8, END)

ORIENTATION_TAG, UPRIGHT = 0x0112, 1
# What simplejpeg says of samplings that it has no name for, such as 4:1:0.
UNKNOWN_SAMPLING = 'subsampling'
DECODE_STDIN = 'import sys, cv2, numpy; cv2.imdecode(numpy.frombuffer(sys.stdin.buffer.read(), numpy.uint8), 1)'


def jpeg_size(content: bytes) -> tuple[int, int]:
    """(height, width) in px as the header says, before any EXIF orientation.

    Raises:
        ValueError: the file ends before it says so.
    """
    for marker, _, start, end in _segments(content):
        if marker in FRAMES and end >= start + 7:
            return int.from_bytes(content[start + 3 : start + 5]), int.from_bytes(content[start + 5 : start + 7])
        if marker == SCAN:
            break
    raise ValueError('the JPEG ends before its header does')


def decode_jpeg(content: bytes) -> npt.NDArray[Any] | None:
    """The pixels (height, width, 3), BGR, turned as the EXIF orientation says; None where OpenCV cannot decode them.

    Raises:
        ValueError: something is missing or broken; the message states what.
    """
    try:
        pixels = _strictly_decoded(content)
    except ValueError as error:
        if UNKNOWN_SAMPLING in str(error):
            _require_no_complaint(content)
            found = _decoded_by_opencv(content)
            if found is not None:
                require_sound_scans(content, _segments(content))
            return found
        content = _tidied(content)
        try:
            pixels = _strictly_decoded(content)
        except ValueError:
            raise error from None
    require_sound_scans(content, _segments(content))
    return pixels if _is_upright(content) else _decoded_by_opencv(content)


def _strictly_decoded(content: bytes) -> npt.NDArray[Any]:
    pixels: npt.NDArray[Any] = simplejpeg.decode_jpeg(content, 'BGR', strict=True)
    return pixels


def _decoded_by_opencv(content: bytes) -> npt.NDArray[Any] | None:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)


def _require_no_complaint(content: bytes) -> None:
    """Lets OpenCV decode a file of a rare kind in a process whose stderr nobody else writes to: 0.3 s for each."""
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
    """Whether no EXIF record says for OpenCV that the image lies on its side; in doubt it is not."""
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
