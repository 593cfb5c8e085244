"""What is wrong with a teacher, a data set or an image is said in one line, and nothing is written or lost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import mtpd.cache

TINY_RETINANET = Path(__file__).resolve().parents[2] / 'configs' / 'demo' / 'retinanet_tiny.py'

HEADER = """
import torch
from torch import nn

class Net(nn.Module):
    scale, mean, std = (128, 128), (1.0, 2.0, 3.0), (1.0, 1.0, 1.0)
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=8, padding=1)
    def features(self, images):
        return [self.conv(images)]
"""


@pytest.fixture
def teacher_error(make_command: Any, synthetic_set: Path, tmp_path: Path) -> Callable[..., str]:
    """`teacher_error(source, option, ...)`: the line that refuses a teacher file that ends in this source."""

    def run(source: str, *options: object) -> str:
        (tmp_path / 'net.py').write_text(HEADER + source)
        line: str = make_command(f'{tmp_path / "net.py"}:build', synthetic_set).error(tmp_path / 'cache', *options)
        return line

    return run


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        ('def biuld(checkpoint): ...', "does not define a callable 'build'"),
        ('build = 3', "does not define a callable 'build'"),
        ('import no_such_package', "cannot be imported: ModuleNotFoundError: No module named 'no_such_package'"),
        ('def build(checkpoint) return', 'cannot be imported: SyntaxError'),
        (
            'def build(checkpoint): raise OSError("no\\nweights")',
            'with no checkpoint (give one with --checkpoint FILE): OSE',
        ),
        ('def build(): ...', 'takes 0 positional arguments'),
        (
            'def build(checkpoint): return nn.Conv2d(3, 4, 1)',
            'a Conv2d, expected a torch module with a method features',
        ),
        ('def build(checkpoint): return Net().features', 'a method, expected a torch module'),
        (
            'def build(checkpoint):\n net = Net()\n del Net.mean\n return net',
            'give --mean, or set `mean` on the module',
        ),
        ('def build(checkpoint):\n net = Net()\n del Net.std\n return net', 'give --std, or set `std` on the module'),
        ('def build(checkpoint):\n net = Net()\n del Net.scale\n return net', 'give --scale, or set `scale` on'),
        ('Net.mean = (1.0, 2.0)\nbuild = lambda checkpoint: Net()', 'its mean is (1.0, 2.0), expected 3 finite'),
        ('Net.mean = "grey"\nbuild = lambda checkpoint: Net()', "its mean is 'grey', expected 3 finite"),
        (
            'Net.channel_order = "bgra"\nbuild = lambda checkpoint: Net()',
            "channel_order is 'bgra', expected bgr or rgb",
        ),
        (
            'Net.features = lambda self, x: self.conv(x)\nbuild = lambda checkpoint: Net()',
            'returns a Tensor, expected a list',
        ),
        ('Net.features = lambda self, x: []\nbuild = lambda checkpoint: Net()', 'returns no maps'),
        ('Net.features = lambda self, x: [x[0]]\nbuild = lambda checkpoint: Net()', 'expected as many images'),
        (
            'Net.features = lambda self, x: [x.mean((2, 3))]\nbuild = lambda checkpoint: Net()',
            'expected (batch, channels',
        ),
        ('Net.features = lambda self, x: self.convv(x)\nbuild = lambda checkpoint: Net()', "no attribute 'convv'"),
        ('Net.features = lambda self, x: [x[..., :100]]\nbuild = lambda checkpoint: Net()', 'has no single stride'),
    ],
)
def test_teacher_files(teacher_error: Callable[..., str], tmp_path: Path, source: str, message: str) -> None:
    line = teacher_error(source)
    assert message in line
    assert not (tmp_path / 'cache').exists()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (('--std', '0,1,1'), 'its std is (0.0, 1.0, 1.0), expected three numbers above 0'),
        (('--mean', 'nan,1,1'), 'expected 3 finite number(s)'),
        (('--pad-value', 'inf'), 'expected 1 finite number(s)'),
        (('--trust-checkpoint',), '--trust-checkpoint'),
        (('--checkpoint', 'gone.pth'), 'there is no checkpoint gone.pth'),
        (('--levels', 'p3,p9'), '--levels: teacher'),
        (('--device', 'cuda'), 'PyTorch finds no CUDA device'),
    ],
)
def test_options_of_a_teacher_file(
    teacher_error: Callable[..., str], options: tuple[object, ...], message: str, tmp_path: Path
) -> None:
    if 'cuda' in options and torch.cuda.is_available():
        pytest.skip('there is a CUDA device')
    assert message in teacher_error('build = lambda checkpoint: Net()', *options)
    assert not (tmp_path / 'cache').exists()


def test_a_teacher_file_that_is_not_there(make_command: Any, synthetic_set: Path, tmp_path: Path) -> None:
    error = make_command('nowhere/net.py:build', synthetic_set).error(tmp_path / 'cache')
    assert 'teacher nowhere/net.py:build: there is no file' in error


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints that do not fit the demo's network, each in its own way."""
    folder = tmp_path_factory.mktemp('checkpoints')
    torch.save({'state_dict': {'conv.weight': torch.zeros(3)}}, folder / 'other.pth')
    content = (folder / 'other.pth').read_bytes()
    (folder / 'truncated.pth').write_bytes(content[: len(content) // 2])
    (folder / 'text.pth').write_text('not found')
    torch.save({'state_dict': {}, 'hook': Path('x')}, folder / 'pickle.pth')
    return folder


@pytest.mark.parametrize(
    ('teacher', 'options', 'message'),
    [
        ('retinanet_r50_fpn_1x_cocco', (), 'retinanet_r50_fpn_1x_coco'),
        ('nowhere/config.py', (), 'config nowhere/config.py: there is no such file'),
        (TINY_RETINANET, (), 'a config file needs its weights: add --checkpoint FILE'),
        (TINY_RETINANET, ('--checkpoint', 'gone.pth'), 'gone.pth: there is no such file'),
        (TINY_RETINANET, ('--checkpoint', '{}/other.pth'), 'is it the checkpoint of this config?'),
        (TINY_RETINANET, ('--checkpoint', '{}/truncated.pth'), 'is damaged or truncated'),
        (TINY_RETINANET, ('--checkpoint', '{}/text.pth'), 'is a text file'),
        (TINY_RETINANET, ('--checkpoint', '{}/pickle.pth'), '--trust-checkpoint'),
        (TINY_RETINANET, ('--checkpoint', '{}/other.pth', '--mean', '0,0,0'), '--mean: the input of'),
        (TINY_RETINANET, ('--checkpoint', '{}/other.pth', '--pad-divisor', 32), '--pad-divisor: the input of'),
        (TINY_RETINANET, ('--checkpoint', '{}/other.pth', '--channel-order', 'rgb'), '--channel-order: the input of'),
    ],
)
def test_mmdet_teachers(
    make_command: Any,
    synthetic_set: Path,
    tmp_path: Path,
    checkpoints: Path,
    teacher: object,
    options: tuple[object, ...],
    message: str,
) -> None:
    given = [str(option).format(checkpoints) for option in options]
    error = make_command(teacher, synthetic_set).error(tmp_path / 'cache', *given)
    assert message in error
    assert not (tmp_path / 'cache').exists()


@pytest.fixture
def coco(synthetic_set: Path, tmp_path: Path) -> Path:
    """A copy of the synthetic set that may be spoilt."""
    return Path(shutil.copytree(synthetic_set, tmp_path / 'coco'))


def edit_annotations(coco: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = coco / 'annotations' / 'instances_train2017.json'
    content = json.loads(path.read_bytes())
    edit(content)
    path.write_text(json.dumps(content))


def make_flat(content: dict[str, Any]) -> None:
    content['images'][2].update(height=1, width=5000)
    content['annotations'] = []


def first_image(coco: Path) -> Path:
    return min((coco / 'train2017').iterdir())


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda coco: shutil.rmtree(coco), 'instances_train2017.json: cannot read the annotation file'),
        (lambda coco: shutil.rmtree(coco / 'train2017'), 'train2017: there is no such image folder; give --coco DIR'),
        (lambda coco: first_image(coco).unlink(), '1 of 24 images are missing, the first is 000000000001.jpg'),
        (
            lambda coco: (coco / 'annotations' / 'instances_train2017.json').write_text('{"images": ['),
            'instances_train2017.json: not valid JSON',
        ),
        (lambda coco: edit_annotations(coco, lambda c: c.update(images=[], annotations=[])), 'lists no images'),
        (
            lambda coco: edit_annotations(coco, lambda c: c['images'][3].update(file_name='../../etc/passwd')),
            "images[3]: file_name '../../etc/passwd' leaves the image folder",
        ),
        (
            lambda coco: edit_annotations(coco, make_flat),
            '000000000003.jpg: 5000 x 1 px would be an empty image at scale 128x128',
        ),
    ],
)
def test_data_sets(make_command: Any, command: Any, coco: Path, tmp_path: Path, spoil: Any, message: str) -> None:
    spoil(coco)
    assert message in make_command(command.teacher, coco).error(tmp_path / 'cache')
    assert not (tmp_path / 'cache').exists()


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda path: path.write_bytes(b''), 'the image file is empty'),
        # With an end marker: only decoding it tells.
        (lambda path: path.write_bytes(path.read_bytes()[:-500] + b'\xff\xd9'), 'not a complete image'),
        (lambda path: cv2.imwrite(str(path), np.zeros((9, 7, 3), np.uint8)), 'the image is 7 x 9 px'),
    ],
)
@pytest.mark.parametrize('workers', [0, 2])
def test_images(
    make_command: Any, command: Any, coco: Path, tmp_path: Path, workers: int, spoil: Any, message: str
) -> None:
    image = first_image(coco)
    spoil(image)
    error = make_command(command.teacher, coco).error(tmp_path / 'cache', '--workers', workers)
    assert str(image) in error
    assert message in error
    assert not (tmp_path / 'cache' / 'manifest.json').exists()


def test_an_odd_annotation_file_is_warned_of_once(make_command: Any, command: Any, coco: Path, tmp_path: Path) -> None:
    edit_annotations(coco, lambda content: content['images'].append(content['images'][0] | {'id': 10**6}))
    result = make_command(command.teacher, coco).invoke(tmp_path / 'cache', '--dry-run')
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith('warning: ')]
    assert f'{coco / "annotations" / "instances_train2017.json"}: 1 image files are listed under several' in line


def convert(path: Path, mode: str) -> None:
    with Image.open(path) as image:
        converted = image.convert(mode)
    converted.save(path, quality=100, subsampling=0)


def test_grey_and_cmyk_images_are_worked_on(make_command: Any, command: Any, coco: Path, tmp_path: Path) -> None:
    """Nearly as if they had been saved in colour; the colours of CMYK are not quite the same."""
    grey, cmyk = sorted((coco / 'train2017').iterdir())[:2]
    convert(grey, 'L')
    convert(cmyk, 'CMYK')
    spoilt = make_command(command.teacher, coco)
    spoilt.run(tmp_path / 'cache', '--limit', 2)
    convert(grey, 'RGB')
    convert(cmyk, 'RGB')
    spoilt.run(tmp_path / 'colour', '--limit', 2)
    cache, colour = mtpd.cache.open(tmp_path / 'cache'), mtpd.cache.open(tmp_path / 'colour')
    for image_id in cache.image_ids:
        for name, maps in cache.read(image_id, 'flip').items():
            wanted = colour.read(image_id, 'flip')[name]
            assert torch.cosine_similarity(maps.flatten(), wanted.flatten(), dim=0) > 0.99


def test_maps_of_an_unexpected_size(teacher_error: Callable[..., str], tmp_path: Path) -> None:
    """A network that is even at the size that it was asked with, and rounds otherwise at another."""
    crop = 'Net.features = lambda self, x: [self.conv(x[..., : x.shape[-1] // 64 * 64])]'
    line = teacher_error(f'{crop}\nbuild = lambda checkpoint: Net()')
    assert 'level p3 of the teacher is (4, 16, 8) for a 128x96 input, expected (4, 16, 12)' in line
    assert not (tmp_path / 'cache' / 'manifest.json').exists()


@pytest.mark.parametrize(
    ('source', 'codec', 'message'),
    [
        *(
            (f'Net.features = lambda self, x: [self.conv(x) * {bad}]', codec, 'not finite')
            for codec in ('fp16', 'int8', 'lean')
            for bad in ('float("nan")', '((x.amax() > 0) / 0)', '1e25')
        ),
        ('Net.features = lambda self, x: [self.conv(x) + x.amax((1, 2, 3), True) * 1e6]', 'fp16', 'exceed 65504'),
    ],
)
def test_values_that_cannot_be_stored(teacher_error: Callable[..., str], source: str, codec: str, message: str) -> None:
    line = teacher_error(f'{source}\nbuild = lambda checkpoint: Net()', '--codec', codec, '--batch-size', 2)
    assert 'level p3, view plain of the images with ids ' in line
    assert message in line


@pytest.mark.parametrize('codec', ['fp16', 'int8', 'lean'])
@pytest.mark.parametrize(
    ('maps', 'said'),
    [
        (
            '[self.conv(x), 5.0 + 1e-5 * self.conv(x)]',
            'level p3_2 is nearly constant: its features have a standard deviation of ',
        ),
        (
            '[self.conv(x), 0 * self.conv(x)]',
            'level p3_2 is nearly constant: its features have a standard deviation of 0 and means of',
        ),
        ('[self.conv(x) * 1e-8]', 'level p3 is nearly constant'),
    ],
)
def test_maps_that_hardly_vary(teacher_error: Callable[..., str], maps: str, said: str, codec: str) -> None:
    line = teacher_error(f'Net.features = lambda self, x: {maps}\nbuild = lambda checkpoint: Net()', '--codec', codec)
    assert said in line
    assert 'net.py:build' in line


@pytest.mark.parametrize('codec', ['int8', 'lean'])
def test_values_that_are_not_finite_in_the_mirrored_view_alone(teacher_error: Callable[..., str], codec: str) -> None:
    """The set's images differ from their mirror images: their left halves do not weigh what their right ones do."""
    source = (
        'def features(self, x):\n'
        '    left, right = (x[..., half].sum((1, 2, 3)) for half in (slice(None, 48), slice(-48, None)))\n'
        '    seen = self.__dict__.setdefault("seen", {})\n'
        '    keys = [tuple(sorted((round(float(a)), round(float(b))))) for a, b in zip(left, right)]\n'
        '    mirrored = [seen.setdefault(k, float(a)) != float(a) for k, a in zip(keys, left)]\n'
        '    return [self.conv(x) / (1 - torch.tensor(mirrored).float().view(-1, 1, 1, 1))]\n'
        'Net.features = features\nbuild = lambda checkpoint: Net()'
    )
    assert 'level p3, view flip of the images with ids ' in teacher_error(source, '--codec', codec)


def test_random_numbers_that_a_black_image_does_not_show(teacher_error: Callable[..., str]) -> None:
    source = 'Net.features = lambda self, x: [self.conv(x * torch.rand(1))]\nbuild = lambda checkpoint: Net()'
    assert 'map 0 of features() differs when the same image is passed twice' in teacher_error(source)


def test_a_second_map_of_a_stride_can_be_stored_alone(make_command: Any, synthetic_set: Path, tmp_path: Path) -> None:
    source = 'Net.features = lambda self, x: [self.conv(x), -self.conv(x)]\nbuild = lambda checkpoint: Net()'
    (tmp_path / 'net.py').write_text(HEADER + source)
    command = make_command(f'{tmp_path / "net.py"}:build', synthetic_set)
    command.run(tmp_path / 'cache', '--limit', 1, '--levels', 'p3_2')
    assert [level.name for level in mtpd.cache.open(tmp_path / 'cache').levels] == ['p3_2']


def test_a_teacher_that_fails_on_the_way(teacher_error: Callable[..., str]) -> None:
    """The probe is an even size, the data set has others."""
    source = 'Net.features = lambda self, x: [self.conv(x + x.view(len(x), 3, -1, x.shape[-1] // 64 * 64))]'
    line = teacher_error(f'{source}\nbuild = lambda checkpoint: Net()')
    assert 'fails on ' in line
    assert 'RuntimeError' in line


def test_the_target_is_a_file(command: Any, tmp_path: Path) -> None:
    (tmp_path / 'cache').write_text('mine')
    assert f'--out {tmp_path / "cache"}: is a file; give a folder' in command.error(tmp_path / 'cache')
    error = command.error(tmp_path / 'cache' / 'below')
    assert str(tmp_path / 'cache') in error
    assert (tmp_path / 'cache').read_text() == 'mine'
