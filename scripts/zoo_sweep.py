"""Builds models of the mmdet zoo with random weights and lists their feature levels.

    python scripts/zoo_sweep.py                     one model of each family that has weights for COCO
    python scripts/zoo_sweep.py --all               every such model
    python scripts/zoo_sweep.py --family retinanet --family swin

Every model runs in a process of its own, so that a crash, a lack of memory or a hang is one line of the table. The
last line is `zoo N of M`: N of M models gave features.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from measuring import TrialEndedError, described_parser, isolated
from mtpd.detectors import zoo
from mtpd.detectors.features import probe_levels
from mtpd.detectors.models import build_detector, load_config
from mtpd.detectors.runtime import prepare
from mtpd.errors import MtpdError
from mtpd.geometry import Size

# SSD pools the smallest away and is made for 300; the last is for models that need more.
INPUT_SIZES: tuple[Size, ...] = ((256, 256), (300, 300), (512, 512))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = described_parser(__doc__)
    parser.add_argument('--family', action='append', default=[], help='only this folder of configs; repeatable')
    parser.add_argument('--all', action='store_true', help='test every model, not one per family')
    parser.add_argument('--timeout', type=float, default=300, help='seconds for one model (default 300)')
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    prepare()  # here, and not in each process
    chosen = list(candidates(families=options.family, every=options.all))
    working = 0
    for model in chosen:
        try:
            levels, reason = isolated(partial(probe, model.name), timeout=options.timeout)
        except TrialEndedError as error:
            levels, reason = '', str(error)
        working += bool(levels)
        print(f'{model.family:22} {model.config.stem:60} {levels or "-- " + reason}', flush=True)
    print(f'zoo {working} of {len(chosen)}')


def candidates(*, families: Sequence[str] = (), every: bool = False) -> Iterator[zoo.ZooModel]:
    """Models with weights for COCO, the first of each family or every one."""
    seen: set[str] = set()
    for model in zoo.models().values():
        wanted = model.on_coco and model.weights is not None and (not families or model.family in families)
        if wanted and (every or model.family not in seen):
            seen.add(model.family)
            yield model


def probe(name: str) -> tuple[str, str]:
    """Levels of one model as `p3 8 px 256 ch, ...`, or an empty string and why there are none."""
    try:
        model = build_detector(load_config(name), init_weights=False)
    except MtpdError as error:
        return '', str(error)
    reason = ''
    for size in INPUT_SIZES:
        try:
            levels = probe_levels(model, input_size=size)
        # Whatever a model raises is its line in the table.
        except Exception as error:
            reason = reason or f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
        else:
            shown = ', '.join(f'{level.name} {level.stride} px {level.channels} ch' for level in levels)
            return (shown if size == INPUT_SIZES[0] else f'{shown} (input {size[0]} x {size[1]})'), ''
    return '', reason


if __name__ == '__main__':
    main()
