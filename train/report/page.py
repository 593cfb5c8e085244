"""Self-contained HTML pages, of a run and of runs side by side: no network, no script, no other file."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache, partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mtpd.data.coco import read_annotations
from mtpd.errors import MtpdError
from mtpd.system.console import say
from mtpd.system.environment import choose_device
from mtpd.system.files import canonical_json, sha256_bytes, write_output
from mtpd.system.text import format_bytes, format_duration, table
from mtpd_train.report.charts import ap_line, line_chart, run_charts
from mtpd_train.report.feature_maps import stage_maps
from mtpd_train.report.images import data_uri
from mtpd_train.report.predictions import predictions
from mtpd_train.report.run_log import RunLog, StageSummary, entries, in_percent, known, read_run, section, summarise
from mtpd_train.run_folder import EXPORTS_FILE, METRICS_FILE

PAGE_FILE = 'report.html'
SHOWN = ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl')
COMPARED = ('AP', 'AP50', 'APs', 'APm', 'APl')
TEXT_HEADINGS = ('run', 'stage', 'teacher', 'codec', 'losses')
HEADINGS = (
    *TEXT_HEADINGS, 'epochs', *COMPARED, 'mask AP', 'best AP', 'time', 'images/s', 'wait', 'memory',
)  # fmt: skip
UNKNOWN = '-'


@dataclass(frozen=True)
class Attempt:
    """What was found, or why it was not."""

    found: Any
    reason: str = ''


@dataclass(frozen=True)
class ClassRow:
    """AP of a class at the end of each stage, 0 to 100, and its change from the stage before; None: not known."""

    name: str
    values: tuple[float | None, ...]
    changes: tuple[float | None, ...]


def write_page(folder: Path, *, out: Path | None, num_images: int, min_score: float, device: str) -> None:
    """`mtpd-report RUN`: writes the page of a run, finished or not; without an `out` into the run's folder."""
    run, on = read_run(folder), choose_device(device)
    summaries = summarise(run)
    evaluated = [one for one in summaries if one.metrics]
    kinds = [kind for kind in ('box', 'mask') if any(f'{kind}/AP' in one.metrics for one in summaries)]
    detections = partial(predictions, run, num_images=num_images, min_score=min_score, device=on)
    read = cache(read_annotations)  # stages mostly share their data
    maps = partial(stage_maps, run, num_images=num_images, device=on, read=read)
    as_yaml = partial(yaml.safe_dump, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
    context = {
        'run': run,
        'summaries': summaries,
        'evaluated': evaluated,
        'kinds': kinds,
        'shown': SHOWN,
        'charts': {name: data_uri(svg, 'image/svg+xml') for name, svg in run_charts(run, evaluated).items()},
        'classes': {kind: rows for kind in kinds if (rows := class_rows(evaluated, kind=kind))},
        'predictions': _attempt(detections, num_images),
        'min_score': min_score,
        'maps': {stage.number: _attempt(partial(maps, stage), num_images) for stage in run.stages},
        'exports': exports(folder),
        'sources': cache_facts(run),
        'versions': section(run.facts, 'versions'),
        'device': run.facts.get('device', 'unknown'),
        'settings': {stage.number: as_yaml(stage.settings) for stage in run.stages},
    }
    _write(out or folder / PAGE_FILE, 'run.html', context)


def compare_runs(folders: Sequence[Path], *, as_json: bool, html: Path | None) -> None:
    """`mtpd-report compare RUN...`: prints runs side by side, a row for each stage; writes the page `html`.

    With `as_json` as plain values: AP from 0 to 1, bytes, seconds, null for what is not known.
    """
    runs = [read_run(folder) for folder in folders]
    # A column that is empty but for its heading is left out.
    columns = [one for one in zip(HEADINGS, *_compared_rows(runs), strict=True) if not set(one[1:]) <= {'', UNKNOWN}]
    headings, *rows = zip(*columns, strict=True)
    if html is not None:
        lines = [line for run in runs if (line := ap_line(run, 'box/AP', name=str(run.folder))).points]
        svg = line_chart(lines, y_label='box AP, %') if lines else None
        chart = None if svg is None else data_uri(svg, 'image/svg+xml')
        context = {'headings': headings, 'texts': TEXT_HEADINGS, 'rows': rows, 'chart': chart, 'runs': runs}
        _write(html, 'compare.html', context)
    if as_json:
        records = []
        for run in runs:
            facts = {'run': str(run.folder), 'finished': run.is_finished, 'device': run.facts.get('device')}
            records.append(facts | {'stages': [asdict(one) for one in summarise(run)]})
        print(json.dumps(records, indent=1))
    else:
        num_texts = sum(heading in TEXT_HEADINGS for heading in headings)
        print('\n'.join(table(headings, rows, num_texts=num_texts)))


def _compared_rows(runs: Sequence[RunLog]) -> Iterator[list[str]]:
    """The cells of each stage, below `HEADINGS`. The name of a run appears once; AP and wait are in percent."""
    for run in runs:
        name = str(run.folder)
        for one in summarise(run):
            epochs = str(one.epoch) if one.is_finished or one.epochs is None else f'{one.epoch} of {one.epochs}'
            yield [
                name,
                str(one.number),
                one.teacher,
                one.codec,
                ', '.join(one.losses) or 'none',
                f'{epochs}, diverged' if one.has_diverged else epochs,
                *(percent(one.metrics.get(f'box/{metric}')) for metric in COMPARED),
                percent(one.metrics.get('mask/AP')),
                percent(one.best_ap),
                number(one.seconds, format_duration),
                number(one.images_per_second),
                percent(one.data_wait),
                number(one.peak_memory, format_bytes),
            ]
            name = ''
        if name:
            why = 'nothing recorded yet'
            if run.is_finished:
                why = f'finished, but its {METRICS_FILE} is missing or empty'
            elif any(one.has_diverged for one in run.stages):
                why = 'diverged before its first record'
            yield [name, UNKNOWN, why, *[''] * (len(HEADINGS) - 3)]


def class_rows(summaries: Sequence[StageSummary], *, kind: str) -> list[ClassRow]:
    """A row for each class, the one that gained most in the last stage first; what is unknown comes last."""
    names = dict.fromkeys(name for one in summaries for name in one.class_ap.get(kind, {}))
    rows = []
    for name in names:
        values = [in_percent(one.class_ap.get(kind, {}).get(name)) for one in summaries]
        changes = [None if one is None or other is None else other - one for one, other in pairwise(values)]
        rows.append(ClassRow(name, tuple(values), (None, *changes)))
    return sorted(rows, key=lambda row: [(one is None, -(one or 0.0)) for one in (row.changes[-1], row.values[-1])])


@dataclass(frozen=True)
class ExportRow:
    """An exported file; latencies are medians in ms with all threads, AP changes are those of boxes in percent."""

    file: str
    precision: str
    size: str
    num_bytes: float | None
    ap_change: float | None
    torch_ms: float | None
    file_ms: float | None


def exports(folder: Path) -> list[ExportRow]:
    """The files that mtpd-export has made of a run, the last of each path."""
    path = folder / EXPORTS_FILE
    if not path.is_file():
        return []
    rows = {}
    for line in path.read_text(errors='replace').splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # the end of a disk
            continue
        if isinstance(record, dict):
            rows[str(record.get('file'))] = _export_row(record)
    return list(rows.values())


def _export_row(record: Mapping[str, Any]) -> ExportRow:
    precision, size, ap = str(record.get('precision')), record.get('size'), section(record, 'ap')
    runs = [one for one in entries(section(record, 'benchmark'), 'runs') if isinstance(one, Mapping)]
    medians: dict[str, float] = {}
    for one in sorted(runs, key=lambda one: _plain(one.get('threads')) or 0):
        if (median := _plain(one.get('median'))) is not None:
            medians[str(one.get('runtime'))] = 1000 * median
    before, after = _plain(ap.get('float32 box/AP')), _plain(ap.get(f'{precision} box/AP'))
    is_fixed = isinstance(size, list) and len(size) == 2
    return ExportRow(
        file=str(record.get('file')),
        precision=precision + (', raw' if record.get('raw') else ''),
        size=f'{size[1]} x {size[0]} px' if is_fixed and isinstance(size, list) else 'any',
        num_bytes=_plain(record.get('bytes')),
        ap_change=None if before is None or after is None else 100 * (after - before),
        torch_ms=medians.get('PyTorch'),
        file_ms=medians.get('ONNX Runtime'),
    )


def _plain(value: Any) -> float | None:
    """A number of a file; None for what is none, or not known."""
    return known(value) if isinstance(value, int | float) else None


def cache_facts(run: RunLog) -> list[tuple[str, dict[str, str]]]:
    """For each cache or teacher of the run its name, and what run.json says of it, by heading."""
    return [
        (str(name), _facts(description))
        for kind in ('caches', 'teachers')
        for name, description in section(run.facts, kind).items()
        if isinstance(description, Mapping)
    ]


def _facts(description: Mapping[str, Any]) -> dict[str, str]:
    provenance, fingerprint = section(description, 'provenance'), section(description, 'fingerprint')
    teacher, geometry = section(fingerprint, 'teacher'), section(description, 'geometry')
    codec, error = description.get('codec'), description.get('target_error')
    levels = [one for one in entries(description, 'levels') if isinstance(one, Mapping)]
    texts = [f'{one.get("name")} ({one.get("channels")} channels, stride {one.get("stride")})' for one in levels]
    scale = 'x'.join(map(str, entries(geometry, 'scale')))
    ratio = 'aspect ratio kept' if geometry.get('keep_ratio') else 'aspect ratio not kept'
    facts: dict[str, Any] = {
        'teacher': provenance.get('teacher'),
        'weights (sha256)': teacher.get('weights'),
        'hook point': teacher.get('hook_point'),
        'levels': ', '.join(texts),
        'codec': codec if error is None else f'{codec}, relative squared error {error}',
        'views': ', '.join(map(str, entries(description, 'views'))),
        'input': f'{scale}, {ratio}, padded to multiples of {geometry.get("pad_divisor")} px' if geometry else None,
        'annotations': provenance.get('annotations'),
        'made on': provenance.get('device'),
        'with': ', '.join(f'{name} {version}' for name, version in section(provenance, 'versions').items()),
        'fingerprint (sha256)': sha256_bytes(canonical_json(fingerprint)) if fingerprint else None,
    }
    return {name: str(value) for name, value in facts.items() if value}


def _attempt(make: Callable[[], object], num_images: int) -> Attempt:
    """Catches errors: data, caches or weights may be gone by now, and the rest of the page needs none of them."""
    if num_images == 0:
        return Attempt(None, 'disabled by --images 0')
    try:
        return Attempt(make())
    except (MtpdError, OSError) as error:
        return Attempt(None, ' '.join(str(error).split()))


def _write(out: Path, template: str, context: Mapping[str, Any]) -> None:
    """Writes a template of this package, with everything that comes from files escaped."""
    loader, strict = PackageLoader('mtpd_train.report'), StrictUndefined
    environment = Environment(loader=loader, autoescape=True, undefined=strict, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        'breakable': lambda text: Markup('/<wbr>').join(text.split('/')),  # a path may wrap after a slash
        'percent': percent,
        'number': number,
        'signed': partial(number, form='{:+.1f}'.format),
        'size': partial(number, form=format_bytes),
        'duration': partial(number, form=format_duration),
    }
    made = {'made_by': f'mtpd {version("mtpd")}', 'made_at': f'{datetime.now(UTC):%Y-%m-%d %H:%M} UTC'}
    page = environment.get_template(template).render({**context, **made})
    content = page.encode(errors='replace')  # Names in JSON may hold lone surrogates.
    write_output(out, content)
    say(f'{out}: {format_bytes(len(content))}; open it in a browser')


def number(value: float | None, form: Callable[[float], str] = '{:.1f}'.format) -> str:
    """A number as text; a dash for what is not known."""
    return UNKNOWN if value is None else form(value)


def percent(value: float | None) -> str:
    """0 to 1 as 0.0 to 100.0."""
    return number(in_percent(value))
