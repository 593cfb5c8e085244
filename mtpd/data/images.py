"""Reads image files as mmdet does, but never passes on pixels that are not those of the file.

OpenCV 4 decodes a truncated JPEG to grey pixels and says so on stderr at most: in a cache that would last. So files are
checked for completeness first, which also keeps the decoders' own messages off stderr.
"""

import io
import re
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from mtpd.errors import InputError

Size = tuple[int, int]

# A marker is 0xff and a code; 0xff00 is a stuffed byte, 0xffd0..0xffd7 restart a scan, 0xffff is fill (ITU T.81, B.1).
JPEG_MARKER = re.compile(rb'\xff([\x01-\xcf\xd8-\xfe])')
JPEG_START = b'\xff\xd8\xff'
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_SCAN, JPEG_END = 0xDA, 0xD9
JPEG_WITHOUT_LENGTH = (0x01, 0xD8)

PNG_START, PNG_END = b'\x89PNG\r\n\x1a\n', b'\0\0\0\0IEND\xaeB`\x82'


def read_image(path: Path, *, size: Size | None = None) -> npt.NDArray[np.uint8]:
    """Reads an image file: (height, width, 3), BGR, the same pixels as mmdet's `LoadImageFromFile`.

    The EXIF orientation is applied; grey, CMYK, palette and 16-bit images become 8-bit BGR; transparency is dropped.

    Args:
        path: the file.
        size: (height, width) in px that the image must have, as its annotation says.

    Raises:
        InputError: the file is missing, empty, truncated, no image, or of another size.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f'{path}: cannot read the image: {error.strerror}') from None
    if not content:
        raise InputError(f'{path}: the image file is empty; fetch it again')
    try:
        stated = _check_jpeg(content) if content.startswith(JPEG_START) else _check_other(content)
    except UnidentifiedImageError:
        raise InputError(f'{path}: the file is no image of a known kind; fetch it again') from None
    except Exception as error:  # Pillow's decoders raise whatever comes up: OSError, SyntaxError, struct.error, ...
        raise InputError(f'{path}: not a complete image ({error}); fetch it again') from None
    # Judged by the header first, so that a small file cannot ask for gigabytes. It may still lie on its side.
    if size is not None and size not in (stated, stated[::-1]):
        raise InputError(_wrong_size(path, stated, size))
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise InputError(f'{path}: OpenCV cannot decode the image ({error.err or error}); convert it') from None
    if image is None:
        raise InputError(f'{path}: OpenCV cannot decode the image, it may be damaged; fetch it again or convert it')
    if size is not None and image.shape[:2] != size:
        raise InputError(_wrong_size(path, image.shape[:2], size))
    return image.astype(np.uint8, copy=False)


def _wrong_size(path: Path, found: tuple[int, ...], wanted: Size) -> str:
    turned = ', turned as its EXIF orientation says' if found[::-1] == wanted else ''
    return (
        f'{path}: the image is {found[1]} x {found[0]} px (width x height), its annotation says '
        f'{wanted[1]} x {wanted[0]}; is it the image that was annotated{turned}?'
    )


def _check_jpeg(content: bytes) -> Size:
    """Walks the markers of a JPEG file to its end marker; (height, width) as stated there, before EXIF orientation."""
    position, size = len(JPEG_START) - 1, None
    has_scan = False
    while match := JPEG_MARKER.search(content, position):
        marker, position = match[1][0], match.end()
        if marker == JPEG_END:
            if size is None or not has_scan:
                break
            return size
        if marker in JPEG_WITHOUT_LENGTH:
            continue
        if marker in JPEG_FRAMES:
            size = (
                int.from_bytes(content[position + 3 : position + 5]),
                int.from_bytes(content[position + 5 : position + 7]),
            )
        has_scan = has_scan or marker == JPEG_SCAN
        # Skipping a segment by its length passes over thumbnails inside it; a scan's data follows its segment.
        position += int.from_bytes(content[position : position + 2])
    raise ValueError('the JPEG ends before its end marker')


def _check_other(content: bytes) -> Size:
    if content.startswith(PNG_START) and PNG_END not in content:  # Pillow does not look for it
        raise ValueError('the PNG ends before its end chunk')
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        return image.height, image.width
