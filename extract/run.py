"""One run of `mtpd-extract`, from options to a finished cache."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

from mtpd.cache.checking import read_state
from mtpd.cache.format.arrays import file_place
from mtpd.cache.format.plan import ShardKey
from mtpd.cache.writing.parts import WHOLE, Part
from mtpd.cache.writing.remote_destination import destination_of
from mtpd.cache.writing.writer import CacheWriter
from mtpd.errors import Interrupted, UnavailableError
from mtpd.system.console import progress_bar, say, warn
from mtpd.system.files import free_bytes, require_writable
from mtpd.system.interrupt import stop_on_signals
from mtpd.system.text import format_bytes
from mtpd_extract.estimate import (
    NUM_COCO_IMAGES,
    Rates,
    cache_disk_bytes,
    groups_disk_bytes,
    measure_rates,
    predict,
    predict_coco,
    require_room,
)
from mtpd_extract.extraction import Extraction, build_extraction, check_teacher, compute_bases, extract_groups
from mtpd_extract.fingerprint import changes_since
from mtpd_extract.options import ExtractOptions
from mtpd_extract.output_folder import check_output, clear_output_folder, folder_bytes, holds_cache


def run(options: ExtractOptions) -> None:
    out, part = options.out, Part(*options.part) if options.part else WHOLE
    check_output(out, resume=options.resume, overwrite=options.overwrite)
    extraction = build_extraction(options)
    say(_summary(extraction, out, part))
    rates = cache(partial(measure_rates, extraction))
    if options.dry_run:
        check_teacher(extraction)
        together = '' if part.is_whole else ' in one process'
        print(f'predict  {predict(extraction, rates())}{together}; estimated from {rates().num_images} images')
        if extraction.plan.num_images < NUM_COCO_IMAGES:
            print(f'COCO     all {NUM_COCO_IMAGES} images of train2017: {predict_coco(extraction, rates())}')
    if isinstance(out, Path) and (options.dry_run or options.overwrite or not holds_cache(out)):
        # Before anything is written: what is there belongs to this cache, or will be deleted.
        require_writable(out)
        present = folder_bytes(out)
        require_room(lambda code_bytes: cache_disk_bytes(extraction, code_bytes) - present, out, rates=rates)
    if options.dry_run:
        print('Dry run: nothing was written.')
        return
    if isinstance(out, Path) and options.overwrite:
        clear_output_folder(out)
    changes = changes_since(out, extraction.description.provenance)
    if changes:
        warn(f'{out} was started under other conditions: {"; ".join(changes)}; its maps may differ slightly')
    left = extract(extraction, out, part=part, rates=rates)
    if left:
        keys = extraction.plan.shard_keys()
        parts = [str(other) for other in part.others() if set(left) & set(other.share(keys))]
        names = f'part{"s" if len(parts) > 1 else ""} {", ".join(parts)}'
        say(f'{out}: part {part} is done; {len(left)} of {len(keys)} shards are still missing from {names}')
        return
    state, num_images = read_state(out), extraction.plan.num_images
    of_images = sum(one.num_bytes for file, one in state.manifest.files.items() if file_place(file) is not None)
    say(
        f'{out}: {num_images} images, {format_bytes(state.num_bytes)}, {format_bytes(of_images / num_images)} per image'
    )


def extract(
    extraction: Extraction, out: Path | str, *, part: Part = WHOLE, rates: Callable[[], Rates]
) -> list[ShardKey]:
    """Runs a part, and publishes the cache when the others are done; returns the groups that they have still to write.

    When the user stops it, it raises Interrupted; what was committed is kept.
    """
    plan, description, weights = extraction.plan, extraction.description, extraction.teacher_weights
    with (
        CacheWriter(
            destination_of(out, part=part), description=description, plan=plan, teacher_weights=weights
        ) as writer,
        stop_on_signals() as stop,
    ):
        if writer.is_finished:
            say(f'{out}: is already complete, nothing to do')
            return []
        pending, share = writer.pending(), writer.share()
        if isinstance(out, Path):
            require_room(partial(groups_disk_bytes, extraction, pending), out, rates=rates)
        if len(pending) == len(share):
            check_teacher(extraction)
        num_images = _num_images(extraction, share)
        extract_groups(
            extraction,
            pending,
            bases=writer.bases(partial(compute_bases, extraction)) if description.codec == 'lean' else {},
            start_group=writer.start_group,
            commit=writer.commit,
            stop=stop,
            bar=progress_bar(
                total=num_images,
                initial=num_images - _num_images(extraction, pending),
                unit='image',
                desc='extract' if part.is_whole else f'part {part}',
                smoothing=0.1,
            ),
        )
        left = writer.pending()
        if left:
            of_part = '' if part.is_whole else f' of part {part}'
            raise Interrupted(
                f'stopped with {len(share) - len(left)} of {len(share)} shards{of_part} saved; '
                'run the same command again to resume'
            )
        left = writer.finish()
        if set(left) & set(share):
            raise UnavailableError(
                f'{out}: {len(left)} shards were written over by another process; run the same command again'
            )
        return left


def _num_images(extraction: Extraction, keys: Sequence[ShardKey]) -> int:
    return sum(len(extraction.plan.images(key)) for key in keys)


def _summary(extraction: Extraction, out: Path | str, part: Part) -> str:
    plan, description, geometry = extraction.plan, extraction.description, extraction.teacher.preprocessing.geometry
    codec: str = description.codec
    if description.target_error is not None:
        codec += f' with a relative error of {description.target_error:g}'
    levels = ', '.join(
        f'{level.name} ({level.channels} channels, stride {level.stride})' for level in extraction.levels
    )
    padding = (
        'x'.join(map(str, geometry.pad_size[::-1])) if geometry.pad_size else f'multiples of {geometry.pad_divisor}'
    )
    share = part.share(plan.shard_keys())
    free = f', {format_bytes(free_bytes(out))} free' if isinstance(out, Path) else ''
    return '\n'.join(
        [
            f'teacher  {extraction.teacher.name}: {levels}, taken at {extraction.teacher.hook_point}',
            f'images   {plan.num_images} in {len(plan.buckets)} padded shapes, {len(plan.shard_keys())} shards',
            *(
                []
                if part.is_whole
                else [f'part     {part}: {_num_images(extraction, share)} images, {len(share)} shards']
            ),
            f'cache    {", ".join(description.views)} as {codec}, '
            f'scale {geometry.scale[0]}x{geometry.scale[1]}, padded to {padding}',
            f'disk     at most {format_bytes(cache_disk_bytes(extraction))}{free} at {out}',
        ]
    )
