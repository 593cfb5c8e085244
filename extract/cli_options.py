"""Options shared by several command lines: teacher, images."""

from collections.abc import Callable
from pathlib import Path

import click

from mtpd.command_line import Command, LocalPath


def teacher_options(command: Command) -> Command:
    """Everything about the teacher but its name: weights, and the input of a `file.py:callable`."""
    return _together(
        command,
        click.option(
            '--checkpoint',
            type=LocalPath(dir_okay=False),
            help='Weights file; zoo models download theirs.',
        ),
        click.option(
            '--trust-checkpoint',
            is_flag=True,
            help='Unpickle a checkpoint that holds more than tensors. This can run code from the file.',
        ),
        click.option(
            '--mean',
            callback=_channels,
            metavar='A,B,C',
            help="For FILE.py:CALLABLE: mean per channel, in the network's channel order.",
        ),
        click.option(
            '--std', callback=_channels, metavar='A,B,C', help='For FILE.py:CALLABLE: standard deviation per channel.'
        ),
        click.option(
            '--channel-order', type=click.Choice(['bgr', 'rgb']), help='For FILE.py:CALLABLE.  [default: bgr]'
        ),
        click.option(
            '--pad-divisor',
            type=click.IntRange(1),
            help='For FILE.py:CALLABLE and timm:NAME: pad both sides to a multiple of this.',
        ),
        click.option('--pad-value', type=float, help='For FILE.py:CALLABLE: padding value.  [default: 0]'),
        click.option(
            '--pad-after-normalisation/--pad-before-normalisation',
            default=None,
            help='For FILE.py:CALLABLE: pad normalised values, or pixels before normalisation.  [default: before]',
        ),
        click.option(
            '--keep-ratio/--no-keep-ratio',
            default=None,
            help='For FILE.py:CALLABLE and timm:NAME: keep the aspect ratio, or resize to exactly --scale.  '
            '[default: keep]',
        ),
        click.option(
            '--pad-size',
            type=click.IntRange(1),
            nargs=2,
            metavar='HEIGHT WIDTH',
            help='For FILE.py:CALLABLE: minimum size of the padded input, px.',
        ),
    )


def data_options(command: Command) -> Command:
    """The annotated set: COCO's own layout, or a folder and a file."""
    return _together(
        command,
        click.option('--coco', type=LocalPath(), default=Path('data/coco'), help="Data set in COCO's own layout."),
        click.option('--split', default='train2017', help='Split of --coco.'),
        click.option('--images', type=LocalPath(), help='Image folder, instead of --coco and --split.'),
        click.option('--annotations', type=LocalPath(), help='COCO annotation file; required with --images.'),
    )


def _together(command: Command, *options: Callable[[Command], Command]) -> Command:
    # The help lists options in the order in which they are written, which is the reverse of how they are applied.
    for option in reversed(options):
        command = option(command)
    return command


def _channels(_: click.Context, __: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        numbers = tuple(float(part) for part in value.split(','))
    except ValueError:
        numbers = ()
    if len(numbers) != 3:
        raise click.BadParameter(f'{value!r}: expected three numbers, for instance 103.5,116.3,123.7')
    return numbers


def level_names(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """The names of `p3,p4`."""
    if value is None:
        return None
    names = tuple(name.strip() for name in value.split(','))
    if not all(names):
        raise click.BadParameter(f'{value!r}: expected comma-separated names, for instance p3,p4')
    return names


def view_names(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """The names of `plain,flip`."""
    views = level_names(context, parameter, value)
    if views is None:
        return None
    if any(view not in ('plain', 'flip') for view in views) or len(set(views)) < len(views):
        raise click.BadParameter(f'{value!r}: expected plain, flip or plain,flip')
    return views
