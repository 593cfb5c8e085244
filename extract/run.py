"""One run of `mtpd-extract`, from options to a finished cache."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtpd.cache.parts import WHOLE, Part
from mtpd.cache.plan import ShardKey
from mtpd.cache.writer import CacheWriter
from mtpd.interrupt import stop_on_signals
from mtpd.outcome import Interrupted
from mtpd_extract.build import Extraction, build_extraction
from mtpd_extract.estimate import free_bytes, gigabytes, groups_bytes, require_room, total_bytes
from mtpd_extract.extraction import Loading, extract_groups
from mtpd_extract.fingerprint import changes_since
from mtpd_extract.target import check_target, clear_target, holds_extraction, present_bytes


def run(options: Mapping[str, Any]) -> None:
    """Plans, checks, extracts, publishes."""
    out: Path = options['out']
    part = Part(*options['part']) if options['part'] else WHOLE
    check_target(out, resume=options['resume'], overwrite=options['overwrite'])
    extraction = build_extraction(options)
    print(_summary(extraction, out, part), flush=True)
    if options['dry_run'] or options['overwrite'] or not holds_extraction(out):
        # Before anything is written: what is there belongs to this cache, or will be deleted.
        require_room(total_bytes(extraction) - present_bytes(out), out)
    if options['dry_run']:
        print('Dry run: nothing was written.')
        return
    if options['overwrite']:
        clear_target(out)
    changes = changes_since(out, extraction.description.provenance)
    if changes:
        print(
            f'warning: {out} was begun otherwise: {"; ".join(changes)}; its maps may differ a little', file=sys.stderr
        )
    left = _extract(extraction, out, Loading(batch_size=options['batch_size'], num_threads=options['workers']), part)
    if left:
        print(f'{out}: part {part} is done; {_left_to_others(left, extraction, part)}')
        return
    size, num_images = present_bytes(out), extraction.plan.num_images
    print(f'{out}: {num_images} images, {size / 1e6:.1f} MB, {size / num_images / 1e3:.1f} kB an image')


def _extract(extraction: Extraction, out: Path, loading: Loading, part: Part) -> list[ShardKey]:
    """Runs the part; returns the shard groups that other parts have still to write."""
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
            print(f'{out}: is complete already, nothing to do')
            return []
        pending = writer.pending()
        require_room(groups_bytes(extraction, pending), out)
        extract_groups(extraction, writer, pending, loading=loading, stop=stop)
        left = writer.pending()
        if left:
            total = len(writer.share())
            raise Interrupted(
                f'stopped with {total - len(left)} of {total} shards{_of_part(part)} saved; '
                'run the same command again to go on'
            )
        return writer.finish()


def _left_to_others(left: Sequence[ShardKey], extraction: Extraction, part: Part) -> str:
    keys = extraction.plan.shard_keys()
    parts = [other for other in part.others() if set(left) & set(other.share(keys))]
    names = ', '.join(map(str, parts))
    return f'{len(left)} of {len(keys)} shards are still to come from part{"s" if len(parts) > 1 else ""} {names}'


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
    num_images = sum(len(plan.images(key)) for key in share)
    return '\n'.join(
        [
            f'teacher  {extraction.teacher.name}: {levels}',
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
