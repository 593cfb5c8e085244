"""Checks a cache's folders for files other than the recorded ones."""

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from mtpd.cache.format.strict_json import read_json, short
from mtpd.errors import CacheDamagedError
from mtpd.system.files import differences

_FOLDERS_OF_ARRAYS = re.compile(r'index|heads|\d+x\d+')


def stray_files(root: Path, *, expected: Collection[str], is_finished: bool) -> Iterator[str]:
    """Files below the index and the folders of the padded shapes that are not `expected`, by path below `root`.

    While a cache is written, temporary files come and go; they are not counted then.
    """
    for top in sorted(path for path in root.iterdir() if path.is_dir() and _FOLDERS_OF_ARRAYS.fullmatch(path.name)):
        for folder, _, names in os.walk(top):
            for name in sorted(names):
                file = (Path(folder) / name).relative_to(root).as_posix()
                is_passing = name.startswith('.tmp-') and not is_finished
                if file not in expected and not is_passing:
                    yield file


def metadata_problems(root: Path, expected: Mapping[str, bytes]) -> Iterator[tuple[str, str]]:
    """(path below `root`, reason) of every expected `zarr.json` that is missing or has other content."""
    for file, content in expected.items():
        path = root / file
        if not path.is_file():
            yield file, 'is missing'
            continue
        try:
            found = read_json(path)
        except CacheDamagedError as error:
            yield file, str(error).removeprefix(f'{path}: ')
            continue
        rows = differences(_without_empty(found), _without_empty(json.loads(content)))
        if rows:
            name, is_, should = rows[0]
            yield file, f'states {name} as {short(is_)}, expected {short(should)}'


def _without_empty(value: Any) -> Any:
    """Versions of zarr differ in whether they write what is empty."""
    if isinstance(value, dict):
        return {key: _without_empty(one) for key, one in value.items() if one not in (None, [], {})}
    return [_without_empty(one) for one in value] if isinstance(value, list) else value
