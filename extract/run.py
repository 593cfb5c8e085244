"""One run of `mtpd-extract`, from options to a finished cache."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from mtpd.cache.format.plan import ShardKey
from mtpd.cache.writing.parts import WHOLE, Part
from mtpd.cache.writing.writer import CacheWriter
from mtpd.errors import Interrupted
from mtpd.system.console import say, warn
from mtpd.system.files import free_bytes, require_writable
from mtpd.system.interrupt import stop_on_signals
from mtpd_extract.build import Extraction, build_extraction
from mtpd_extract.earlier import without_head_record
from mtpd_extract.estimate import gigabytes, groups_bytes, require_room, total_bytes
from mtpd_extract.extraction import Loading, Progress, extract_groups
from mtpd_extract.fingerprint import changes_since
from mtpd_extract.prediction import NUM_COCO_IMAGES, predict, predict_coco
from mtpd_extract.target import check_target, clear_target, holds_extraction, present_bytes
from mtpd_extract.teacher_check import check_teacher
from mtpd_extract.trial import Trial, run_trial


def run(options: Mapping[str, Any]) -> None:
    """Plans, checks, extracts, publishes."""
    out: Path = options['out']
    part = Part(*options['part']) if options['part'] else WHOLE
    check_target(out, resume=options['resume'], overwrite=options['overwrite'])
    extraction = build_extraction(options)
    if not options['overwrite'] and (begun := without_head_record(extraction, out)):
        warn(
            f'{out} was started by an mtpd version that did not record the RoI head; it is resumed without that record'
        )
        extraction = begun
    say(_summary(extraction, out, part))
    loading = Loading(batch_size=options['batch_size'], num_threads=options['workers'])
    trial = cache(partial(run_trial, extraction, loading))
    if options['dry_run']:
        check_teacher(extraction)
        print(_predictions(extraction, trial(), part))
    if options['dry_run'] or options['overwrite'] or not holds_extraction(out):
        # Before anything is written: what is there belongs to this cache, or will be deleted.
        require_writable(out)
        present = present_bytes(out)
        require_room(
            lambda sizes: total_bytes(extraction, sizes) - present, out, trial=lambda: trial().bytes_per_element
        )
    if options['dry_run']:
        print('Dry run: nothing was written.')
        return
    if options['overwrite']:
        clear_target(out)
    changes = changes_since(out, extraction.description.provenance)
    if changes:
        warn(f'{out} was started under other conditions: {"; ".join(changes)}; its maps may differ slightly')
    left = extract(extraction, out, loading, part=part, trial=trial)
    if left:
        say(f'{out}: part {part} is done; {_left_to_others(left, extraction, part)}')
        return
    size, num_images = present_bytes(out), extraction.plan.num_images
    say(f'{out}: {num_images} images, {size / 1e6:.1f} MB, {size / num_images / 1e3:.1f} kB per image')


def extract(
    extraction: Extraction, out: Path, loading: Loading, *, part: Part = WHOLE, trial: Callable[[], Trial]
) -> list[ShardKey]:
    """Runs a part, and publishes the cache when the others are done; returns the groups that they have still to write.

    Raises:
        Interrupted: the user stopped it; what was committed is kept.
        UnavailableError: the disk is full, or somebody else writes the same.
    """
    with (
        CacheWriter(
            out,
            description=extraction.description,
            plan=extraction.plan,
            teacher_weights=extraction.teacher_weights,
            part=part,
        ) as writer,
        stop_on_signals() as stop,
    ):
        if writer.is_finished:
            say(f'{out}: is already complete, nothing to do')
            return []
        pending = writer.pending()
        require_room(partial(groups_bytes, extraction, pending), out, trial=lambda: trial().bytes_per_element)
        share = writer.share()
        if len(pending) == len(share):
            check_teacher(extraction)
        progress = Progress(
            _num_images(extraction, share),
            done=_num_images(extraction, share) - _num_images(extraction, pending),
            name='extract' if part.is_whole else f'part {part}',
        )
        extract_groups(extraction, writer, pending, loading=loading, stop=stop, progress=progress)
        left = writer.pending()
        if left:
            raise Interrupted(
                f'stopped with {len(share) - len(left)} of {len(share)} shards{_of_part(part)} saved; '
                'run the same command again to resume'
            )
        return writer.finish()


def _left_to_others(left: Sequence[ShardKey], extraction: Extraction, part: Part) -> str:
    keys = extraction.plan.shard_keys()
    parts = [other for other in part.others() if set(left) & set(other.share(keys))]
    names = ', '.join(map(str, parts))
    return f'{len(left)} of {len(keys)} shards are still missing from part{"s" if len(parts) > 1 else ""} {names}'


def _num_images(extraction: Extraction, keys: Sequence[ShardKey]) -> int:
    return sum(len(extraction.plan.images(key)) for key in keys)


def _predictions(extraction: Extraction, trial: Trial, part: Part) -> str:
    together = '' if part.is_whole else ' in one process'
    lines = [f'predict  {predict(extraction, trial)}{together}; estimated from {trial.num_images} images']
    if extraction.plan.num_images < NUM_COCO_IMAGES:
        lines.append(f'COCO     all {NUM_COCO_IMAGES} images of train2017: {predict_coco(extraction, trial)}')
    return '\n'.join(lines)


def _of_part(part: Part) -> str:
    return '' if part.is_whole else f' of part {part}'


def _summary(extraction: Extraction, out: Path, part: Part) -> str:
    plan, geometry = extraction.plan, extraction.teacher.preprocessing.geometry
    levels = ', '.join(
        f'{level.name} ({level.channels} channels, stride {level.stride})' for level in extraction.levels
    )
    padding = (
        'x'.join(map(str, geometry.pad_size[::-1])) if geometry.pad_size else f'multiples of {geometry.pad_divisor}'
    )
    share = part.share(plan.shard_keys())
    num_images = _num_images(extraction, share)
    return '\n'.join(
        [
            f'teacher  {extraction.teacher.name}: {levels}, taken at {extraction.teacher.hook_point}',
            f'images   {plan.num_images} in {len(plan.buckets)} padded shapes, {len(plan.shard_keys())} shards',
            *([] if part.is_whole else [f'part     {part}: {num_images} images, {len(share)} shards']),
            f'cache    {", ".join(extraction.views)} as {_codec(extraction)}, '
            f'scale {geometry.scale[0]}x{geometry.scale[1]}, padded to {padding}',
            f'disk     at most {gigabytes(total_bytes(extraction))}, {gigabytes(free_bytes(out))} free at {out}',
        ]
    )


def _codec(extraction: Extraction) -> str:
    if extraction.target_error is None:
        return extraction.codec
    return f'{extraction.codec} with a relative error of {extraction.target_error:g}'
