"""`mtpd-cache merge`: makes a cache of the parts of an extraction."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtpd.cache.checking.state import read_state
from mtpd.cache.writing.merge import merge_parts, num_bytes, publish_parts
from mtpd.system.console import progress_bar, say
from mtpd.system.text import format_bytes


def run(options: Mapping[str, Any]) -> None:
    """Publishes a cache, or joins folders."""
    out: Path | None = options['out']
    if out is None:
        (root,) = options['caches']
        publish_parts(root)
        _report(root)
        return
    total = num_bytes(options['caches'])
    with progress_bar(total=total, unit='B', unit_scale=True, desc=f'merge {out}') as progress:
        merge_parts(options['caches'], out, advance=progress.update)
    _report(out)


def _report(root: Path) -> None:
    state = read_state(root)
    num = sum(record.num_bytes for record in state.manifest.files.values())
    say(f'{root}: {state.manifest.num_images:,} images in {state.num_shards:,} shards, {format_bytes(num)}')
