#!/usr/bin/env python3
"""Makes a small COCO-format data set of coloured shapes, to try mtpd without any download.

Example:
    scripts/make_synthetic.py demo/coco --train 600 --val 150 --sizes 128x128 160x96
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from mtpd.data.synthetic import SyntheticSpec, make_synthetic_set
from mtpd.errors import MtpdError
from mtpd.system.console import progress_bar


def main() -> int:
    defaults = SyntheticSpec()
    parser = argparse.ArgumentParser(description='Creates a COCO-format data set of coloured shapes.')
    parser.add_argument('folder', type=Path, help='output folder; will hold train2017, val2017 and annotations')
    add = partial(parser.add_argument, type=int)
    add('--train', default=defaults.num_train, help='training images (%(default)s)')
    add('--val', default=defaults.num_val, help='validation images (%(default)s)')
    add('--empty', default=defaults.num_empty, help='images without a shape in each (%(default)s)')
    add('--sizes', type=_size, nargs='+', default=defaults.sizes, metavar='WxH', help='image sizes in px (128x128)')
    add('--seed', default=defaults.seed, help='random seed of the set (%(default)s)')
    options = parser.parse_args()
    try:
        spec = SyntheticSpec(options.train, options.val, options.empty, tuple(options.sizes), seed=options.seed)
        with progress_bar(total=spec.num_train + spec.num_val, desc='drawing', unit='image') as progress:
            is_new = make_synthetic_set(options.folder, spec, on_image=progress.update)
            progress.update(progress.total - progress.n)
    except (MtpdError, OSError) as error:
        print(f'make_synthetic: {error}', file=sys.stderr)
        return 1
    print(f'{options.folder}: {spec.num_train} + {spec.num_val} images' + ('' if is_new else ', there already'))
    return 0


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = map(int, text.split('x'))
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not a size; expected WIDTHxHEIGHT, such as 160x96') from None
    return height, width


if __name__ == '__main__':
    sys.exit(main())
