"""`mtpd-cache`: the command line. Imports nothing heavy, so that --help is instant."""

from pathlib import Path
from typing import Any

import click

from mtpd.console import reported
from mtpd_extract.cli_options import complete_model, data_options, output_options, require_pairs, teacher_options

CONTEXT = {'help_option_names': ['-h', '--help'], 'max_content_width': 110}

EXAMPLES = """
\b
Examples:
  mtpd-cache info cache/r101
  mtpd-cache verify cache/r101
  mtpd-cache picture cache/r101 --out sheet.png --images data/coco/train2017
  mtpd-cache fidelity cache/r101 --split val2017
  mtpd-cache order cache/r101 cache/x101 --student-cache cache/r50
  eval "$(_MTPD_CACHE_COMPLETE=bash_source mtpd-cache)"   # completion; also zsh_source, fish_source
"""

INFO_EXAMPLES = """
\b
Examples:
  mtpd-cache info cache/r101
  mtpd-cache info --json cache/r101 cache/x101
"""

PICTURE_EXAMPLES = """
\b
Examples:
  mtpd-cache picture cache/r101 --out sheet.png
  mtpd-cache picture cache/r101 --out sheet.png --image 139 --images data/coco/train2017
"""

VERIFY_EXAMPLES = """
\b
Examples:
  mtpd-cache verify cache/r101
  mtpd-cache verify --repair cache/r101 && mtpd-extract --teacher r101 --out cache/r101
"""

FIDELITY_EXAMPLES = """
\b
Examples:
  mtpd-cache fidelity cache/r101
  mtpd-cache fidelity cache/r101 --split val2017 --num-images 500
  mtpd-cache fidelity cache/mine --teacher my_config.py --checkpoint my.pth \\
      --images data/my/images --annotations data/my/val.json
"""

ORDER_EXAMPLES = """
\b
Examples:
  mtpd-cache order cache/r50dcn cache/r101 cache/x101
  mtpd-extract --teacher my_student_config.py --checkpoint student.pth --out cache/student
  mtpd-cache order cache/r101 cache/x101 cache/swin_s --last x101 --student-cache cache/student --plot order.png
"""

MERGE_EXAMPLES = """
\b
Examples:
  mtpd-cache merge cache/r101
  mtpd-cache merge --out cache/r101 from_a/r101 from_b/r101
"""

_caches = click.argument('caches', nargs=-1, required=True, type=click.Path(path_type=Path), metavar='CACHE...')


@click.group(epilog=EXAMPLES, context_settings=CONTEXT)
def main() -> None:
    """Inspect, verify, compare and merge caches of teacher features.

    Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted.
    """


@main.command(epilog=INFO_EXAMPLES)
@_caches
@click.option('--json', 'as_json', is_flag=True, help='A JSON list with one object for each cache.')
@output_options
def info(verbose: bool, quiet: bool, **options: Any) -> None:
    """Print what each CACHE holds and how much disk space it takes.

    Reads the records only; `verify` checks the data. An unfinished cache can be inspected while it is written.
    """
    with reported(verbose=verbose, quiet=quiet):
        from mtpd_extract.cache_tools.info import run

        run(options)


@main.command(epilog=VERIFY_EXAMPLES)
@_caches
@click.option('--repair', is_flag=True, help='Queue what is damaged for mtpd-extract, which writes only that again.')
@click.option('--workers', type=click.IntRange(0), default=2, show_default=True, help='Threads that read and decode.')
@output_options
def verify(verbose: bool, quiet: bool, **options: Any) -> None:
    """Read every byte of each CACHE and name each damaged shard.

    Checks sizes, hashes, counts, image ids and the checksum of every map, and that the folders hold nothing else.
    Of an unfinished cache it checks what is committed. Exit code 1 when something is damaged and was not repaired.
    """
    with reported(verbose=verbose, quiet=quiet):
        from mtpd_extract.cache_tools.verify import run

        run(options)


@main.command(epilog=PICTURE_EXAMPLES)
@click.argument('cache', type=click.Path(path_type=Path))
@click.option('--out', required=True, type=click.Path(path_type=Path, dir_okay=False), metavar='FILE.png')
@click.option('--image', type=int, metavar='ID', help='Which image.  [default: the first of the cache]')
@click.option('--view', type=click.Choice(['plain', 'flip']), help='Only this view.  [default: all that are stored]')
@click.option(
    '--images', type=click.Path(path_type=Path, file_okay=False), help='Folder of the images, to draw the input too.'
)
@click.option(
    '--annotations',
    type=click.Path(path_type=Path, dir_okay=False),
    help="COCO annotation file that names the images; not needed for COCO's own names.",
)
@output_options
def picture(verbose: bool, quiet: bool, **options: Any) -> None:
    """Draw a contact sheet of an image: every level's map and its error, plain beside flip.

    Equal colours in a row mean equal features. Where both views are stored, the last column shows how far the plain
    map, mirrored, is from the map of the mirrored image: what training on mirrored maps would get wrong.
    """
    if options['annotations'] is not None and options['images'] is None:
        raise click.UsageError('--annotations goes with --images')
    with reported(verbose=verbose, quiet=quiet):
        from mtpd_extract.cache_tools.picture import run

        run(options)


@main.command(epilog=FIDELITY_EXAMPLES)
@click.argument('cache', type=click.Path(path_type=Path))
@click.option(
    '--teacher',
    metavar='T',
    shell_complete=complete_model,
    help='As for mtpd-extract.  [default: what the cache names]',
)
@teacher_options
@data_options
@click.option(
    '--num-images', type=click.IntRange(1), default=100, show_default=True, help='Images, at equal distances.'
)
@click.option('--ap/--no-ap', default=True, show_default=True, help="Box AP of the teacher's own head on stored maps.")
@click.option('--device', type=click.Choice(['auto', 'cpu', 'cuda']), default='auto', show_default=True)
@click.option('--json', 'as_json', is_flag=True, help='A JSON object.')
@output_options
def fidelity(verbose: bool, quiet: bool, **options: Any) -> None:
    """Compare what CACHE holds with the live teacher: error, cosine and AP.

    The images are those of the cache when the annotation file is the one that it was extracted with. Images of any
    other annotated set go through the cache's codec in memory. The teacher is by default the one that the cache names.
    """
    require_pairs(options)
    with reported(verbose=verbose, quiet=quiet):
        from mtpd_extract.cache_tools.fidelity import run

        run(options)


@main.command(epilog=ORDER_EXAMPLES)
@_caches
@click.option(
    '--student-cache', type=click.Path(path_type=Path), metavar='CACHE', help="The student's own features, extracted."
)
@click.option('--last', metavar='NAME', help='The strongest teacher, by folder.  [default: by --ap, or the last CACHE]')
@click.option(
    '--ap', multiple=True, metavar='NAME=AP', help='Box AP of a model; a teacher must be weaker than the next.'
)
@click.option(
    '--rule',
    type=click.Choice(['stepping-stones', 'all']),
    default='stepping-stones',
    show_default=True,
    help='With a student: leave out teachers that bring it no closer to the next, or none.',
)
@click.option('--max-teachers', type=click.IntRange(1), help='Length of the order.  [default: no limit]')
@click.option(
    '--num-images', type=click.IntRange(1), default=200, show_default=True, help='Images, at equal distances.'
)
@click.option(
    '--num-cells', type=click.IntRange(1), default=2048, show_default=True, help='Cells of a map at most, at random.'
)
@click.option(
    '--ridge',
    type=click.FloatRange(1e-8, 1),
    default=1e-4,
    show_default=True,
    help='Penalty on squared weights, relative to the variance of a channel.',
)
@click.option(
    '--resamples', type=click.IntRange(0), default=100, show_default=True, help='Of the bootstrap over images.'
)
@click.option('--plot', type=click.Path(path_type=Path, dir_okay=False), metavar='FILE.png', help='Draw the costs.')
@click.option('--json', 'as_json', is_flag=True, help='A JSON object.')
@output_options
def order(verbose: bool, quiet: bool, **options: Any) -> None:
    """Print in which order the teachers of some CACHEs should teach, by adaptation cost.

    The cost of adapting A to B is the share of the variance of B's features that a linear map of A's does not explain:
    0 when it explains all, 1 when they have nothing in common. Teachers are chosen from the strongest, which is last,
    back to the student, each the closest to its successor. The caches must hold the same images at the same scale.
    """
    if len(options['caches']) + (options['student_cache'] is not None) < 2:
        raise click.UsageError('an order takes two caches: name another CACHE, or give --student-cache')
    with reported(verbose=verbose, quiet=quiet):
        from mtpd_extract.cache_tools.order import run

        run(options)


@main.command(epilog=MERGE_EXAMPLES)
@_caches
@click.option('--out', type=click.Path(path_type=Path), metavar='CACHE', help='Join the CACHEs into this new folder.')
@output_options
def merge(verbose: bool, quiet: bool, **options: Any) -> None:
    """Make a finished cache of what parts of one extraction wrote.

    Without --out it publishes the one CACHE whose parts are all done; the last part does so itself unless it was killed
    right then. With --out it joins folders that parts wrote on machines without a file system in common: every file is
    checked, then linked or copied, and nothing in these folders is changed.
    """
    if options['out'] is None and len(options['caches']) != 1:
        raise click.UsageError('several CACHEs are joined into a new one: give --out, or name one CACHE')
    with reported(verbose=verbose, quiet=quiet):
        from mtpd_extract.cache_tools.merge import run

        run(options)
