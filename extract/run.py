"""One run of `mtpd-extract`, from options to a finished cache."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch

from mtpd.cache.writer import CacheWriter, holds_extraction
from mtpd.detectors.teachers import neck_and_head_weights
from mtpd.errors import CacheMismatchError
from mtpd.interrupt import stop_on_signals
from mtpd.outcome import Interrupted
from mtpd_extract.build import Extraction, build_extraction
from mtpd_extract.estimate import free_bytes, require_room, total_bytes
from mtpd_extract.extraction import Loading, extract_groups


def run(options: Mapping[str, Any]) -> None:
    """Plans, checks, extracts, publishes."""
    out: Path = options['out']
    _check_target(out, resume=options['resume'], overwrite=options['overwrite'])
    extraction = build_extraction(options)
    _print_plan(extraction, out)
    if options['dry_run']:
        require_room(extraction, extraction.plan.shard_keys(), out)
        print('Dry run: nothing was written.')
        return
    if options['overwrite'] and out.exists():
        shutil.rmtree(out)
    weights = safetensors.torch.save(neck_and_head_weights(extraction.teacher))
    with (
        CacheWriter(out, description=extraction.description, plan=extraction.plan, teacher_weights=weights) as writer,
        stop_on_signals() as stop,
    ):
        pending = writer.pending()
        require_room(extraction, pending, out)
        loading = Loading(batch_size=options['batch_size'], num_threads=options['workers'])
        extract_groups(extraction, writer, pending, loading=loading, stop=stop)
        left = writer.pending()
        if left:
            total = len(extraction.plan.shard_keys())
            raise Interrupted(
                f'stopped after shard {total - len(left)} of {total}, all of them saved; '
                'run the same command again to go on'
            )
        writer.finish()
    size = sum(path.stat().st_size for path in out.rglob('*') if path.is_file())
    per_image = size / extraction.plan.num_images
    print(f'{out}: {extraction.plan.num_images} images, {size / 1e6:.1f} MB, {per_image / 1e3:.1f} kB an image')


def _check_target(out: Path, *, resume: bool, overwrite: bool) -> None:
    if not out.exists() or not any(out.iterdir()):
        return
    if overwrite and not holds_extraction(out):
        raise CacheMismatchError(
            f'{out}: --overwrite deletes only caches, and this folder holds none; choose another --out'
        )
    if not resume and not overwrite:
        raise CacheMismatchError(
            f'{out}: already holds an extraction; leave out --no-resume to go on with it, or --overwrite it'
        )


def _print_plan(extraction: Extraction, out: Path) -> None:
    plan, teacher = extraction.plan, extraction.teacher
    levels = ', '.join(
        f'{level.name} ({level.channels} channels, stride {level.stride})' for level in extraction.levels
    )
    print(f'teacher  {teacher.name}: {levels}')
    print(f'images   {plan.num_images} in {len(plan.buckets)} padded shapes, {len(plan.shard_keys())} shards')
    print(f'cache    {", ".join(extraction.views)} as {extraction.codec}, scale {_scale(extraction)}')
    needed = total_bytes(extraction, plan.shard_keys())
    print(f'disk     at most {needed / 1e6:.1f} MB, {free_bytes(out) / 1e6:.0f} MB free at {out}')


def _scale(extraction: Extraction) -> str:
    geometry = extraction.teacher.preprocessing.geometry
    padding = (
        f'{geometry.pad_size[0]}x{geometry.pad_size[1]}'
        if geometry.pad_size
        else f'multiples of {geometry.pad_divisor}'
    )
    return f'{geometry.scale[0]}x{geometry.scale[1]}, padded to {padding}'
