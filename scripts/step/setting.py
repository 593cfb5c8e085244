"""What is trained: images, a teacher and its cache, and a stage file for each way of training."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from mtpd.data.synthetic import SyntheticSpec, make_synthetic_set
from mtpd.detectors.models import build_detector
from mtpd.system.environment import choose_device
from mtpd_extract.cli import main as mtpd_extract
from mtpd_train.settings.stage_file import load_stages
from mtpd_train.student import student_config

DEMO = Path(__file__).resolve().parents[2] / 'configs' / 'demo'
DEFAULTS: dict[str, dict[str, Any]] = {
    'cpu': {
        'student': f'{DEMO}/student.py', 'teacher': f'{DEMO}/teachers/strong.py', 'size': '128x128',
        'batch_size': 4, 'precision': 'fp32', 'workers': 0,
    },
    'cuda': {
        'student': 'retinanet_r50_fpn_1x_coco', 'teacher': 'r101', 'size': '1333x800',
        'batch_size': 8, 'precision': 'bf16', 'workers': 8,
    },
}  # fmt: skip
WAYS = ('plain', 'cached', 'online')


def add_setting_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what is trained."""
    add = parser.add_argument
    add('--device', default='auto', choices=['auto', 'cpu', 'cuda'])
    add('--student', help="zoo name, config or stage file (default: the demo's, on a GPU RetinaNet-R50)")
    add('--teacher', help="zoo name, config or stage file (default: the demo's strong one, on a GPU r101)")
    add('--checkpoint', type=Path, help='weights of the teacher; without it random weights, which are as fast')
    add('--loss', default='masked_mse', help='distillation loss, on all common levels (default %(default)s)')
    add('--codec', default='lean', choices=['fp16', 'int8', 'lean'], help='codec of the cache (default %(default)s)')
    add('--size', metavar='WxH', help='size of the images, px (default %(default)s)')
    add('--images', type=int, default=64, help='number of images in the created set (default %(default)s)')
    add('--coco', type=Path, help='data set to use instead; --size is then the scale of the resize')
    add('--split', default='train2017', help='split of --coco (default %(default)s)')
    add('--precision', choices=['fp32', 'fp16', 'bf16'], help='(default %(default)s)')
    add('--workers', type=int, help='processes that read images (default %(default)s)')


def parse_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, with the defaults of the device, which is in `chosen`."""
    own = [one for one in sys.argv[1:] if one not in ('-h', '--help')]
    device = choose_device(parser.parse_known_args(own)[0].device)
    parser.set_defaults(**DEFAULTS[device.type], chosen=device)
    return parser.parse_args()


def prepare(folder: Path, options: argparse.Namespace) -> dict[str, Path]:
    """Makes images, teacher and cache, and a stage file for each way."""
    coco = options.coco or folder / 'coco'
    width, height = map(int, options.size.split('x'))
    if options.coco is None:
        print(f'making {options.images} images of {options.size}', flush=True)
        spec = SyntheticSpec(num_train=options.images, num_val=1, num_empty=0, sizes=((height, width),))
        make_synthetic_set(coco, spec)
    teacher, checkpoint = folder / 'teacher.py', options.checkpoint or folder / 'teacher.pth'
    config = _config(options.teacher)
    config.dump(teacher)
    if options.checkpoint is None:
        torch.manual_seed(0)
        torch.save(build_detector(config, init_weights=True).state_dict(), checkpoint)
    _config(options.student).dump(folder / 'student.py')
    print('extracting its cache', flush=True)
    source = ['--teacher', teacher, '--checkpoint', checkpoint, '--coco', coco, '--split', options.split]
    how = ['--codec', options.codec, '--scale', options.size, '--device', options.device, '--out', folder / 'cache']
    mtpd_extract.main([str(one) for one in (*source, *how)], standalone_mode=False)
    data = {'coco': str(coco), 'train': options.split, 'val': None, 'batch_size': options.batch_size}
    data['workers'] = options.workers
    base = {
        'student': str(folder / 'student.py'),
        'init': {'backbone': 'none'},
        'data': data,
        'optim': {'lr': 1e-4, 'epochs': 1, 'grad_clip': 10.0, 'precision': options.precision},
    }
    sized = {'data': data | {'geometry': {'scale': options.size}}}
    distill = {'distill': [{'loss': options.loss}]}
    ways = {
        'plain': base | sized,
        'cached': base | distill | {'cache': str(folder / 'cache')},
        'online': base | distill | sized | {'teacher': str(teacher), 'checkpoint': str(checkpoint)},
    }
    for way, stage in ways.items():
        (folder / f'{way}.yaml').write_text(json.dumps(stage))
    return {way: folder / f'{way}.yaml' for way in WAYS}


def _config(reference: str) -> Any:
    """The mmdet config of a zoo name, a config file, or a stage file's student."""
    if not reference.endswith(('.yaml', '.yml')):
        return student_config(reference, changes={})
    (stage,) = load_stages([Path(reference)])
    return student_config(stage.student, changes=stage.model)
