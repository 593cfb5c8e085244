"""What comes out of a cache is what the live teacher gives, on every level, in both views, in any order.

The live inputs are made here, by OpenCV and NumPy or by mmdet's own pipeline, not by the code under test.
"""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

import mtpd.cache
from mtpd.cache.format.manifest import ViewName
from mtpd.data.coco import read_annotations
from mtpd.detectors.of_file.program import build_module
from mtpd.detectors.of_mmdet.models import build_detector, load_config

LEAST_COSINE = 0.9999

TINY_RETINANET = Path(__file__).resolve().parents[2] / 'configs' / 'demo' / 'retinanet_tiny.py'

# mmdet's YOLOX spells autocast the old way.
pytestmark = pytest.mark.filterwarnings('ignore:`torch.cuda.amp.autocast:FutureWarning')

Live = Callable[[Path, str], Mapping[str, Tensor]]


def worst_cosines(cache_path: Path, coco: Path, live: Live, *, split: str = 'train2017') -> dict[str, float]:
    """Smallest cosine of each level over all images and views of a cache, read in a shuffled order."""
    cache = mtpd.cache.open(cache_path)
    images = read_annotations(coco / 'annotations' / f'instances_{split}.json').images
    files = {image.id: coco / split / image.file_name for image in images}
    assert cache.views == ('plain', 'flip')
    keys: list[tuple[int, ViewName]] = [(image_id, view) for image_id in cache.image_ids for view in cache.views]
    random.Random(3).shuffle(keys)
    cosines: dict[str, list[float]] = {level.name: [] for level in cache.levels}
    for image_id, view in keys:
        cached, wanted = cache.read(image_id, view), live(files[image_id], view)
        assert cached.keys() == wanted.keys() == cosines.keys()
        for name, maps in cached.items():
            assert maps.shape == wanted[name].shape
            cosines[name].append(cosine(maps, wanted[name]))
    return {name: min(values) for name, values in cosines.items()}


def cosine(a: Tensor, b: Tensor) -> float:
    x, y = a.double().flatten(), b.double().flatten()
    return float(x @ y / (x.norm() * y.norm()))


def live_from_file(module: Any, names: list[str], *, scale: tuple[int, int], pad: float) -> Live:
    """The maps of a `file.py:callable` teacher, whose input is made by hand: resize, mirror, pad to 32, normalise."""

    def live(path: Path, view: str) -> Mapping[str, Tensor]:
        image = cv2.imread(str(path))
        assert image is not None
        height, width = image.shape[:2]
        factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
        resized = cv2.resize(image, (int(width * factor + 0.5), int(height * factor + 0.5)))
        if view == 'flip':
            resized = resized[:, ::-1]
        rows, columns = resized.shape[:2]
        canvas = np.full((-(-rows // 32) * 32, -(-columns // 32) * 32, 3), pad, np.float32)
        canvas[:rows, :columns] = resized
        canvas = (canvas - np.float32(module.mean)) / np.float32(module.std)
        with torch.no_grad():
            maps = module.features(torch.from_numpy(canvas.transpose(2, 0, 1)[None].astype(np.float32)))
        return {name: values[0] for name, values in zip(names, maps, strict=True)}

    return live


def live_from_mmdet(config_path: Path, checkpoint: Path, names: list[str]) -> Live:
    """The maps of an mmdet teacher, through mmdet's own test pipeline and data preprocessor."""
    config = load_config(str(config_path))
    from mmdet.registry import MODELS
    from mmengine.dataset import Compose

    model = MODELS.build(config.model).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)['state_dict'])
    pipeline = [step for step in config.test_pipeline if step['type'] != 'LoadAnnotations']
    after_resize = 1 + next(index for index, step in enumerate(pipeline) if step['type'] == 'Resize')
    flipped = [*pipeline[:after_resize], {'type': 'RandomFlip', 'prob': 1.0}, *pipeline[after_resize:]]
    pipelines = {'plain': Compose(pipeline), 'flip': Compose(flipped)}

    def live(path: Path, view: str) -> Mapping[str, Tensor]:
        packed = pipelines[view]({'img_path': str(path), 'img_id': 0})
        data = {'inputs': [packed['inputs']], 'data_samples': [packed['data_samples']]}
        with torch.no_grad():
            maps = model.extract_feat(model.data_preprocessor(data, False)['inputs'])
        return {name: values[0] for name, values in zip(names, maps, strict=True)}

    return live


@pytest.fixture(scope='module')
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights for the demo's network, random but with a batch norm that does something."""
    torch.manual_seed(5)
    model = build_detector(load_config(str(TINY_RETINANET)))
    for name, values in model.named_buffers():
        if name.endswith('running_mean'):
            values.normal_(0, 0.1)
        elif name.endswith('running_var'):
            values.uniform_(0.5, 2)
    path = tmp_path_factory.mktemp('checkpoint') / 'random.pth'
    torch.save({'state_dict': model.state_dict()}, path)
    return path


def tiny_live(teacher_file: Path) -> Live:
    module = build_module(teacher_file, 'build', checkpoint=None, device=torch.device('cpu'))
    return live_from_file(module, ['p3', 'p4', 'p5'], scale=(128, 128), pad=20.0)


def test_file_teacher_on_synthetic_images(teacher_file: Path, synthetic_set: Path, whole: Path) -> None:
    worst = worst_cosines(whole, synthetic_set, tiny_live(teacher_file))
    assert min(worst.values()) >= LEAST_COSINE, worst


def test_fp16_is_closer_still(command: Any, teacher_file: Path, synthetic_set: Path, tmp_path: Path) -> None:
    command.run(tmp_path / 'cache', '--codec', 'fp16')
    worst = worst_cosines(tmp_path / 'cache', synthetic_set, tiny_live(teacher_file))
    assert min(worst.values()) >= 1 - 1e-6, worst


def test_the_views_are_not_each_other(whole: Path, teacher_file: Path, synthetic_set: Path) -> None:
    """A cache that held the plain view twice, or mirrored maps, would not pass for one that holds both views."""
    live = tiny_live(teacher_file)
    swapped = worst_cosines(whole, synthetic_set, lambda path, view: live(path, 'flip' if view == 'plain' else 'plain'))
    assert max(swapped.values()) < LEAST_COSINE
    mirrored = worst_cosines(
        whole,
        synthetic_set,
        lambda path, view: (
            {name: maps.flip(-1) for name, maps in live(path, 'plain').items()}
            if view == 'flip'
            else live(path, 'plain')
        ),
    )
    assert max(mirrored.values()) < LEAST_COSINE


def test_mmdet_teacher_on_synthetic_images(
    make_command: Any, random_checkpoint: Path, synthetic_set: Path, tmp_path: Path
) -> None:
    command = make_command(TINY_RETINANET, synthetic_set, ['--checkpoint', random_checkpoint])
    command.run(tmp_path / 'cache')
    live = live_from_mmdet(TINY_RETINANET, random_checkpoint, ['p2', 'p3', 'p4', 'p5'])
    worst = worst_cosines(tmp_path / 'cache', synthetic_set, live)
    assert min(worst.values()) >= LEAST_COSINE, worst


def test_neck_and_head_are_beside_the_maps(
    make_command: Any, random_checkpoint: Path, synthetic_set: Path, tmp_path: Path
) -> None:
    command = make_command(TINY_RETINANET, synthetic_set, ['--checkpoint', random_checkpoint, '--limit', 1])
    command.run(tmp_path / 'cache')
    weights = mtpd.cache.open(tmp_path / 'cache').teacher_weights()
    state = torch.load(random_checkpoint, weights_only=True)['state_dict']
    assert weights.keys() == {name for name in state if not name.startswith('backbone.')}
    assert all(torch.equal(value, state[name]) for name, value in weights.items())


@pytest.mark.real
def test_yolox_nano_on_real_images(make_command: Any, real_dir: Path, tmp_path: Path) -> None:
    teacher = real_dir / 'teachers' / 'yolox_nano_mmdet'
    config, checkpoint = teacher.with_suffix('.py'), teacher.with_suffix('.pth')
    coco = real_dir / 'coco_mini'
    command = make_command(config, coco, ['--checkpoint', checkpoint, '--split', 'val2017'])
    command.run(tmp_path / 'cache', '--limit', 6)
    live = live_from_mmdet(config, checkpoint, ['p3', 'p4', 'p5'])
    worst = worst_cosines(tmp_path / 'cache', coco, live, split='val2017')
    assert min(worst.values()) >= LEAST_COSINE, worst


@pytest.mark.real
@pytest.mark.parametrize('codec', ['int8', 'fp16'])
def test_nanodet_m_on_real_images(make_command: Any, real_dir: Path, tmp_path: Path, codec: str) -> None:
    teacher = real_dir / 'teachers' / 'nanodet_m'
    source, checkpoint = teacher.with_suffix('.py'), teacher.with_suffix('.pth')
    mean, std = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)
    stated = ['--scale', '320x320', '--mean', ','.join(map(str, mean)), '--std', ','.join(map(str, std))]
    coco = real_dir / 'coco_mini'
    command = make_command(f'{source}:build', coco, ['--checkpoint', checkpoint, '--split', 'val2017', *stated])
    command.run(tmp_path / 'cache', '--limit', 6, '--codec', codec)
    module: Any = build_module(source, 'build', checkpoint=checkpoint, device=torch.device('cpu'))
    module.mean, module.std = mean, std
    worst = worst_cosines(
        tmp_path / 'cache', coco, live_from_file(module, ['p3', 'p4', 'p5'], scale=(320, 320), pad=0.0), split='val2017'
    )
    assert min(worst.values()) >= (LEAST_COSINE if codec == 'int8' else 1 - 1e-6), worst
