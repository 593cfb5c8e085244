"""`mtpd-extract`: the command line. Imports nothing heavy, so that --help is instant."""

import os
from pathlib import Path
from typing import Any

import click

from mtpd.command_line import CONTEXT, CachePath, complete_model, output_options, parse_scale, require_pairs
from mtpd.system.console import reported
from mtpd.system.environment import launcher_number, rank_and_size
from mtpd_extract.cli_options import data_options, level_names, teacher_options, view_names

EXAMPLES = """
\b
Examples:
  mtpd-extract --teacher r101 --out cache/r101 --dry-run
  mtpd-extract --teacher swin_l --out cache/swin_l --levels p3,p4,p5 --batch-size 4
  mtpd-extract --teacher faster-rcnn_r101_fpn_1x_coco --out cache/faster --rois 512
  mtpd-extract --teacher my_config.py --checkpoint my.pth --out cache/mine \\
      --images data/my/images --annotations data/my/train.json
  torchrun --nproc-per-node 4 --no-python mtpd-extract --teacher r101 --out cache/r101
  mtpd-extract --teacher r101 --out cache/r101 --part 2/4
  eval "$(_MTPD_EXTRACT_COMPLETE=bash_source mtpd-extract)"   # completion; also zsh_source, fish_source
"""


def _part(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        try:
            found = rank_and_size(os.environ)
        except ValueError as error:
            raise click.UsageError(f'{error}, or give --part') from None
        return None if found is None else (found[0] + 1, found[1])
    numbers = value.split('/')
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise click.BadParameter(f'{value!r}: expected part/parts, for instance 2/4')
    index, count = int(numbers[0]), int(numbers[1])
    if not 1 <= index <= count:
        raise click.BadParameter(f'{value!r}: parts are numbered from 1; the last of 4 parts is 4/4')
    return index, count


@click.command(epilog=EXAMPLES, context_settings=CONTEXT)
@click.option(
    '--teacher',
    required=True,
    metavar='T',
    shell_complete=complete_model,
    help='Zoo model, alias (r101, swin_l, ...), mmdet config (.py), torchvision:NAME, hf:FOLDER, timm:NAME or '
    'FILE.py:CALLABLE.',
)
@click.option(
    '--out',
    required=True,
    type=CachePath(),
    metavar='CACHE',
    help='Folder or URL (s3://...) of the cache; an unfinished extraction there is resumed.',
)
@teacher_options
@data_options
@click.option(
    '--levels', callback=level_names, metavar='P3,P4,...', help="Levels to store.  [default: all of the teacher's]"
)
@click.option(
    '--hook',
    type=click.Choice(['auto', 'neck', 'before-norm']),
    default='auto',
    help="Where maps are taken: neck: the neck's output; before-norm: before its last norms; auto: before-norm if any.",
)
@click.option(
    '--codec', type=click.Choice(['fp16', 'int8', 'lean']), default='lean', help='Storage format of the maps.'
)
@click.option(
    '--error',
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar='E',
    help='For --codec lean: relative squared error of each stored map.  [default: 0.03]',
)
@click.option(
    '--views',
    callback=view_names,
    default='plain,flip',
    help='Views to store; training with horizontal flips needs both.',
)
@click.option(
    '--rois',
    type=click.IntRange(0, 4096),
    default=0,
    metavar='N',
    help="For two-stage teachers: also store the N best proposals of each image with the teacher's predictions.",
)
@click.option(
    '--scale', callback=parse_scale, metavar='1333x800', help="Resize of the images.  [default: as the teacher's]"
)
@click.option(
    '--license',
    'license_name',
    metavar='NAME',
    help="Licence of the teacher's weights, which follows its features; `mtpd-cache info` and cache cards state it.",
)
@click.option('--batch-size', type=click.IntRange(1), default=4, help='Images per forward pass.')
@click.option('--workers', type=click.IntRange(0), default=2, help='Threads that read images.')
@click.option(
    '--shard-mb',
    type=click.FloatRange(min=0, min_open=True, max=2**20),
    default=96.0,
    help='Approximate shard size on disk of the largest level, MiB.',
)
@click.option('--device', type=click.Choice(['auto', 'cpu', 'cuda']), default='auto')
@click.option(
    '--part',
    callback=_part,
    metavar='I/N',
    help='Extract only part I of N; N processes fill one CACHE.  [default: from torchrun]',
)
@click.option('--limit', type=click.IntRange(1), help='Use only the first N images of the annotation file.')
@click.option('--resume/--no-resume', default=True, help='Resume an unfinished extraction, or refuse to.')
@click.option('--overwrite', is_flag=True, help='Delete an existing cache in CACHE and start over.')
@click.option('--dry-run', is_flag=True, help='Estimate time and disk; write nothing.')
@output_options
def main(
    verbose: bool,
    quiet: bool,
    images: Path | None,
    annotations: Path | None,
    part: tuple[int, int] | None,
    resume: bool,
    overwrite: bool,
    **others: Any,
) -> None:
    """Run a teacher once over a data set and store its compressed feature maps in CACHE.

    Run the same command again to resume after an interruption. Parts may run concurrently or sequentially, and may be
    re-split; the last one to finish publishes the cache. Exit codes: 0 done, 1 failed, 2 usage, 130
    interrupted after saving.
    """
    require_pairs(images, annotations)
    if part not in (None, (1, 1)) and (overwrite or not resume):
        option = '--overwrite' if overwrite else '--no-resume'
        raise click.UsageError(
            f'{option} cannot be combined with parts, which share a cache: delete CACHE before they start'
        )
    try:
        number = launcher_number(os.environ, 'LOCAL_RANK')
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    with reported(verbose=verbose, quiet=quiet):
        from mtpd_extract.options import ExtractOptions
        from mtpd_extract.run import run

        run(
            ExtractOptions(
                images=images,
                annotations=annotations,
                part=part,
                resume=resume,
                overwrite=overwrite,
                local_rank=number,
                **others,
            )
        )
