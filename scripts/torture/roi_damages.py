"""Damage to the stored proposals: rows, of which each file has several, in other places, of other teachers, or gone."""

from collections.abc import Callable, Sequence
from pathlib import Path

from mtpd.cache.format.manifest import read_manifest
from mtpd.cache.format.roi_arrays import TABLES, VALUES
from torture.setting import Setting


def has_rois(root: Path) -> bool:
    """Whether a cache holds proposals."""
    return read_manifest(root).description.rois is not None


def _group(root: Path, setting: Setting) -> tuple[dict[str, Path], int]:
    """The file of each array of a random shard group of several rows, and how many rows it has room for."""
    found = []
    for bucket in read_manifest(root).buckets:
        # The last one may not be full.
        for shard in range(bucket.num_images // bucket.rows_per_shard if bucket.rows_per_shard > 1 else 0):
            folders = {name: root / 'heads' / bucket.name / name / 'c' for name in (*TABLES, *VALUES)}
            files = {
                name: next(path for path in [folder / str(shard), *folder.glob(f'{shard}/**/*')] if path.is_file())
                for name, folder in folders.items()
            }
            found.append((files, bucket.rows_per_shard))
    return setting.random.choice(found)


def _some(files: dict[str, Path], setting: Setting) -> dict[str, Path]:
    """One array, all values, or all arrays of a group."""
    names: Sequence[str] = setting.random.choice([[setting.random.choice([*files])], VALUES, [*files]])
    return {name: files[name] for name in names}


def _rows(path: Path, num_rows: int) -> list[bytes]:
    content = path.read_bytes()
    width = len(content) // num_rows
    return [content[start : start + width] for start in range(0, len(content), width)]


def _swapped(root: Path, setting: Setting) -> str:
    files, num_rows = _group(root, setting)
    one, other = setting.random.sample(range(num_rows), 2)
    chosen = _some(files, setting)
    for path in chosen.values():
        rows = _rows(path, num_rows)
        rows[one], rows[other] = rows[other], rows[one]
        path.write_bytes(b''.join(rows))
    return f'rows {one} and {other} swapped in {", ".join(map(str, chosen.values()))}'


def _of_another_teacher(root: Path, setting: Setting) -> str:
    files, num_rows = _group(root, setting)
    row, teacher = setting.random.randrange(num_rows), setting.random.choice(['shifted', 'other'])
    chosen = _some(files, setting)
    for path in chosen.values():
        rows = _rows(path, num_rows)
        rows[row] = _rows(setting.reference[teacher] / path.relative_to(root), num_rows)[row]
        path.write_bytes(b''.join(rows))
    return f'row {row} of the teacher {teacher} in {", ".join(map(str, chosen.values()))}'


def _cut(root: Path, setting: Setting) -> str:
    files, num_rows = _group(root, setting)
    chosen = _some(files, setting)
    for path in chosen.values():
        path.write_bytes(b''.join(_rows(path, num_rows)[:-1]))
    return f'the last row gone from {", ".join(map(str, chosen.values()))}'


def _counts(root: Path, setting: Setting) -> str:
    files, num_rows = _group(root, setting)
    rows = _rows(files['num_rois'], num_rows)
    row, count = setting.random.randrange(num_rows), setting.random.choice([-1, 0, 1, 11, 13, 2**31 - 1, -(2**31)])
    rows[row] = count.to_bytes(4, 'little', signed=True)
    files['num_rois'].write_bytes(b''.join(rows))
    return f'row {row} of {files["num_rois"]} says {count}'


KINDS: dict[str, Callable[[Path, Setting], str]] = {
    'proposals: swapped rows': _swapped,
    "proposals: another teacher's row": _of_another_teacher,
    'proposals: a row cut off': _cut,
    'proposals: other counts': _counts,
}
