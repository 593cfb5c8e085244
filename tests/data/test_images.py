"""Reading image files: mmdet's pixels, or an error that names the file."""

import io
import os
import tempfile
import zlib
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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


def encoded(kind: str, mode: str = 'RGB', *, image: Pixels = RGB, **options: Any) -> bytes:
    stream, picture = io.BytesIO(), Image.fromarray(image)
    (picture.quantize(200) if mode == 'P' else picture.convert(mode)).save(stream, kind, **options)
    return stream.getvalue()


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def oriented(orientation: int) -> bytes:
    return encoded('JPEG', exif=exif_of(orientation))


def transformed(content: bytes, code: int) -> bytes:
    """A JPEG with another colour transform in its Adobe segment."""
    place = content.index(b'Adobe') + 11
    return content[:place] + bytes([code]) + content[place + 1 :]


def by_opencv(kind: str, pixels: npt.NDArray[Any], *options: int) -> bytes:
    return cv2.imencode(kind, pixels, options)[1].tobytes()


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
    '16-bit png': by_opencv('.png', RGB[..., ::-1].astype(np.uint16) * 257),
    'grey 16-bit png': by_opencv('.png', RGB[..., 0].astype(np.uint16) * 257),
    'bmp': encoded('BMP'),
    'webp': encoded('WEBP'),
    'rgb jpeg': encoded('JPEG', keep_rgb=True),
    'ycck jpeg': transformed(encoded('JPEG', 'CMYK'), 2),
    'jpeg of four components with one sampled finer': encoded('JPEG', 'CMYK', subsampling=2),
    'jpeg of another jfif version': encoded('JPEG').replace(b'JFIF\0\1', b'JFIF\0\2', 1),
    'mpo': encoded('MPO', save_all=True, append_images=[Image.fromarray(255 - RGB)]),
    'jpeg with fill before its end': encoded('JPEG')[:-2] + b'\xff' * 5 + b'\xff\xd9',
    'animated png': encoded('PNG', save_all=True, append_images=[Image.fromarray(255 - RGB)]),
    'png with bytes after its end': encoded('PNG') + b'more' * 9,
    'png of another orientation': encoded('PNG', exif=exif_of(6)),
    'png with a transparent colour': encoded('PNG', transparency=(1, 2, 3)),
    'palette png with transparency': encoded('PNG', 'P', transparency=3),
    'tiff': encoded('TIFF'),
    '16-bit tiff': by_opencv('.tiff', RGB[..., ::-1].astype(np.uint16) * 257),
    'gif': encoded('GIF', 'P'),
    'jpeg 2000': encoded('JPEG2000'),
    'ppm': encoded('PPM'),
    **{
        f'jpeg of sampling {sampling:x}': cv2.imencode('.jpg', RGB, [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling])[
            1
        ].tobytes()
        for sampling in (0x411111, 0x221111, 0x211111, 0x121111, 0x111111)
    },
    **{f'jpeg of orientation {orientation}': oriented(orientation) for orientation in range(1, 9)},
}


def in_scans_of_a_component() -> bytes:
    """A JPEG that is not progressive, with a scan for each of three components of equal tables and data."""
    grey = COMPLETE['grey jpeg']
    frame, scan = grey.index(b'\xff\xc0'), grey.index(b'\xff\xda')
    parts = b''.join(bytes([one, 0x11, 0]) for one in (1, 2, 3))
    header = b'\xff\xc0' + (8 + len(parts)).to_bytes(2) + grey[frame + 4 : frame + 9] + b'\x03' + parts
    behind_frame = frame + 2 + int.from_bytes(grey[frame + 2 : frame + 4])
    scans = [b'\xff\xda\0\x08\1' + bytes([one]) + grey[scan + 6 : -2] for one in (1, 2, 3)]
    return grey[:frame] + header + grey[behind_frame:scan] + b''.join(scans) + b'\xff\xd9'


IN_SCANS_OF_A_COMPONENT = in_scans_of_a_component()


def saved(folder: Path, content: bytes) -> Path:
    path = folder / 'image'
    path.write_bytes(content)
    return path


@pytest.mark.parametrize('name', COMPLETE)
def test_read_image__pixels_of_mmdet(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mmcv = pytest.importorskip('mmcv')
    found = read_image(saved(tmp_path, COMPLETE[name]))
    assert found.dtype == np.uint8
    assert capfd.readouterr().err == ''
    np.testing.assert_array_equal(found, mmcv.imfrombytes(COMPLETE[name]))
    assert found.flags.writeable


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
    with pytest.raises(
        InputError, match=r'48 x 64 px .* annotation states 64 x 48; .* rotated by its EXIF orientation'
    ):
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
        with pytest.raises(InputError, match=r'not a complete image \(.*[Pp]remature end'):
            read_image(saved(tmp_path, content))


def test_read_image__truncated_with_thumbnail(tmp_path: Path) -> None:
    """A thumbnail's end marker inside a segment is not that of the image."""
    thumbnail = COMPLETE['jpeg']
    segment = b'\xff\xe1' + (len(thumbnail) + 2).to_bytes(2, 'big') + thumbnail
    content = COMPLETE['jpeg'][:2] + segment + COMPLETE['jpeg'][2:]
    assert read_image(saved(tmp_path, content)).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(InputError, match=r'not a complete image \(.*[Pp]remature end'):
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
    with pytest.raises(InputError, match=r'64 x 48 px \(width x height\), its annotation states 65 x 48'):
        read_image(saved(tmp_path, COMPLETE[name]), size=(HEIGHT, WIDTH + 1))


# Offsets into a scan and what is written there.
DAMAGES = st.tuples(st.integers(0, 2**32), st.sampled_from(['byte', 'zeros', 'garbage', 'cut', 'end', 'insert']))


@pytest.mark.parametrize('name', ['jpeg', 'progressive jpeg', 'jpeg with restarts', 'grey jpeg', 'cmyk jpeg'])
def test_read_image__damaged_scan(name: str, tmp_path: Path) -> None:
    """What libjpeg complains of is refused, and many zeros; else OpenCV's pixels, and nothing reaches stderr."""
    num_refused = 0

    @given(DAMAGES)
    @settings(max_examples=40)
    def check(damage: tuple[int, str]) -> None:
        nonlocal num_refused
        content = spoilt(COMPLETE[name], *damage)
        wanted, complaint = decoded_by_opencv(content)
        path = saved(tmp_path, content)
        with stderr_of_process() as stderr:
            found = _read_or_none(path)
        assert stderr.getvalue() == ''
        if found is None:
            num_refused += 1
            assert wanted is None or complaint or damage[1] == 'zeros'
        else:
            np.testing.assert_array_equal(found, wanted)
            assert complaint == '' or 'extraneous' in complaint  # of zeros that were taken out

    check()
    assert num_refused


def spoilt(content: bytes, seed: int, kind: str) -> bytes:
    """A JPEG whose (last) scan is damaged."""
    random = np.random.default_rng(seed)
    start = content.rindex(b'\xff\xda') + 14
    first, last = sorted(random.integers(start, len(content) - 2, 2).tolist())
    length = last - first
    return {
        'byte': content[:first] + random.bytes(1) + content[first + 1 :],
        'zeros': content[:first] + bytes(length) + content[last:],
        'garbage': content[:first] + random.bytes(length).replace(b'\xff', b'\xfe') + content[last:],
        'cut': content[:first] + content[last:],
        'end': content[:first] + b'\xff\xd9',
        'insert': content[:first] + bytes(5) + content[first:],
    }[kind]


@contextmanager
def stderr_of_process() -> Iterator[io.StringIO]:
    """What is written to stderr by the libraries, too."""
    result, before = io.StringIO(), os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield result
        finally:
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            result.write(file.read().decode(errors='replace'))


def decoded_by_opencv(content: bytes) -> tuple[Any, str]:
    with stderr_of_process() as stderr:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    return pixels, stderr.getvalue()


def _read_or_none(path: Path) -> Pixels | None:
    try:
        return read_image(path)
    except InputError as error:
        if not str(error).startswith(f'{path}: '):
            raise
        return None


def test_read_image__damaged_jpeg_of_a_rare_sampling(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = COMPLETE['jpeg of four components with one sampled finer']
    with pytest.raises(InputError, match='premature end'):
        read_image(saved(tmp_path, content[: len(content) // 2] + b'\xff\xd9'))
    assert capfd.readouterr().err == ''


@pytest.mark.parametrize(
    'options', [{}, {'optimize': True}, {'progressive': True}, {'restart_marker_blocks': 2}], ids=str
)
def test_read_image__jpeg_with_a_lost_block(options: dict[str, Any], tmp_path: Path) -> None:
    """A block of a disk that reads as zeros: libjpeg notices few of them."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    picture = cv2.resize(noise, (640, 480), interpolation=cv2.INTER_CUBIC).astype(np.uint8, copy=False)
    content = encoded('JPEG', image=picture, quality=95, **options)
    for start in range(content.index(b'\xff\xda') + 500, len(content) - 520, len(content) // 20):
        with pytest.raises(InputError, match='not a complete image'):
            read_image(saved(tmp_path, content[:start] + bytes(512) + content[start + 512 :]))


def test_read_image__jpeg_without_its_last_scans(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for content in (COMPLETE['progressive jpeg'], IN_SCANS_OF_A_COMPONENT):
        assert read_image(saved(tmp_path, content)).shape == (HEIGHT, WIDTH, 3)
        scans = [place for place in range(len(content)) if content.startswith(b'\xff\xda', place)]
        assert len(scans) > 2
        for start in scans[1:]:  # Tables may precede a scan, and are left behind.
            with pytest.raises(InputError, match='scans of the JPEG are missing'):
                read_image(saved(tmp_path, content[:start] + b'\xff\xd9'))
    assert capfd.readouterr().err == ''


@given(
    st.sampled_from(['black', 'white', 'ramp', 'ramp down', 'steps', 'half of it', 'chequered', 'letters']),
    st.sampled_from([1, 30, 75, 100]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 2]),
)
@settings(max_examples=60)
def test_read_image__jpegs_whose_scans_have_many_zeros(
    drawn: str, quality: int, is_progressive: bool, is_optimal: bool, sampling: int
) -> None:
    picture = np.zeros((64, 1600, 3), np.uint8)
    ramp = np.arange(1600)[:, None] * np.array([1, 0.5, 0.25])
    drawings = {'white': 255, 'ramp': ramp % 256, 'ramp down': 255 - ramp % 256, 'steps': ramp // 8 % 256}
    picture[:] = drawings.get(drawn, 0)
    picture[:, 800:] |= np.uint8(77 if drawn == 'half of it' else 0)
    picture[::8, ::8] |= np.uint8(255 if drawn == 'chequered' else 0)
    if drawn == 'letters':
        cv2.putText(picture, 'letters', (50, 50), cv2.FONT_HERSHEY_SIMPLEX, 2, (255, 255, 255), 4)
    options: dict[str, Any] = {
        'quality': quality,
        'progressive': is_progressive,
        'optimize': is_optimal,
        'subsampling': sampling,
    }
    content = encoded('JPEG', image=picture, **options)
    with tempfile.TemporaryDirectory() as folder:
        assert read_image(saved(Path(folder), content)).shape == picture.shape


@given(
    st.sampled_from(['jpeg', 'progressive jpeg', 'jpeg with restarts']),
    st.lists(st.tuples(st.integers(2, 640), st.integers(0, 255)), min_size=1, max_size=3),
    st.integers(0, 40),
)
@settings(max_examples=50)
def test_read_image__changed_headers_of_jpegs(name: str, changes: list[tuple[int, int]], num_lost: int) -> None:
    """Read or refused by name."""
    content = bytearray(COMPLETE[name])
    for place, value in changes:
        content[place] = value
    del content[changes[0][0] : changes[0][0] + num_lost]
    with tempfile.TemporaryDirectory() as folder, stderr_of_process() as stderr:
        _read_or_none(saved(Path(folder), bytes(content)))
    assert stderr.getvalue() == ''


def test_read_image__padding_of_jpegs(tmp_path: Path) -> None:
    """Zeros between segments and behind the scan change no pixel; anything else may, and is refused."""
    for name in ('jpeg', 'progressive jpeg'):
        content = COMPLETE[name]
        wanted, _ = decoded_by_opencv(content)
        padded = content[:-2] + bytes(20) + content[-2:]
        for table in (b'\xff\xdb', b'\xff\xc4'):
            padded = padded.replace(table, bytes(3) + table, 1)
        with stderr_of_process() as stderr:
            np.testing.assert_array_equal(read_image(saved(tmp_path, padded)), wanted)
        assert stderr.getvalue() == ''
        with pytest.raises(InputError, match='extraneous bytes'):
            read_image(saved(tmp_path, content[:-2] + b'x' * 20 + content[-2:]))


@given(
    st.sampled_from([b'II*\0\x08\0\0\0', b'MM\0*\0\0\0\x08', b'II*\0\x10\0\0\0', b'']),
    st.lists(st.tuples(st.sampled_from([0x0110, 0x0112]), st.integers(0, 9)), max_size=3),
    st.integers(0, 40),
    st.sampled_from([b'Exif\0\0', b'http:/']),
    st.booleans(),
)
@settings(max_examples=60)
def test_read_image__orientation_of_any_exif(
    start: bytes, entries: list[tuple[int, int]], cut: int, name: bytes, twice: bool
) -> None:
    """Whatever OpenCV makes of it, turned or not."""
    order: Literal['little', 'big'] = 'big' if start.startswith(b'MM') else 'little'
    directory = len(entries).to_bytes(2, order)
    for tag, value in entries:
        numbers = ((tag, 2), (3, 2), (1, 4), (value, 2), (0, 2))
        directory += b''.join(number.to_bytes(size, order) for number, size in numbers)
    exif = name + (start + directory)[: 60 - cut]
    segment = b'\xff\xe1' + (len(exif) + 2).to_bytes(2, 'big') + exif
    plain = COMPLETE['jpeg']
    content = plain[:2] + segment * (1 + twice) + plain[2:]
    wanted, _ = decoded_by_opencv(content)
    with tempfile.TemporaryDirectory() as folder:
        np.testing.assert_array_equal(read_image(saved(Path(folder), content)), wanted)


def png_chunks(content: bytes) -> list[bytes]:
    chunks, position = [], 8
    while position < len(content):
        end = position + 12 + int.from_bytes(content[position : position + 4])
        chunks.append(content[position:end])
        position = end
    return chunks


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)


# Chunks that libraries have limits for, or that are not as the standard wants them.
ODD_CHUNKS = {
    'long compressed text': png_chunk(b'zTXt', b'note\0\0' + zlib.compress(bytes(2_000_000))),
    'long text': png_chunk(b'tEXt', b'note\0' + b'x' * 9_000_000),
    'large profile': png_chunk(b'iCCP', b'name\0\0' + zlib.compress(bytes(2_000_000))),
    'text with a wrong checksum': png_chunk(b'tEXt', b'note\0text')[:-1] + b'x',
    'profile that is none': png_chunk(b'iCCP', b'name'),
    'malformed orientation': png_chunk(b'eXIf', b'none'),
    'background': png_chunk(b'bKGD', bytes(6)),
    'background of another kind': png_chunk(b'bKGD', bytes(1)),
    'transparency of another kind': png_chunk(b'tRNS', bytes(1)),
    'gamma': png_chunk(b'gAMA', (45455).to_bytes(4)),
    'unknown chunk': png_chunk(b'abCd', b'x'),
}


@pytest.mark.parametrize('name', ODD_CHUNKS)
def test_read_image__sound_png(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    header, *rest = png_chunks(COMPLETE['png'])
    content = COMPLETE['png'][:8] + b''.join([header, ODD_CHUNKS[name], *rest])
    np.testing.assert_array_equal(read_image(saved(tmp_path, content), size=(HEIGHT, WIDTH))[..., ::-1], RGB)
    assert capfd.readouterr().err == ''


ROWS = b''.join(b'\0' + row.tobytes() for row in RGB)


def png_of(data: bytes, *, kind: tuple[int, int] = (8, 2), before: bytes = b'') -> bytes:
    """A PNG of `RGB`'s size with sound checksums; `kind` is the bits of a channel and the type of colours."""
    header = WIDTH.to_bytes(4) + HEIGHT.to_bytes(4) + bytes([*kind, 0, 0, 0])
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        [png_chunk(b'IHDR', header), before, png_chunk(b'IDAT', data), png_chunk(b'IEND', b'')]
    )


@pytest.mark.parametrize('data', [zlib.compress(ROWS), zlib.compress(ROWS + bytes(99)), zlib.compress(ROWS) + b'more'])
def test_read_image__png_with_more_than_its_rows(
    data: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    np.testing.assert_array_equal(read_image(saved(tmp_path, png_of(data)))[..., ::-1], RGB)
    assert capfd.readouterr().err == ''


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        (png_of(zlib.compress(ROWS[: len(ROWS) // 2])), 'fewer rows'),
        (png_of(zlib.compress(ROWS)[:200]), 'fewer rows'),
        (png_of(zlib.compress(ROWS)[:-4]), 'fewer rows'),
        (png_of(b''), 'fewer rows'),
        (png_of(zlib.compress(ROWS)[:-4] + b'none'), 'damaged'),
        (png_of(zlib.compress(b'\x09' + ROWS[1:])), 'filter'),
        (png_of(zlib.compress(bytes((WIDTH + 1) * HEIGHT)), kind=(8, 3)), 'no palette'),
        (png_of(zlib.compress(ROWS), kind=(7, 2)), 'colour type 2 with 7 bits'),
        (png_of(zlib.compress(ROWS), before=png_chunk(b'CgBI', bytes(4))), 'CgBI'),
        (png_of(zlib.compress(ROWS), before=png_chunk(b'IHDR', bytes(13))), 'several header'),
    ],
)
def test_read_image__png_of_sound_checksums_that_is_damaged(
    content: bytes, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=said):
        read_image(saved(tmp_path, content))
    assert capfd.readouterr().err == ''


@pytest.mark.parametrize('kind', [(1, 0), (16, 0), (8, 2), (16, 2), (4, 3), (16, 4), (8, 6)])
@pytest.mark.parametrize('size', [(1, 1), (3, 2), (13, 9)])
def test_read_image__interlaced_png(kind: tuple[int, int], size: tuple[int, int], tmp_path: Path) -> None:
    """As long as its passes are, and not a byte shorter."""
    (depth, colour), (width, height) = kind, size
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([depth, colour, 0, 0, 1])
    palette = png_chunk(b'PLTE', bytes(48)) if colour == 3 else b''

    def content(num_bytes: int) -> bytes:
        chunks = [png_chunk(b'IHDR', header), palette, png_chunk(b'IDAT', zlib.compress(bytes(num_bytes)))]
        return b'\x89PNG\r\n\x1a\n' + b''.join(chunks) + png_chunk(b'IEND', b'')

    def is_read(num_bytes: int) -> bool:
        return _read_or_none(saved(tmp_path, content(num_bytes))) is not None

    least = bisect_left(range(4000), True, key=is_read)
    pixels, complaint = decoded_by_opencv(content(least))
    assert pixels is not None
    assert complaint == ''
    assert 'Not enough' in decoded_by_opencv(content(least - 1))[1]


@pytest.mark.parametrize('kind', ['TIFF', 'GIF', 'BMP', 'WEBP', 'PPM'])
def test_read_image__what_opencv_logs(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tags: dict[str, Any] = {'tiffinfo': {65000: 'a private tag'}} if kind == 'TIFF' else {}
    content, before = encoded(kind, **tags), cv2.utils.logging.getLogLevel()
    assert read_image(saved(tmp_path, content)).shape == RGB.shape
    with pytest.raises(InputError):
        read_image(saved(tmp_path, content[: len(content) // 2]))
    assert capfd.readouterr().err == ''
    assert cv2.utils.logging.getLogLevel() == before


@given(st.integers(8, len(COMPLETE['png']) - 1), st.integers(1, 255))
@settings(max_examples=50)
def test_read_image__png_with_a_changed_byte(place: int, change: int) -> None:
    content = bytearray(COMPLETE['png'])
    content[place] ^= change
    with tempfile.TemporaryDirectory() as folder, pytest.raises(InputError, match=r'PNG|OpenCV cannot'):
        read_image(saved(Path(folder), bytes(content)))


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'WEBP', 'GIF', 'JPEG'])
def test_read_image__many_pixels(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """Pillow's limit for files that nobody has stated a size of."""
    content = encoded(kind, 'P' if kind == 'GIF' else 'RGB')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    assert read_image(saved(tmp_path, content), size=(HEIGHT, WIDTH)).shape == (HEIGHT, WIDTH, 3)
    assert not recwarn.list
    assert Image.MAX_IMAGE_PIXELS == 100


def test_read_image__more_pixels_than_opencv_reads(tmp_path: Path) -> None:
    """A limit is named as one, and nothing of that size is made."""
    header = (2**16).to_bytes(4) + (2**15).to_bytes(4) + bytes([8, 0, 0, 0, 0])
    content = b'\x89PNG\r\n\x1a\n' + png_chunk(b'IHDR', header) + png_chunk(b'IDAT', b'') + png_chunk(b'IEND', b'')
    with pytest.raises(InputError, match='OpenCV cannot decode the'):
        read_image(saved(tmp_path, content))


@pytest.mark.real
def test_read_image__real(real_dir: Path) -> None:
    """All of them are accepted, with OpenCV's pixels."""
    mmcv = pytest.importorskip('mmcv')
    paths = sorted((real_dir / 'coco_mini' / 'val2017').glob('*.jpg'))
    assert paths
    for path in paths:
        np.testing.assert_array_equal(read_image(path), mmcv.imfrombytes(path.read_bytes()))
