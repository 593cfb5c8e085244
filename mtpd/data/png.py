"""Checks that PNGs are whole, by their checksums and their rows, and removes what makes no pixels.

Texts and colour profiles may be larger than a library's limits, or malformed, in a sound file: OpenCV does not use them
and libpng complains about them, so they are not passed on. Nothing after the end chunk is, either. What libpng would
refuse is refused here, where the error can say what it is.
"""

import zlib
from collections.abc import Iterator

START = b'\x89PNG\r\n\x1a\n'
HEADER, PALETTE, DATA, END, EXIF = b'IHDR', b'PLTE', b'IDAT', b'IEND', b'eXIf'
# Beside these: transparency, background, orientation, animation.
MAKING_PIXELS = frozenset({HEADER, PALETTE, DATA, END, b'tRNS', b'bKGD', EXIF, b'acTL', b'fcTL', b'fdAT'})
TIFF_STARTS = (b'II*\0', b'MM\0*')
# Colour type -> channels, bits of a channel.
GREY, RGB, INDEXED, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
KINDS = {
    GREY: (1, (1, 2, 4, 8, 16)), RGB: (3, (8, 16)), INDEXED: (1, (1, 2, 4, 8)), GREY_ALPHA: (2, (8, 16)),
    RGBA: (4, (8, 16)),
}  # fmt: skip
# Bytes that these have for a colour type; libpng complains of others and leaves the chunk out.
LENGTHS = {
    b'tRNS': {GREY: range(2, 3), RGB: range(6, 7), INDEXED: range(1, 257)},
    b'bKGD': {
        GREY: range(2, 3), RGB: range(6, 7), INDEXED: range(1, 2), GREY_ALPHA: range(2, 3), RGBA: range(6, 7)
    },
}  # fmt: skip
# First column and row of the passes of an interlaced image, and steps between their columns and rows.
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
NUM_FILTERS = 5
MAX_CHECKED_PIXELS = 2**30  # OpenCV reads no more


def png_size(content: bytes) -> tuple[int, int]:
    """(height, width) in px as the header chunk says."""
    if content[12:16] != HEADER or len(content) < 29:
        raise ValueError('the PNG has no header chunk')
    return int.from_bytes(content[20:24]), int.from_bytes(content[16:20])


def checked_png(content: bytes) -> bytes:
    """The chunks of a PNG that make its pixels, as a PNG; ValueError where they are not whole."""
    png_size(content)
    colour = content[25]
    if colour not in KINDS or content[24] not in KINDS[colour][1]:
        raise ValueError(f'the PNG is of colour type {colour} with {content[24]} bits, which is not in the standard')
    before, data, after = [START], list[bytes](), list[bytes]()
    for kind, body, chunk in _chunks(content):
        if kind == DATA:
            data.append(body)
        elif _is_sound(kind, body, colour=colour, is_late=bool(data)):
            (after if data else before).append(chunk)
    if colour == INDEXED and not any(chunk[4:8] == PALETTE for chunk in before):
        raise ValueError('the PNG has no palette')
    return b''.join([*before, _chunk(DATA, _checked_rows(content[16:29], b''.join(data))), *after])


def _is_sound(kind: bytes, body: bytes, *, colour: int, is_late: bool) -> bool:
    """Whether libpng takes a chunk that an image can do without; `is_late`: it comes after the rows."""
    if kind == EXIF:
        return body[:4] in TIFF_STARTS
    return kind not in LENGTHS or (not is_late and len(body) in LENGTHS[kind].get(colour, ()))


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Name, content and bytes of each chunk that makes pixels, up to the end chunk."""
    position, kind = len(START), b''
    while kind != END:
        length, kind = int.from_bytes(content[position : position + 4]), content[position + 4 : position + 8]
        end = position + 12 + length  # length, name, data, checksum
        if end > len(content):
            raise ValueError('the PNG ends before its end chunk')
        if kind in MAKING_PIXELS:
            if zlib.crc32(memoryview(content)[position + 4 : end - 4]) != int.from_bytes(content[end - 4 : end]):
                raise ValueError(f'a chunk {kind!r} of the PNG does not match its checksum')
            if kind == HEADER and position > len(START):
                raise ValueError('the PNG has several header chunks')
            yield kind, content[position + 8 : end - 4], content[position:end]
        elif kind[:1].isupper():
            raise ValueError(f'the PNG has a chunk {kind!r}, which is not in the standard')
        position = end


def _chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)


def _checked_rows(header: bytes, data: bytes) -> bytes:
    """The compressed rows, without what follows them."""
    height, width = int.from_bytes(header[4:8]), int.from_bytes(header[:4])
    if height * width > MAX_CHECKED_PIXELS:
        return data
    num_bits = header[8] * KINDS[header[9]][0]
    passes = PASSES if header[12] else ((0, 0, 1, 1),)
    # A row starts with the number of its filter.
    shapes = [(-(-(height - y) // dy), 1 + -(-(-(-(width - x) // dx) * num_bits) // 8)) for x, y, dx, dy in passes]
    shapes = [(num_rows, length) for num_rows, length in shapes if num_rows > 0 and length > 1]
    wanted = sum(num_rows * length for num_rows, length in shapes)
    inflate = zlib.decompressobj()
    try:
        rows = inflate.decompress(data, wanted) if wanted else b''
        is_longer = bool(inflate.decompress(inflate.unconsumed_tail, 1))
    except zlib.error as error:
        raise ValueError(f'the rows of the PNG are damaged: {error}') from None
    if not wanted or len(rows) < wanted or not (inflate.eof or is_longer):
        raise ValueError('the PNG has fewer rows than its header states')
    position = 0
    for num_rows, length in shapes:
        if max(rows[position : position + num_rows * length : length]) >= NUM_FILTERS:
            raise ValueError('a row of the PNG has a filter that is not in the standard: it is damaged')
        position += num_rows * length
    return zlib.compress(rows, 0) if is_longer or inflate.unused_data else data
