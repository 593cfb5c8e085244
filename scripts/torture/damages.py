"""Random damage to a finished cache: what disks, copies and people do to files.

Someone who edits a manifest and computes all of its hashes anew can make a cache of whatever he likes; no hash without
a key is proof against that, and it is no accident. Caches that are made to hurt the reader are in
tests/cache/hostile.
"""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mtpd.system.files import canonical_json, sha256_bytes
from torture import roi_damages
from torture.setting import Setting
from torture.trials import Trial, judged

Damage = Callable[[Path, Setting], str]


def damages(setting: Setting, number: int) -> Iterator[Trial]:
    """Each kind of damage in turn, to a copy of the undisturbed cache."""
    kinds = (roi_damages.KINDS if roi_damages.has_rois(setting.reference['mine']) else {}) | KINDS
    for trial in range(number):
        kind, damage = list(kinds.items())[trial % len(kinds)]
        root = setting.fresh('damage')
        shutil.copytree(setting.reference['mine'], root)
        yield judged(kind, root, setting, what=damage(root, setting))
        shutil.rmtree(root)


def all_files(root: Path) -> list[Path]:
    """Every file of a cache."""
    return sorted(path for path in root.rglob('*') if path.is_file() and not path.name.startswith('.lock'))


def shards(root: Path) -> list[Path]:
    """The files with codes and with proposals."""
    patterns = ('*x*/*/p?/c/**/*', 'heads/*x*/*/c/**/*')
    return sorted(path for pattern in patterns for path in root.glob(pattern) if path.is_file())


def swap(one: Path, other: Path) -> None:
    """Exchanges the contents of two files."""
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def flip_bit(path: Path, generator: random.Random) -> None:
    """Turns one bit of a file round."""
    content = bytearray(path.read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    path.write_bytes(content)


def _flipped_bit(root: Path, setting: Setting) -> str:
    path = setting.random.choice(all_files(root))
    flip_bit(path, setting.random)
    return f'a bit of {path}'


def _flipped_bit_of_the_manifest(root: Path, setting: Setting) -> str:
    flip_bit(root / 'manifest.json', setting.random)
    return 'a bit of the manifest'


def _truncated(root: Path, setting: Setting) -> str:
    path = setting.random.choice(all_files(root))
    path.write_bytes(path.read_bytes()[: setting.random.randrange(path.stat().st_size)])
    return f'{path} cut off'


def _deleted(root: Path, setting: Setting) -> str:
    path = setting.random.choice(all_files(root))
    path.unlink()
    return f'{path} deleted'


def _swapped_shards(root: Path, setting: Setting) -> str:
    one, other = setting.random.sample(shards(root), 2)
    swap(one, other)
    return f'{one} and {other} swapped'


def _swapped_in_one_array(root: Path, setting: Setting) -> str:
    one = setting.random.choice([path for path in all_files(root) if len(_siblings(path)) > 1])
    other = setting.random.choice([path for path in _siblings(one) if path != one])
    swap(one, other)
    return f'{one} and {other} swapped'


def _siblings(path: Path) -> list[Path]:
    """The files of the array that a file belongs to."""
    above = [folder for folder in path.parents if folder.name == 'c']
    return all_files(above[0]) if above else [path]


def _old_shard(root: Path, setting: Setting) -> str:
    path = setting.random.choice(shards(root))
    teacher = _put_back(setting, root, [path])
    return f'{path} of the teacher {teacher}'


def _old_group(root: Path, setting: Setting) -> str:
    """All files of a shard group or all files below some folder."""
    path = setting.random.choice(shards(root))
    folder = setting.random.choice([folder for folder in path.parents if folder.is_relative_to(root)])
    data = [path for path in all_files(folder) if '/c/' in str(path)]
    teacher = _put_back(setting, root, data)
    return f'{folder} of the teacher {teacher}'


def _put_back(setting: Setting, root: Path, paths: list[Path]) -> str:
    teacher = setting.random.choice(['shifted', 'other'])
    for path in paths:
        shutil.copy(setting.reference[teacher] / path.relative_to(root), path)
    return teacher


def _other_manifest(root: Path, setting: Setting) -> str:
    return f'manifest of the teacher {_put_back(setting, root, [root / "manifest.json"])}'


def _edited_manifest(root: Path, setting: Setting) -> str:
    """A value is changed by hand: the digest stays."""
    path = root / 'manifest.json'
    content = json.loads(path.read_bytes())
    places = list(_leaves(content))
    holder, key = setting.random.choice(places)
    old = holder[key]
    holder[key] = old + 1 if isinstance(old, int) else f'{old}x' if isinstance(old, str) else 'x'
    path.write_text(json.dumps(content, indent=1))
    return f'manifest: {key} from {old!r} to {holder[key]!r}'


def _signed_again(root: Path, setting: Setting) -> str:
    """A program rewrites the manifest with other facts for people, and a digest that fits."""
    path = root / 'manifest.json'
    content = json.loads(path.read_bytes())
    del content['digest']
    content['description']['provenance']['note'] = setting.random.random()
    content['digest'] = sha256_bytes(canonical_json(content))
    path.write_text(json.dumps(content, indent=setting.random.choice([None, 4]), sort_keys=True))
    return 'manifest signed again'


def _leaves(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every value that is no list or dict, by what holds it and where."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in pairs:
        if isinstance(child, dict | list):
            yield from _leaves(child)
        else:
            yield value, key


def _swapped_rows(root: Path, setting: Setting) -> str:
    """Two rows of one table, or of all columns of the index, change places."""
    columns = sorted((root / 'index').glob('*/c/**/*'))
    files = [path for path in columns if path.is_file()]
    num_rows = (root / 'index' / 'image_id' / 'c' / '0').stat().st_size // 8
    one, other = setting.random.sample(range(num_rows), 2)
    chosen = files if setting.random.random() < 0.3 else [setting.random.choice(files)]
    for path in chosen:
        content = path.read_bytes()
        width = len(content) // num_rows
        rows = [content[start : start + width] for start in range(0, len(content), width)]
        rows[one], rows[other] = rows[other], rows[one]
        path.write_bytes(b''.join(rows))
    return f'rows {one} and {other} of {len(chosen)} index files swapped'


def _appended(root: Path, setting: Setting) -> str:
    path = setting.random.choice(all_files(root))
    with path.open('ab') as file:
        file.write(setting.random.randbytes(setting.random.randrange(1, 100)))
    return f'{path} longer'


def _zeroed(root: Path, setting: Setting) -> str:
    """A block that was never written, as after a power cut."""
    path = setting.random.choice(all_files(root))
    content = bytearray(path.read_bytes())
    start = setting.random.randrange(len(content))
    length = min(setting.random.choice([16, 512, 4096]), len(content) - start)
    content[start : start + length] = bytes(length)
    path.write_bytes(content)
    return f'{path}: zeros from {start} on'


def _zarr_json(root: Path, setting: Setting) -> str:
    """Another program changes what Zarr says of an array; mtpd takes it from the manifest."""
    path = setting.random.choice(sorted(root.rglob('zarr.json')))
    document = json.loads(path.read_bytes())
    for key, value in (('shape', [1, 1]), ('data_type', 'float64'), ('fill_value', 7), ('codecs', [])):
        if setting.random.random() < 0.5:
            document[key] = value
    path.write_text(json.dumps(document))
    return f'{path} edited'


def _no_file(root: Path, setting: Setting) -> str:
    """A folder, a link to nowhere or to another shard stands where a file was."""
    path, other = setting.random.sample(shards(root), 2)
    path.unlink()
    what = setting.random.choice(['folder', 'dangling link', 'circle', 'link'])
    if what == 'folder':
        path.mkdir()
    else:
        path.symlink_to({'dangling link': Path('nowhere'), 'circle': path, 'link': other}[what])
    return f'{path} is a {what}'


KINDS: dict[str, Damage] = {
    'flipped bit': _flipped_bit,
    'flipped bit of the manifest': _flipped_bit_of_the_manifest,
    'truncated file': _truncated,
    'deleted file': _deleted,
    'swapped shards': _swapped_shards,
    'swapped in one array': _swapped_in_one_array,
    'old shard': _old_shard,
    'old shards': _old_group,
    'manifest of another cache': _other_manifest,
    'edited manifest': _edited_manifest,
    'manifest signed again': _signed_again,
    'swapped index rows': _swapped_rows,
    'longer file': _appended,
    'zeroed block': _zeroed,
    'edited zarr.json': _zarr_json,
    'no file': _no_file,
}
