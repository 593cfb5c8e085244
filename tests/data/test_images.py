"""Reading image files: mmdet's pixels, or an error that names the file."""

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from mtpd.data.images import read_image
from mtpd.errors import InputError

Pixels = npt.NDArray[np.uint8]

HEIGHT, WIDTH = 48, 64
RGB = np.asarray(
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (4, 5, 3), dtype=np.uint8)).resize(
        (WIDTH, HEIGHT), Image.Resampling.BICUBIC
    )
)


def encoded(kind: str, mode: str = 'RGB', **options: Any) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(RGB)
    (image.quantize(200) if mode == 'P' else image.convert(mode)).save(stream, kind, **options)
    return stream.getvalue()


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded('JPEG', exif=exif)


def png16(pixels: npt.NDArray[np.uint16]) -> bytes:
    return cv2.imencode('.png', pixels)[1].tobytes()


COMPLETE = {
    'jpeg': encoded('JPEG'),
    'progressive jpeg': encoded('JPEG', progressive=True),
    'jpeg with restarts': encoded('JPEG', restart_marker_blocks=1),
    'grey jpeg': encoded('JPEG', 'L'),
    'cmyk jpeg': encoded('JPEG', 'CMYK'),
    'jpeg with bytes after its end': encoded('JPEG') + b'more\xff\xda',
    'png': encoded('PNG'),
    'grey png': encoded('PNG', 'L'),
    'palette png': encoded('PNG', 'P'),
    'png with alpha': encoded('PNG', 'RGBA'),
    '16-bit png': png16(RGB[..., ::-1].astype(np.uint16) * 257),
    'grey 16-bit png': png16(RGB[..., 0].astype(np.uint16) * 257),
    'bmp': encoded('BMP'),
    'webp': encoded('WEBP'),
    **{f'jpeg of orientation {orientation}': oriented(orientation) for orientation in range(1, 9)},
}


def saved(folder: Path, content: bytes) -> Path:
    path = folder / 'image'
    path.write_bytes(content)
    return path


@pytest.mark.parametrize('name', COMPLETE)
def test_read_image__pixels_of_mmdet(name: str, tmp_path: Path) -> None:
    mmcv = pytest.importorskip('mmcv')
    found = read_image(saved(tmp_path, COMPLETE[name]))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, mmcv.imfrombytes(COMPLETE[name]))


@pytest.mark.parametrize(
    ('name', 'tolerance'), [('jpeg', 6), ('cmyk jpeg', 8), ('png', 0), ('png with alpha', 0), ('16-bit png', 0)]
)
def test_read_image__colours(name: str, tolerance: float, tmp_path: Path) -> None:
    """Against the pixels that were saved, so that a library's own mistake shows."""
    found = read_image(saved(tmp_path, COMPLETE[name]), size=(HEIGHT, WIDTH))
    assert np.abs(found[..., ::-1].astype(int) - RGB).mean() <= tolerance


@pytest.mark.parametrize('name', ['grey jpeg', 'grey png'])
def test_read_image__grey(name: str, tmp_path: Path) -> None:
    found = read_image(saved(tmp_path, COMPLETE[name]), size=(HEIGHT, WIDTH)).astype(int)
    assert found.shape == (HEIGHT, WIDTH, 3)
    assert np.ptp(found, 2).max() == 0
    assert np.abs(found[..., 0] - RGB @ [0.299, 0.587, 0.114]).mean() < 2


def test_read_image__orientation(tmp_path: Path) -> None:
    path = saved(tmp_path, oriented(6))
    assert read_image(path, size=(WIDTH, HEIGHT)).shape == (WIDTH, HEIGHT, 3)
    with pytest.raises(InputError, match=r'48 x 64 px .* annotation says 64 x 48; .* turned as its EXIF orientation'):
        read_image(path, size=(HEIGHT, WIDTH))


@pytest.mark.parametrize('name', ['jpeg', 'progressive jpeg', 'grey jpeg', 'cmyk jpeg', 'png', 'bmp', 'webp'])
def test_read_image__truncated(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = COMPLETE[name]
    for kept in (1, 4, 30, len(content) // 3, len(content) // 2, len(content) * 9 // 10, len(content) - 20):
        with pytest.raises(InputError, match=r'image: .*fetch it again'):
            read_image(saved(tmp_path, content[:kept]))
    assert capfd.readouterr().err == ''


@pytest.mark.parametrize('lost', [1, 2, 40])
def test_read_image__jpeg_without_its_last_bytes(lost: int, tmp_path: Path) -> None:
    for content in (COMPLETE['jpeg'][:-lost], COMPLETE['jpeg'][:-lost] + bytes(lost)):
        with pytest.raises(InputError, match='ends before its end marker'):
            read_image(saved(tmp_path, content))


def test_read_image__truncated_with_thumbnail(tmp_path: Path) -> None:
    """A thumbnail's end marker inside a segment is not that of the image."""
    thumbnail = COMPLETE['jpeg']
    segment = b'\xff\xe1' + (len(thumbnail) + 2).to_bytes(2, 'big') + thumbnail
    content = COMPLETE['jpeg'][:2] + segment + COMPLETE['jpeg'][2:]
    assert read_image(saved(tmp_path, content)).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(InputError, match='ends before its end marker'):
        read_image(saved(tmp_path, content[:-300]))


@pytest.mark.parametrize('content', [b'', b'no image at all', b'\xff\xd8\xff\xd9', b'\x89PNG\r\n\x1a\n', bytes(1000)])
def test_read_image__no_image(content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match='image') as caught:
        read_image(saved(tmp_path, content))
    assert 'object at 0x' not in str(caught.value)
    assert capfd.readouterr().err == ''


def test_read_image__not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'gone\.jpg: cannot read the image: No such file'):
        read_image(tmp_path / 'gone.jpg')
    with pytest.raises(InputError, match='cannot read the image: Is a directory'):
        read_image(tmp_path)


@pytest.mark.parametrize('name', ['jpeg', 'png'])
def test_read_image__other_size(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'64 x 48 px \(width x height\), its annotation says 65 x 48'):
        read_image(saved(tmp_path, COMPLETE[name]), size=(HEIGHT, WIDTH + 1))


@pytest.mark.real
def test_read_image__real(real_dir: Path) -> None:
    mmcv = pytest.importorskip('mmcv')
    paths = sorted((real_dir / 'coco_mini' / 'val2017').glob('*.jpg'))
    assert paths
    for path in paths[::6]:
        np.testing.assert_array_equal(read_image(path), mmcv.imfrombytes(path.read_bytes()))
