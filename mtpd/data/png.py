"""Checks that PNGs are whole, by the checksums of their chunks, and takes out what makes no pixels.

Texts and colour profiles may be larger than a library's limits, or malformed, in a sound file: OpenCV does not use them
and libpng complains about them, so they are not passed on. Nothing behind the end chunk is, either.
"""

import zlib

START = b'\x89PNG\r\n\x1a\n'
HEADER, EXIF = b'IHDR', b'eXIf'
# Beside the critical chunks, whose names begin with a capital: transparency, background, orientation, animation.
MAKING_PIXELS = frozenset({b'tRNS', b'bKGD', EXIF, b'acTL', b'fcTL', b'fdAT'})
TIFF_STARTS = (b'II*\0', b'MM\0*')


def png_size(content: bytes) -> tuple[int, int]:
    """(height, width) in px as the header chunk says.

    Raises:
        ValueError: there is none.
    """
    if content[12:16] != HEADER or len(content) < 24:
        raise ValueError('the PNG has no header chunk')
    return int.from_bytes(content[20:24]), int.from_bytes(content[16:20])


def checked_png(content: bytes) -> bytes:
    """The chunks of a PNG that make its pixels, as a PNG.

    Raises:
        ValueError: it is cut off, or such a chunk does not match its checksum.
    """
    chunks, position, kind = [START], len(START), b''
    while kind != b'IEND':
        length, kind = int.from_bytes(content[position : position + 4]), content[position + 4 : position + 8]
        end = position + 12 + length  # length, name, data, checksum
        if end > len(content):
            raise ValueError('the PNG ends before its end chunk')
        if kind[:1].isupper() or kind in MAKING_PIXELS:
            checksum = zlib.crc32(memoryview(content)[position + 4 : end - 4])
            if checksum != int.from_bytes(content[end - 4 : end]):
                raise ValueError(f'a chunk {kind!r} of the PNG does not match its checksum')
            if kind != EXIF or content[position + 8 : position + 12] in TIFF_STARTS:
                chunks.append(content[position:end])
        position = end
    return b''.join(chunks)
