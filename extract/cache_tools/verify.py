"""`mtpd-cache verify`: reads whole caches, names what is damaged and queues it for extraction."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from mtpd.cache.checking import CacheState, Damage, no_writers, read_state, repair, verify
from mtpd.cache.format.manifest import MANIFEST_FILE
from mtpd.errors import CacheDamagedError, InputError
from mtpd.system.console import progress_bar, say
from mtpd.system.files import is_url
from mtpd.system.text import format_bytes

STRAYS_NAMED = 20
REPLACE = 'delete the objects there, then extract or copy it again'


def run(caches: Sequence[Path | str], *, is_repair: bool, num_threads: int) -> None:
    """Verifies cache after cache.

    Raises CacheDamagedError at the end, naming all that is damaged and was not repaired.
    """
    problems = []
    if is_repair and (urls := [one for one in caches if isinstance(one, str)]):
        raise InputError(f'{urls[0]}: --repair changes folders only; {REPLACE}')
    for root in caches:
        try:
            with no_writers(root) if is_repair and isinstance(root, Path) and root.is_dir() else nullcontext():
                problems.append(_run(root, num_threads=num_threads, is_repair=is_repair))
        except CacheDamagedError as error:
            advice = ''
            if isinstance(root, Path) and (root / MANIFEST_FILE).exists():
                advice = '. The cache cannot be repaired without this record: restore a copy of '
                advice += f'{MANIFEST_FILE}, or extract again with --overwrite'
            problems.append([f'{error}{advice}'])
    problems = [lines for lines in problems if lines]
    if len(problems) == 1:
        raise CacheDamagedError('\n'.join(problems[0]))
    if problems:
        indented = [f'  {line}' for lines in problems for line in lines]
        raise CacheDamagedError('\n'.join([f'{len(problems)} of {len(caches)} caches are not sound', *indented]))


def _run(root: Path | str, *, num_threads: int, is_repair: bool) -> list[str]:
    """Verifies one cache; returns the lines about the remaining damage."""
    state = read_state(root)
    num_bytes = state.num_bytes
    start = time.monotonic()
    with progress_bar(total=num_bytes, unit='B', unit_scale=True, desc=f'verify {root}') as progress:
        damages = verify(state, num_threads=num_threads, advance=progress.update)
    if not damages:
        rate = format_bytes(int(num_bytes / max(time.monotonic() - start, 1e-9)))
        extent = f'{state.manifest.num_images:,} images in {state.num_shards:,} shards'
        if not state.is_finished:
            extent = f'{len(state.committed):,} of {state.num_shards:,} shards are committed, '
            extent += 'mtpd-extract has yet to write the rest'
        say(f'{root}: sound; {extent}, {format_bytes(num_bytes)} read at {rate}/s')
        return []
    if not is_repair:
        return _lines(
            state, damages, advice=REPLACE if is_url(state.name) else 'repair with mtpd-cache verify --repair'
        )
    say('\n'.join(_lines(state, damages)))
    done = repair(state, damages)
    if done.is_unfinished:
        say(
            f'{root}: unfinished now; run the same mtpd-extract command again: it extracts {done.num_queued} of '
            f'{state.num_shards} shards, repairs the rest and publishes the cache'
        )
    elif any(damage.kind == 'metadata' for damage in damages):
        say(f'{root}: the zarr.json files were rewritten')
    strays = [damage for damage in damages if damage.kind == 'stray']
    return _lines(state, strays, advice='move them away or delete them') if strays else []


def _lines(state: CacheState, damages: Sequence[Damage], *, advice: str = '') -> list[str]:
    """A line that sums it up, then one for each damaged shard group and for each other file."""
    num_groups = len({damage.key for damage in damages if damage.key})
    counts = {kind: sum(damage.kind == kind for damage in damages) for kind in ('head', 'metadata', 'stray')}
    summary = [
        f'{num_groups} of {state.num_shards} shards damaged' * bool(num_groups),
        f'{counts["head"]} files other than shards damaged' * bool(counts['head']),
        f'{counts["metadata"]} zarr.json files wrong' * bool(counts['metadata']),
        f'{counts["stray"]} files that are not part of the cache' * bool(counts['stray']),
    ]
    places: dict[str, list[str]] = {}
    for damage in damages:
        if damage.key is not None:
            place = places.setdefault(f'{damage.key.bucket} shard {damage.key.shard}', [])
            place.append(f'{damage.file}: {damage.reason}')
        elif damage.kind != 'stray' or len(places) < num_groups + STRAYS_NAMED:
            places.setdefault(damage.file, []).append(damage.reason)
    return [
        f'{state.name}: {", ".join(filter(None, summary))}' + f'; {advice}' * bool(advice),
        *(
            f'  {place}: {reasons[0]}' + f' (and {len(reasons) - 1} more files)' * (len(reasons) > 1)
            for place, reasons in places.items()
        ),
    ]
