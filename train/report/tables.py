"""The tables of a page: rows of cells, as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mtpd.system.files import canonical_json, sha256_bytes
from mtpd_train.report.run_log import RunLog, entries, section
from mtpd_train.report.summary import StageSummary


@dataclass(frozen=True)
class ClassRow:
    """AP of a class at the end of each stage, 0 to 100, and its change from the stage before; None: not known."""

    name: str
    values: tuple[float | None, ...]
    changes: tuple[float | None, ...]


def class_rows(summaries: Sequence[StageSummary], *, kind: str) -> list[ClassRow]:
    """A row for each class, the one that gained most in the last stage first; what is unknown comes last."""
    names = list(dict.fromkeys(name for one in summaries for name in one.class_ap.get(kind, {})))
    rows = []
    for name in names:
        values = [percent(one.class_ap.get(kind, {}).get(name)) for one in summaries]
        changes = [None, *(change(*pair) for pair in pairwise(values))]
        rows.append(ClassRow(name, tuple(values), tuple(changes)))
    return sorted(rows, key=lambda row: (_descending(row.changes[-1]), _descending(row.values[-1])))


def percent(value: float | None) -> float | None:
    """0 to 1 as 0 to 100."""
    return None if value is None else 100 * value


def change(before: float | None, now: float | None) -> float | None:
    """The difference of two numbers that may be unknown."""
    return None if before is None or now is None else now - before


def cache_facts(run: RunLog) -> list[tuple[str, dict[str, str]]]:
    """For each cache or teacher of the run its name, and what run.json says of it, by heading."""
    found = []
    for kind in ('caches', 'teachers'):
        for name, description in section(run.facts, kind).items():
            if isinstance(description, Mapping):
                found.append((str(name), _facts(description)))
    return found


def _facts(description: Mapping[str, Any]) -> dict[str, str]:
    provenance, fingerprint = section(description, 'provenance'), section(description, 'fingerprint')
    teacher, geometry = section(fingerprint, 'teacher'), section(description, 'geometry')
    codec, error = description.get('codec'), description.get('target_error')
    versions = section(provenance, 'versions')
    facts: dict[str, Any] = {
        'teacher': provenance.get('teacher'),
        'weights (sha256)': teacher.get('weights'),
        'hook point': teacher.get('hook_point'),
        'levels': ', '.join(_level(one) for one in entries(description, 'levels') if isinstance(one, Mapping)),
        'codec': codec if error is None else f'{codec}, relative squared error {error}',
        'views': ', '.join(map(str, entries(description, 'views'))),
        'input': _geometry(geometry),
        'annotations': provenance.get('annotations'),
        'made on': provenance.get('device'),
        'with': ', '.join(f'{name} {version}' for name, version in versions.items()),
        'fingerprint (sha256)': sha256_bytes(canonical_json(fingerprint)) if fingerprint else None,
    }
    return {name: str(value) for name, value in facts.items() if value}


def _level(level: Mapping[str, Any]) -> str:
    return f'{level.get("name")} ({level.get("channels")} channels, stride {level.get("stride")})'


def _geometry(geometry: Mapping[str, Any]) -> str | None:
    if not geometry:
        return None
    scale = 'x'.join(map(str, entries(geometry, 'scale')))
    ratio = 'aspect ratio kept' if geometry.get('keep_ratio') else 'aspect ratio not kept'
    return f'{scale}, {ratio}, padded to multiples of {geometry.get("pad_divisor")} px'


def _descending(value: float | None) -> tuple[bool, float]:
    return value is None, -(value or 0.0)
