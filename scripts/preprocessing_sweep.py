"""Compares network inputs with mmdet's own, for every config in the wheel of mmdet that has a detector.

    python scripts/preprocessing_sweep.py            one line for each config that is not equal
    python scripts/preprocessing_sweep.py --verbose  one line for each config

The reference is mmdet's own test pipeline, without the steps that read annotations, and data preprocessor. Each config
gets a landscape and a portrait image of odd sizes. The last line is `preprocessing N of M equal, R refused, W wrong`.
"""

import copy
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from measuring import described_parser
from mtpd.data.images import read_image
from mtpd.detectors.config_input import read_preprocessing
from mtpd.detectors.models import load_config
from mtpd.detectors.pipeline_steps import find_steps, plain_type
from mtpd.detectors.preprocessing import normalise
from mtpd.detectors.transforms import image_view
from mtpd.detectors.zoo import configs_folder
from mtpd.errors import MtpdError
from mtpd.geometry import Size

SIZES: tuple[Size, ...] = ((97, 131), (151, 99))
TOLERANCE = 1e-7  # of normalised values, which are of the order of 1; whole pixel values are equal


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = described_parser(__doc__)
    parser.add_argument('--verbose', action='store_true', help='also print a line for equal configs')
    options = parser.parse_args(arguments)
    counts = dict.fromkeys(('equal', 'refused', 'wrong'), 0)
    worst, num_others = 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        images = [_write_image(Path(folder), size) for size in SIZES]
        for path in configs():
            verdict, reason, error = compare(path, images)
            if not verdict:
                num_others += 1
                continue
            counts[verdict] += 1
            worst = max(worst, error)
            if options.verbose or verdict != 'equal':
                print(f'{verdict:8} {path.relative_to(configs_folder())}: {reason}', flush=True)
    print(f'largest difference of equal inputs {worst:.1e}')
    print(f'not counted: {num_others} pieces of configs, configs without their base files or without a detector')
    total = sum(counts.values())
    print(f'preprocessing {counts["equal"]} of {total} equal, {counts["refused"]} refused, {counts["wrong"]} wrong')


def configs() -> Iterator[Path]:
    """Every config file of the wheel that is no base of others."""
    for path in sorted(configs_folder().rglob('*.py')):
        if '_base_' not in path.parts:
            yield path


def compare(path: Path, images: Sequence[Path]) -> tuple[str, str, float]:
    """Verdict, reason and largest difference; no verdict where there is no detector to speak of."""
    try:
        config = load_config(str(path))
    except MtpdError as error:
        # Pieces of configs, and configs whose base files are not in the wheel, are no configs of detectors.
        is_piece = 'has no `model`' in str(error) or 'FileNotFoundError' in str(error)
        return ('', '', 0.0) if is_piece else ('refused', _short(error, path), 0.0)
    if 'data_preprocessor' not in config.model and 'data_preprocessor' not in config and 'backbone' not in config.model:
        return '', '', 0.0
    try:
        found = read_preprocessing(config)
    except MtpdError as error:
        return 'refused', _short(error, path), 0.0
    largest = 0.0
    for file in images:
        pixels = read_image(file)
        view = image_view(pixels, geometry=found.geometry, view='plain')
        result = normalise([view], padded=found.geometry.padded(pixels.shape[:2]), normalisation=found.normalisation)
        expected = mmdet_input(config, file)
        if result.shape != expected.shape:
            return 'wrong', f'shape {tuple(result.shape)}, of mmdet {tuple(expected.shape)}', 0.0
        largest = max(largest, float((result - expected).abs().max()))
    verdict = 'equal' if largest <= TOLERANCE else 'wrong'
    return verdict, f'largest difference {largest:.1e}', largest


def mmdet_input(config: Any, path: Path) -> Tensor:
    """What mmdet's test pipeline and data preprocessor make of an image file."""
    from mmdet.registry import MODELS
    from mmengine.dataset import Compose

    steps = []
    for entry in find_steps(config):
        if entry.type.startswith('Load') and entry.type != 'LoadImageFromFile':
            continue
        step = dict(entry.values)
        if entry.type == 'LoadImageFromFile':
            step['backend_args'] = None  # One config names a server.
        if entry.type == 'PackDetInputs':
            step['meta_keys'] = ('img_path', 'ori_shape', 'img_shape')
        steps.append(step)
    packed = Compose(steps)({'img_path': str(path), 'img_id': 1})
    preprocessor = copy.deepcopy(config.model.get('data_preprocessor') or config.data_preprocessor)
    if plain_type(preprocessor['type']) == 'MultiBranchDataPreprocessor':
        preprocessor = preprocessor['data_preprocessor']
    if plain_type(preprocessor['type']) == 'BoxInstDataPreprocessor':
        # It differs in training alone, and needs a package for that.
        names = ('mean', 'std', 'bgr_to_rgb', 'pad_size_divisor')
        preprocessor = {'type': 'DetDataPreprocessor', **{name: preprocessor[name] for name in names}}
    preprocessor.pop('batch_augments', None)
    data = MODELS.build(preprocessor)({'inputs': [packed['inputs']], 'data_samples': [packed['data_samples']]}, False)
    inputs: Tensor = data['inputs']
    return inputs


def _short(error: MtpdError, path: Path) -> str:
    return str(error).replace(f'{path}: ', '').replace(str(path), path.name)[:230]


def _write_image(folder: Path, size: Size) -> Path:
    path = folder / f'{size[0]}x{size[1]}.png'
    cv2.imwrite(str(path), np.random.default_rng(size[0]).integers(0, 256, (*size, 3), dtype=np.uint8))
    return path


if __name__ == '__main__':
    torch.set_num_threads(1)
    main()
