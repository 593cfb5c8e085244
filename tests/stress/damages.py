"""Damage to caches: what disks, copies and people do to files, described once for all tests.

A damage takes the root of a cache, a random generator, and caches that other teachers made by the same plan; it says
what it did. `DAMAGES` are for a finished cache, `ROI_DAMAGES` for one with proposals, `JOURNAL_DAMAGES` for an
unfinished one.

Someone who edits a manifest and computes all of its hashes again can make any cache; no hash without a key prevents
that, and it is no accident. Such caches are in tests/cache/hostile.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from mtpd.cache.format.manifest import read_manifest
from mtpd.cache.format.roi_arrays import ROI_TABLES, ROI_VALUES
from mtpd.cache.writing.journal import journal_paths
from mtpd.system.files import canonical_json, sha256_bytes

Damage = Callable[[Path, Random, Sequence[Path]], str]


def all_files(root: Path) -> list[Path]:
    """Every file of a cache, except the locks of its writers."""
    return sorted(path for path in root.rglob('*') if path.is_file() and not path.name.startswith('.lock'))


def contents(root: Path) -> dict[str, bytes]:
    """The bytes of `all_files` by path below the root."""
    return {str(path.relative_to(root)): path.read_bytes() for path in all_files(root)}


def shards(root: Path) -> list[Path]:
    """The files with codes and with proposals."""
    patterns = ('*x*/*/p?/c/**/*', 'heads/*x*/*/c/**/*')
    return sorted(path for pattern in patterns for path in root.glob(pattern) if path.is_file())


def swap(one: Path, other: Path) -> None:
    """Exchanges the contents of two files."""
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def flip_bit(path: Path, random: Random) -> bytes:
    """Flips a bit; the byte as it was."""
    content = bytearray(path.read_bytes())
    position = random.randrange(len(content))
    old = bytes(content[position : position + 1])
    content[position] ^= 1 << random.randrange(8)
    path.write_bytes(content)
    return old


def sign(content: dict[str, Any]) -> dict[str, Any]:
    """A manifest or a journal entry with a digest that fits."""
    unsigned = {key: value for key, value in content.items() if key != 'digest'}
    return unsigned | {'digest': sha256_bytes(canonical_json(unsigned))}


def flipped_bit(root: Path, random: Random, _: Sequence[Path]) -> str:
    path = random.choice(all_files(root))
    flip_bit(path, random)
    return f'a bit of {path}'


def flipped_bit_of_the_manifest(root: Path, random: Random, _: Sequence[Path]) -> str:
    flip_bit(root / 'manifest.json', random)
    return 'a bit of the manifest'


def truncated(root: Path, random: Random, _: Sequence[Path]) -> str:
    path = random.choice(all_files(root))
    path.write_bytes(path.read_bytes()[: random.randrange(path.stat().st_size)])
    return f'{path} truncated'


def deleted(root: Path, random: Random, _: Sequence[Path]) -> str:
    path = random.choice(all_files(root))
    path.unlink()
    return f'{path} deleted'


def swapped_shards(root: Path, random: Random, _: Sequence[Path]) -> str:
    one, other = random.sample(shards(root), 2)
    swap(one, other)
    return f'{one} and {other} swapped'


def swapped_in_one_array(root: Path, random: Random, _: Sequence[Path]) -> str:
    """Two files of one array, so that every size and shape fits."""

    def siblings(path: Path) -> list[Path]:
        above = [folder for folder in path.parents if folder.name == 'c']
        return all_files(above[0]) if above else [path]

    one = random.choice([path for path in all_files(root) if len(siblings(path)) > 1])
    other = random.choice([path for path in siblings(one) if path != one])
    swap(one, other)
    return f'{one} and {other} swapped'


def _copied(root: Path, random: Random, others: Sequence[Path], paths: Sequence[Path]) -> str:
    other = random.choice(others)
    for path in paths:
        shutil.copy(other / path.relative_to(root), path)
    return f'from {other}'


def old_shard(root: Path, random: Random, others: Sequence[Path]) -> str:
    path = random.choice(shards(root))
    return f'{path} {_copied(root, random, others, [path])}'


def old_group(root: Path, random: Random, others: Sequence[Path]) -> str:
    """All data files below some folder."""
    folder = random.choice([folder for folder in random.choice(shards(root)).parents if folder.is_relative_to(root)])
    return f'{folder} {_copied(root, random, others, [path for path in all_files(folder) if "/c/" in str(path)])}'


def other_manifest(root: Path, random: Random, others: Sequence[Path]) -> str:
    return f'manifest {_copied(root, random, others, [root / "manifest.json"])}'


def edited_manifest(root: Path, random: Random, _: Sequence[Path]) -> str:
    """A value is changed by hand: the digest stays."""
    path = root / 'manifest.json'
    content = json.loads(path.read_bytes())
    holder, key = random.choice(list(_leaves(content)))
    old = holder[key]
    holder[key] = old + 1 if isinstance(old, int) else f'{old}x' if isinstance(old, str) else 'x'
    path.write_text(json.dumps(content, indent=1))
    return f'manifest: {key} from {old!r} to {holder[key]!r}'


def _leaves(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every value that is no list or dict, by its container and key."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in pairs:
        if isinstance(child, dict | list):
            yield from _leaves(child)
        else:
            yield value, key


def signed_again(root: Path, random: Random, _: Sequence[Path]) -> str:
    """A program rewrites the manifest with another note for people, and a digest that fits."""
    path = root / 'manifest.json'
    content = json.loads(path.read_bytes())
    content['description']['provenance']['note'] = random.random()
    path.write_text(json.dumps(sign(content), indent=random.choice([None, 4]), sort_keys=True))
    return 'manifest signed again'


def _rows(path: Path, num_rows: int) -> list[bytes]:
    content = path.read_bytes()
    width = len(content) // num_rows
    return [content[start : start + width] for start in range(0, len(content), width)]


def _swap_rows(paths: Sequence[Path], num_rows: int, random: Random) -> str:
    one, other = random.sample(range(num_rows), 2)
    for path in paths:
        rows = _rows(path, num_rows)
        rows[one], rows[other] = rows[other], rows[one]
        path.write_bytes(b''.join(rows))
    return f'rows {one} and {other} swapped in {", ".join(map(str, paths))}'


def swapped_index_rows(root: Path, random: Random, _: Sequence[Path]) -> str:
    """Of one table, or of all columns of the index."""
    files = sorted(path for path in (root / 'index').glob('*/c/**/*') if path.is_file())
    num_rows = (root / 'index' / 'image_id' / 'c' / '0').stat().st_size // 8
    return _swap_rows(files if random.random() < 0.3 else [random.choice(files)], num_rows, random)


def appended(root: Path, random: Random, _: Sequence[Path]) -> str:
    path = random.choice(all_files(root))
    with path.open('ab') as file:
        file.write(random.randbytes(random.randrange(1, 100)))
    return f'{path} longer'


def zeroed(root: Path, random: Random, _: Sequence[Path]) -> str:
    """A block that was never written, as after a power cut."""
    path = random.choice(all_files(root))
    content = bytearray(path.read_bytes())
    start = random.randrange(len(content))
    length = min(random.choice([16, 512, 4096]), len(content) - start)
    content[start : start + length] = bytes(length)
    path.write_bytes(content)
    return f'{path}: zeros from {start} on'


def edited_zarr_json(root: Path, random: Random, _: Sequence[Path]) -> str:
    """Another program changes what Zarr says of an array; mtpd reads it from the manifest."""
    path = random.choice(sorted(root.rglob('zarr.json')))
    document = json.loads(path.read_bytes())
    for key, value in (('shape', [1, 1]), ('data_type', 'float64'), ('fill_value', 7), ('codecs', [])):
        if random.random() < 0.5:
            document[key] = value
    path.write_text(json.dumps(document))
    return f'{path} edited'


def no_file(root: Path, random: Random, _: Sequence[Path]) -> str:
    """A folder, a dangling link or a link to another shard in place of a file."""
    path, other = random.sample(shards(root), 2)
    path.unlink()
    what = random.choice(['folder', 'dangling link', 'circle', 'link'])
    if what == 'folder':
        path.mkdir()
    else:
        path.symlink_to({'dangling link': Path('nowhere'), 'circle': path, 'link': other}[what])
    return f'{path} is a {what}'


DAMAGES: tuple[Damage, ...] = (
    flipped_bit, flipped_bit_of_the_manifest, truncated, deleted, swapped_shards, swapped_in_one_array, old_shard,
    old_group, other_manifest, edited_manifest, signed_again, swapped_index_rows, appended, zeroed, edited_zarr_json,
    no_file,
)  # fmt: skip


def _roi_group(root: Path, random: Random) -> tuple[dict[str, Path], int]:
    """The file of each array of a random shard group of several rows of proposals, and its number of rows."""
    found = []
    for bucket in read_manifest(root).buckets:
        # The last one may not be full.
        for shard in range(bucket.num_images // bucket.rows_per_shard if bucket.rows_per_shard > 1 else 0):
            folders = {name: root / 'heads' / bucket.name / name / 'c' for name in (*ROI_TABLES, *ROI_VALUES)}
            files = {
                name: next(path for path in [folder / str(shard), *folder.glob(f'{shard}/**/*')] if path.is_file())
                for name, folder in folders.items()
            }
            found.append((files, bucket.rows_per_shard))
    return random.choice(found)


def _some_of_group(root: Path, random: Random) -> tuple[list[Path], int]:
    """The files of one array, all values, or all arrays of such a group, and its number of rows."""
    files, num_rows = _roi_group(root, random)
    names: Sequence[str] = random.choice([[random.choice([*files])], ROI_VALUES, [*files]])
    return [files[name] for name in names], num_rows


def swapped_roi_rows(root: Path, random: Random, _: Sequence[Path]) -> str:
    return _swap_rows(*_some_of_group(root, random), random)


def roi_row_of_another_teacher(root: Path, random: Random, others: Sequence[Path]) -> str:
    paths, num_rows = _some_of_group(root, random)
    row, other = random.randrange(num_rows), random.choice(others)
    for path in paths:
        rows = _rows(path, num_rows)
        rows[row] = _rows(other / path.relative_to(root), num_rows)[row]
        path.write_bytes(b''.join(rows))
    return f'row {row} from {other} in {", ".join(map(str, paths))}'


def truncated_roi_rows(root: Path, random: Random, _: Sequence[Path]) -> str:
    paths, num_rows = _some_of_group(root, random)
    for path in paths:
        path.write_bytes(b''.join(_rows(path, num_rows)[:-1]))
    return f'the last row cut from {", ".join(map(str, paths))}'


def other_roi_counts(root: Path, random: Random, _: Sequence[Path]) -> str:
    files, num_rows = _roi_group(root, random)
    rows = _rows(files['num_rois'], num_rows)
    row, count = random.randrange(num_rows), random.choice([-1, 0, 1, 11, 13, 2**31 - 1, -(2**31)])
    rows[row] = count.to_bytes(4, 'little', signed=True)
    files['num_rois'].write_bytes(b''.join(rows))
    return f'row {row} of {files["num_rois"]} is {count}'


ROI_DAMAGES: tuple[Damage, ...] = (swapped_roi_rows, roi_row_of_another_teacher, truncated_roi_rows, other_roi_counts)


def flipped_bit_of_the_journal(root: Path, random: Random, _: Sequence[Path]) -> str:
    flip_bit(journal_paths(root)[0], random)
    return 'a bit of the journal'


def truncated_journal(root: Path, random: Random, _: Sequence[Path]) -> str:
    path = journal_paths(root)[0]
    path.write_bytes(path.read_bytes()[: random.randrange(path.stat().st_size)])
    return 'the journal truncated'


def shuffled_journal(root: Path, random: Random, _: Sequence[Path]) -> str:
    path = journal_paths(root)[0]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b''.join(random.choices(lines, k=random.randrange(1, 8))))
    return 'lines of the journal in any order, missing and repeated'


def damaged_committed_shard(root: Path, random: Random, _: Sequence[Path]) -> str:
    path = random.choice(shards(root))
    if random.random() < 0.5:
        flip_bit(path, random)
    else:
        path.unlink()
    return f'{path}, already committed, damaged'


def flipped_bit_of_the_plan(root: Path, random: Random, _: Sequence[Path]) -> str:
    flip_bit(root / 'plan.json', random)
    return 'a bit of the plan'


JOURNAL_DAMAGES: tuple[Damage, ...] = (
    flipped_bit_of_the_journal, truncated_journal, shuffled_journal, damaged_committed_shard, old_shard,
    flipped_bit_of_the_plan,
)  # fmt: skip


def copy_unfinished(source: Path, root: Path, random: Random) -> str:
    """Journal and shards of an unfinished cache over those of another, by a copy of the wrong folder."""
    keep = {'plan.json'} if random.random() < 0.5 else {'plan.json', 'index', 'teacher.safetensors'}
    for name, content in contents(source).items():
        if name.split('/')[0] not in keep:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
    return f'{source} copied over, except {", ".join(sorted(keep))}'
