"""The place that a cache is written into: what may be there, and emptying a folder."""

import re
import shutil
from fnmatch import fnmatch
from pathlib import Path

from mtpd.cache.format.manifest import FORMAT, MANIFEST_FILE, TEACHER_FILE
from mtpd.cache.format.strict_json import read_json
from mtpd.cache.format.tensor_files import BASIS_FILE
from mtpd.cache.writing.journal import JOURNAL_FILE, PART_JOURNALS
from mtpd.cache.writing.parts import cache_lock
from mtpd.cache.writing.plan_file import PLAN_FILE
from mtpd.cache.writing.remote_destination import RemoteDestination
from mtpd.errors import CacheDamagedError, CacheMismatchError, InputError

# All that a cache is made of, with the folders of its buckets; names with a dot in front are locks and temporary files.
_OF_A_CACHE = frozenset(
    {MANIFEST_FILE, PLAN_FILE, JOURNAL_FILE, TEACHER_FILE, BASIS_FILE, 'zarr.json', 'index', 'heads'}
)
_BUCKET = re.compile(r'\d+x\d+')
_PLAN_KEYS = frozenset({'fingerprint', 'levels', 'codec', 'buckets'})


def check_output(out: Path | str, *, resume: bool, overwrite: bool) -> None:
    """Refuses a place with other things, or with an extraction that `resume` and `overwrite` exclude."""
    if isinstance(out, Path):
        _check_folder(out, resume=resume, overwrite=overwrite)
        return
    if overwrite:
        raise InputError(
            f'--out {out}: --overwrite deletes folders only; delete the objects there, or choose another URL'
        )
    if RemoteDestination(out).holds_cache() and not resume:
        raise CacheMismatchError(f'--out {out}: already holds an extraction; remove --no-resume to resume it')


def _check_folder(out: Path, *, resume: bool, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f'--out {out}: is a file; give a folder, it need not exist')
    names = _names(out)
    if not names:
        return
    if not holds_cache(out):
        raise CacheMismatchError(f'--out {out}: holds {names[0]} but no cache; choose an empty or new folder')
    others = [
        name
        for name in names
        if name not in _OF_A_CACHE and not _BUCKET.fullmatch(name) and not fnmatch(name, PART_JOURNALS)
    ]
    if overwrite and others:
        raise CacheMismatchError(
            f'--out {out}: --overwrite deletes only caches, but the folder also holds {others[0]}; move it away'
        )
    if not resume and not overwrite:
        raise CacheMismatchError(
            f'--out {out}: already holds an extraction; remove --no-resume to resume it, or add --overwrite'
        )


def holds_cache(out: Path) -> bool:
    """Whether `out` holds a cache, finished or not. Other programs have files of the same names."""
    # In this order: another process may be publishing, which writes the manifest before it deletes the plan.
    for name in (PLAN_FILE, MANIFEST_FILE):
        try:
            content = read_json(out / name)
        except CacheDamagedError:
            continue
        if isinstance(content, dict) and (content.get('format') == FORMAT or content.keys() >= _PLAN_KEYS):
            return True
    return False


def clear_output_folder(out: Path) -> None:
    """Deletes the cache in `out`, which `check_output` has accepted, unless another process is writing it."""
    if not _names(out):
        return
    with cache_lock(out):
        # From here on no reader opens it, and after a kill in the middle of this it can still be overwritten.
        if (out / MANIFEST_FILE).exists():
            (out / MANIFEST_FILE).replace(out / PLAN_FILE)
        for name in sorted(_names(out), key=lambda name: name == PLAN_FILE):
            path = out / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def folder_bytes(out: Path) -> int:
    return sum(path.stat().st_size for path in out.rglob('*') if path.is_file())


def _names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if not path.name.startswith('.')) if out.is_dir() else []
