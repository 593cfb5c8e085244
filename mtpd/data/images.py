"""Reads image files as mmdet does, but never passes on pixels that are not those of the file.

OpenCV decodes a damaged JPEG to some pixels and at most warns on stderr: a cache would keep them. So files are checked
for damage, which also keeps the decoders' own messages off stderr. A limit of a library is not damage.
"""

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from mtpd.data import jpeg, png
from mtpd.errors import InputError
from mtpd.geometry import Size

# TIFF, Radiance HDR, Sun raster, PAM: kinds that OpenCV knows and Pillow does not, or not all of.
LEFT_TO_OPENCV = (b'II*\0', b'MM\0*', b'#?R', b'Y\xa6j\x95', b'P7')


def read_image(path: Path, *, size: Size | None = None) -> npt.NDArray[np.uint8]:
    """Reads an image file: (height, width, 3), BGR, the same pixels as mmdet's `LoadImageFromFile`.

    The EXIF orientation is applied; grey, CMYK, palette and 16-bit images become 8-bit BGR; transparency is dropped. Of
    an animation the first picture is read. JPEGs are checked by decoding them, see `mtpd.data.jpeg`, PNGs by their
    checksums, others by Pillow; what Pillow does not know is left to OpenCV. `size` is the (height, width) in px that
    the annotation states; an image of another size is refused, as are missing, empty and damaged files.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f'{path}: cannot read the image: {error.strerror}') from None
    if not content:
        raise InputError(f'{path}: the image file is empty; fetch it again')

    def require(stated: Size) -> None:
        # By the header first, so that a small file cannot ask for gigabytes. An EXIF orientation may still rotate it.
        if size is not None and size not in (stated, stated[::-1]):
            raise InputError(_wrong_size(path, stated, size))

    try:
        image = _decoded(content, require)
    except InputError:
        raise
    except cv2.error as error:
        raise InputError(f'{path}: OpenCV cannot decode the image ({error.err or error}); convert it') from None
    except ValueError as error:
        raise InputError(f'{path}: not a complete image ({error}); fetch it again or convert it') from None
    if image is None:
        raise InputError(
            f'{path}: OpenCV cannot decode the file: the image is damaged, or of a format that OpenCV does not '
            'support; fetch it again or convert it'
        )
    if size is not None and image.shape[:2] != size:
        raise InputError(_wrong_size(path, image.shape[:2], size))
    return image.astype(np.uint8, copy=False)


def _wrong_size(path: Path, found: tuple[int, ...], wanted: Size) -> str:
    turned = ', rotated by its EXIF orientation' if found[::-1] == wanted else ''
    return (
        f'{path}: the image is {found[1]} x {found[0]} px (width x height), its annotation states '
        f'{wanted[1]} x {wanted[0]}; is it the image that was annotated{turned}?'
    )


def _decoded(content: bytes, require: Callable[[Size], None]) -> npt.NDArray[Any] | None:
    """The pixels; `require` is called with the size that the header states, before they are decoded."""
    with _LIBRARIES.for_reading():
        if content.startswith(jpeg.START):
            require(jpeg.jpeg_size(content))
            return jpeg.decode_jpeg(content)
        if content.startswith(png.START):
            require(png.png_size(content))
            return jpeg.decoded_by_opencv(png.checked_png(content))
        return _other_decoded(content, require)


def _other_decoded(content: bytes, require: Callable[[Size], None]) -> npt.NDArray[Any] | None:
    try:
        with Image.open(io.BytesIO(content)) as image:
            require((image.height, image.width))
            pixels = jpeg.decoded_by_opencv(content)
            if pixels is not None:  # Pillow's decoders write to stderr about files that OpenCV refuses.
                image.load()
            return pixels
    except UnidentifiedImageError:
        if not content.startswith(LEFT_TO_OPENCV):
            raise ValueError('not an image of a known format') from None
        return jpeg.decoded_by_opencv(content)
    except (InputError, cv2.error):
        raise
    except Exception as error:  # Pillow's decoders raise any error: OSError, SyntaxError, struct.error, ...
        raise ValueError(str(error)) from None


class _LibrarySettings:
    """Global settings of libraries while a file is read; as they were before for users of the library.

    Pillow limits the pixels of files of unknown size: here annotations state it.
    OpenCV logs what it warns of or cannot decode, without the name of the file.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._before: tuple[int | None, int] = (None, 0)

    @contextmanager
    def for_reading(self) -> Iterator[None]:
        with self._lock:
            if self._num_inside == 0:
                self._before = Image.MAX_IMAGE_PIXELS, cv2.utils.logging.getLogLevel()
                Image.MAX_IMAGE_PIXELS = None
                cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
            self._num_inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_inside -= 1
                if self._num_inside == 0:
                    Image.MAX_IMAGE_PIXELS = self._before[0]
                    cv2.utils.logging.setLogLevel(self._before[1])


_LIBRARIES = _LibrarySettings()
