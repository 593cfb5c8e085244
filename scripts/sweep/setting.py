"""What the students of a sweep learn from: a tiny set of images, and caches of a tiny teacher."""

import json
from pathlib import Path

import torch
from click.testing import CliRunner

from mtpd.data.synthetic import SyntheticSpec, make_synthetic_set
from mtpd.detectors.models import build_detector, load_config
from mtpd_extract.cli import main as extract

DEMO = Path(__file__).resolve().parents[2] / 'configs' / 'demo' / 'retinanet_tiny.py'
NUM_CLASSES = 2
NUM_IMAGES = 4  # of each split
# Wider ones leave rows of the deep levels that a floor would lose.
IMAGE_SIZES = ((128, 128), (96, 128))
STRIDES = (4, 8, 16, 32, 64, 128)
# SSD's levels from a stride of 100 px on have no counterpart.
TEACHER = """
_base_ = {base!r}
model = dict(
    data_preprocessor=dict(pad_size_divisor={pad_divisor}),
    neck=dict(num_outs=6),
    bbox_head=dict(num_classes={num_classes}, anchor_generator=dict(strides={strides})),
)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=({side}, {side}), keep_ratio={keep_ratio}),
    dict(type='PackDetInputs'),
]
"""


def make_set(folder: Path) -> Path:
    """A COCO-format set with two classes."""
    coco = folder / 'shapes'
    make_synthetic_set(coco, SyntheticSpec(num_train=NUM_IMAGES, num_val=NUM_IMAGES, num_empty=0, sizes=IMAGE_SIZES))
    for path in (coco / 'annotations').glob('instances_*.json'):
        content = json.loads(path.read_text())
        content['categories'] = [{'id': number + 1, 'name': f'class{number}'} for number in range(NUM_CLASSES)]
        for one in content['annotations']:
            one['category_id'] = 1 + one['id'] % NUM_CLASSES
        path.write_text(json.dumps(content))
    return coco


def make_cache(folder: Path, coco: Path, *, side: int, pad_divisor: int, keep_ratio: bool) -> Path:
    """The cache of a teacher that takes images of this geometry; made unless it is there."""
    cache = folder / f'cache_{side}_{pad_divisor}_{"fit" if keep_ratio else "square"}'
    if cache.is_dir():
        return cache
    config, weights = cache.with_suffix('.py'), cache.with_suffix('.pth')
    values = {'side': side, 'pad_divisor': pad_divisor, 'keep_ratio': keep_ratio, 'strides': list(STRIDES)}
    config.write_text(TEACHER.format(base=str(DEMO), num_classes=NUM_CLASSES, **values))
    torch.manual_seed(0)
    torch.save({'state_dict': build_detector(load_config(str(config))).state_dict()}, weights)
    teacher = ['--teacher', config, '--checkpoint', weights]
    options = ['--coco', coco, '--out', cache, '--codec', 'fp16', '--views', 'plain', '--device', 'cpu']
    result = CliRunner().invoke(extract, [str(one) for one in (*teacher, *options)])
    if result.exit_code:
        raise RuntimeError(f'the cache of the sweep could not be made: {result.output}')
    return cache
