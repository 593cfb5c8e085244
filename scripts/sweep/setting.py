"""What the students of a sweep learn from: a tiny set of images, and caches of a tiny teacher."""

import json
from pathlib import Path

import torch
from click.testing import CliRunner

from mtpd.data.synthetic import SyntheticSpec, make_synthetic_set
from mtpd.detectors.models import build_detector, load_config
from mtpd_extract.cli import main as extract
from sweep.families import Family

DEMO = Path(__file__).resolve().parents[2] / 'configs' / 'demo' / 'retinanet_tiny.py'
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


def make_set(folder: Path, *, num_classes: int) -> Path:
    """A COCO-format set of so many classes."""
    coco = folder / f'shapes{num_classes}'
    make_synthetic_set(coco, SyntheticSpec(num_train=NUM_IMAGES, num_val=NUM_IMAGES, num_empty=0, sizes=IMAGE_SIZES))
    for path in (coco / 'annotations').glob('instances_*.json'):
        content = json.loads(path.read_text())
        content['categories'] = [{'id': number + 1, 'name': f'class{number}'} for number in range(num_classes)]
        for one in content['annotations']:
            one['category_id'] = 1 + one['id'] % num_classes
        path.write_text(json.dumps(content))
    return coco


def make_cache(folder: Path, coco: Path, family: Family) -> Path:
    """The cache of a teacher that takes images as a family does; made unless it is there."""
    geometry = f'{family.side}_{family.pad_divisor}_{"fit" if family.keep_ratio else "square"}'
    cache = folder / f'cache{family.num_classes}_{geometry}'
    if cache.is_dir():
        return cache
    config, weights = cache.with_suffix('.py'), cache.with_suffix('.pth')
    values = {name: getattr(family, name) for name in ('side', 'pad_divisor', 'num_classes', 'keep_ratio')}
    config.write_text(TEACHER.format(base=str(DEMO), strides=list(STRIDES), **values))
    torch.manual_seed(0)
    torch.save({'state_dict': build_detector(load_config(str(config))).state_dict()}, weights)
    teacher = ['--teacher', config, '--checkpoint', weights]
    options = ['--coco', coco, '--out', cache, '--codec', 'fp16', '--views', 'plain', '--device', 'cpu']
    result = CliRunner().invoke(extract, [str(one) for one in (*teacher, *options)])
    if result.exit_code:
        raise RuntimeError(f'the cache of the sweep could not be made: {result.output}')
    return cache
