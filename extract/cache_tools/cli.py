"""`mtpd-cache`: the command line. Imports nothing heavy, so that --help is instant."""

from pathlib import Path
from typing import Any

import click

from mtpd.command_line import CONTEXT, CachePath, LocalPath, complete_model, examples, output_options, require_pairs
from mtpd.system.console import progress_bar, reported, say
from mtpd_extract.cli_options import data_options, level_names, teacher_options, view_names

_caches = click.argument('caches', nargs=-1, required=True, type=CachePath(), metavar='CACHE...')


@click.group(
    epilog=examples(
        'mtpd-cache info cache/r101',
        'mtpd-cache verify cache/r101',
        'mtpd-cache picture cache/r101 --out sheet.png --images data/coco/train2017',
        'mtpd-cache fidelity cache/r101 --split val2017',
        'mtpd-cache order cache/r101 cache/x101 --student-cache cache/r50',
        'mtpd-cache copy cache/r101 /data/r101 --levels p3,p4,p5',
        'eval "$(_MTPD_CACHE_COMPLETE=bash_source mtpd-cache)"   # completion; also zsh_source, fish_source',
    ),
    context_settings=CONTEXT,
)
def main() -> None:
    """Inspect and verify caches of teacher features.

    Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted.
    """


@main.command(epilog=examples('mtpd-cache info cache/r101', 'mtpd-cache info --json cache/r101 cache/x101'))
@_caches
@click.option('--json', 'as_json', is_flag=True, help='Print a JSON list with one object per cache.')
@output_options
def info(caches: tuple[Path | str, ...], as_json: bool, verbose: bool, quiet: bool) -> None:
    """Show teacher, contents and disk use of each CACHE.

    Reads only the metadata, not the maps; `verify` checks the maps. An unfinished cache can
    be inspected while it is being written.
    """
    with reported(verbose=verbose, quiet=quiet):
        from mtpd_extract.cache_tools.info import run

        run(caches, as_json=as_json)


@main.command(
    epilog=examples(
        'mtpd-cache verify cache/r101',
        'mtpd-cache verify --repair cache/r101 && mtpd-extract --teacher r101 --out cache/r101',
    )
)
@_caches
@click.option('--repair', is_flag=True, help='Queue damaged parts; mtpd-extract then writes only these again.')
@click.option('--workers', type=click.IntRange(0), default=2, help='Threads that read and decode.')
@output_options
def verify(caches: tuple[Path | str, ...], repair: bool, workers: int, verbose: bool, quiet: bool) -> None:
    """Read every byte of each CACHE and name each damaged shard.

    Checks sizes, hashes, counts, image ids and the checksum of every map, and reports unknown files in the folders.
    Of an unfinished cache it checks the committed shards. Exit code 1 if something is damaged and not repaired.
    """
    with reported(verbose=verbose, quiet=quiet):
        from mtpd_extract.cache_tools.verify import run

        run(caches, is_repair=repair, num_threads=workers)


@main.command(
    epilog=examples(
        'mtpd-cache picture cache/r101 --out sheet.png',
        'mtpd-cache picture cache/r101 --out sheet.png --image 139 --images data/coco/train2017',
    )
)
@click.argument('cache', type=CachePath())
@click.option('--out', required=True, type=LocalPath(dir_okay=False), metavar='FILE.png')
@click.option('--image', type=int, metavar='ID', help='Image id.  [default: the first in the cache]')
@click.option('--view', type=click.Choice(['plain', 'flip']), help='View to draw.  [default: all stored views]')
@click.option('--images', type=LocalPath(file_okay=False), help='Image folder; if given, the input is drawn too.')
@click.option(
    '--annotations',
    type=LocalPath(dir_okay=False),
    help="COCO annotation file with the image names; not needed for COCO's own names.",
)
@output_options
def picture(verbose: bool, quiet: bool, images: Path | None, annotations: Path | None, **others: Any) -> None:
    """Draw a contact sheet of an image: every level's map and its error, plain next to flip.

    Equal colours in a row mean equal features. If both views are stored, the last column compares the plain map,
    mirrored, with the map of the mirrored image: the error of training on mirrored maps.
    """
    if annotations is not None and images is None:
        raise click.UsageError('--annotations requires --images')
    with reported(verbose=verbose, quiet=quiet):
        from mtpd_extract.cache_tools.picture import run

        run(images=images, annotations=annotations, **others)


@main.command(
    epilog=examples(
        'mtpd-cache fidelity cache/r101',
        'mtpd-cache fidelity cache/r101 --split val2017 --num-images 500',
        'mtpd-cache fidelity cache/mine --teacher my_config.py --checkpoint my.pth \\',
        '    --images data/my/images --annotations data/my/val.json',
    )
)
@click.argument('cache', type=CachePath())
@click.option(
    '--teacher',
    metavar='T',
    shell_complete=complete_model,
    help='As for mtpd-extract.  [default: the teacher recorded in the cache]',
)
@teacher_options
@data_options
@click.option('--num-images', type=click.IntRange(1), default=100, help='Number of images, evenly spaced over the set.')
@click.option('--ap/--no-ap', default=True, help="Also compute the box AP of the teacher's head on stored maps.")
@click.option('--device', type=click.Choice(['auto', 'cpu', 'cuda']), default='auto')
@click.option('--json', 'as_json', is_flag=True, help='Print a JSON object.')
@output_options
def fidelity(verbose: bool, quiet: bool, images: Path | None, annotations: Path | None, **others: Any) -> None:
    """Compare the maps in CACHE with those of the live teacher: error, cosine and AP.

    With the annotation file of the extraction, stored maps are compared. Images of any
    other annotated set are encoded with the cache's codec in memory. The default teacher is recorded in the cache.
    """
    require_pairs(images, annotations)
    with reported(verbose=verbose, quiet=quiet):
        from mtpd_extract.cache_tools.fidelity import FidelityOptions, run

        run(FidelityOptions(images=images, annotations=annotations, **others))


@main.command(
    epilog=examples(
        'mtpd-cache order cache/r50dcn cache/r101 cache/x101',
        'mtpd-extract --teacher my_student_config.py --checkpoint student.pth --out cache/student',
        'mtpd-cache order cache/r101 cache/x101 cache/swin_s --last x101 \\',
        '    --student-cache cache/student --plot order.png',
    )
)
@_caches
@click.option('--student-cache', type=CachePath(), metavar='CACHE', help="Cache of the student's own features.")
@click.option(
    '--last', metavar='NAME', help='Strongest teacher, by folder name.  [default: by --ap, or the last CACHE]'
)
@click.option(
    '--ap', multiple=True, metavar='NAME=AP', help='Box AP of a model; each teacher must have a lower AP than the next.'
)
@click.option(
    '--rule',
    type=click.Choice(['stepping-stones', 'all']),
    default='stepping-stones',
    help='With a student: use only teachers that lower the cost (stepping-stones), or all.',
)
@click.option('--max-teachers', type=click.IntRange(1), help='Maximum number of teachers.  [default: no limit]')
@click.option('--num-images', type=click.IntRange(1), default=200, help='Number of images, evenly spaced over the set.')
@click.option(
    '--num-cells', type=click.IntRange(1), default=2048, help='Maximum number of cells per map, chosen at random.'
)
@click.option(
    '--ridge',
    type=click.FloatRange(1e-8, 1),
    default=1e-4,
    help='L2 penalty on the weights, relative to the variance of a channel.',
)
@click.option('--resamples', type=click.IntRange(0), default=100, help='Number of bootstrap resamples of the images.')
@click.option('--plot', type=LocalPath(dir_okay=False), metavar='FILE.png', help='Plot the costs.')
@click.option('--json', 'as_json', is_flag=True, help='Print a JSON object.')
@output_options
def order(
    caches: tuple[Path | str, ...], student_cache: Path | str | None, verbose: bool, quiet: bool, **others: Any
) -> None:
    """Suggest an order of the teachers of the CACHEs, by adaptation cost.

    The cost of adapting A to B is the fraction of the variance of B's features that a linear map of A's features does
    not explain: 0 if it explains all of it, 1 if none. Starting from the strongest teacher, which is last, the closest
    candidate is put before it, and so on back to the student. The caches must hold the same images at the same scale.
    """
    if len(caches) + (student_cache is not None) < 2:
        raise click.UsageError('an order needs at least two caches: name another CACHE, or give --student-cache')
    with reported(verbose=verbose, quiet=quiet):
        from mtpd_extract.cache_tools.order import OrderOptions, run

        run(OrderOptions(caches=caches, student_cache=student_cache, **others))


@main.command(
    epilog=examples('mtpd-cache merge cache/r101', 'mtpd-cache merge --out cache/r101 from_a/r101 from_b/r101')
)
@_caches
@click.option('--out', type=LocalPath(), metavar='CACHE', help='New folder for the merged cache.')
@output_options
def merge(caches: tuple[Path | str, ...], out: Path | None, verbose: bool, quiet: bool) -> None:
    """Combine the parts of an extraction into a finished cache.

    Without --out: publish the one CACHE whose parts are all done, if the last part was killed before doing so.
    With --out: merge folders written by parts on machines without a shared file system. Every file is
    checked, then linked or copied; the folders are not changed.
    """
    folders = [one for one in caches if isinstance(one, Path)]
    if len(folders) < len(caches):
        raise click.UsageError('only folders are merged; parts that write to one URL need no merge')
    if out is None and len(folders) != 1:
        raise click.UsageError('merging several CACHEs needs a new folder: give --out, or name one CACHE')
    with reported(verbose=verbose, quiet=quiet):
        from mtpd.cache.checking import read_state
        from mtpd.cache.writing.merge import merge_parts, num_bytes, publish_parts
        from mtpd.system.text import format_bytes

        if out is None:
            publish_parts(folders[0])
        else:
            total = num_bytes(folders)
            with progress_bar(total=total, unit='B', unit_scale=True, desc=f'merge {out}') as progress:
                merge_parts(folders, out, advance=progress.update)
        root = out or folders[0]
        state = read_state(root)
        size = format_bytes(state.num_bytes)
        say(f'{root}: {state.manifest.num_images:,} images in {state.num_shards:,} shards, {size}')


@main.command(
    epilog=examples(
        'mtpd-cache copy cache/r101 /data/r101',
        'mtpd-cache copy cache/r101 s3://bucket/r101',
        'mtpd-cache copy cache/r101 cache/small --levels p4,p5 --views plain --images data/my/subset.json',
    )
)
@click.argument('source', type=CachePath(), metavar='CACHE')
@click.argument('destination', type=CachePath(), metavar='COPY')
@click.option('--levels', callback=level_names, metavar='P3,P4', help='Levels to copy.  [default: all]')
@click.option('--views', callback=view_names, metavar='PLAIN,FLIP', help='Views to copy.  [default: all]')
@click.option(
    '--images',
    type=LocalPath(dir_okay=False),
    metavar='FILE.json',
    help='COCO annotation file of the images to copy; the copy is a cache of this data set.  [default: all]',
)
@click.option(
    '--license',
    'license_name',
    metavar='NAME',
    help="Licence that the cache card states.  [default: the teacher's, if the cache records it]",
)
@output_options
def copy(verbose: bool, quiet: bool, **others: Any) -> None:
    """Copy a CACHE, or some of its levels, views or images, to COPY. Each is a folder or a URL, as s3://bucket/r101.

    Every row is checked while it is copied, and nothing is decoded. A copy of everything equals the original. Run the
    same command again to resume after an interruption. A cache card, README.md, is written beside the copy.
    """
    with reported(verbose=verbose, quiet=quiet):
        from mtpd_extract.cache_tools.copy import run

        run(**others)
