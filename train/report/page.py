"""A run as one self-contained HTML page: no network, no script, no other file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache as cached
from functools import partial
from importlib.metadata import version
from typing import Any, Generic, TypeVar

import torch
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mtpd.data.coco import read_annotations
from mtpd.errors import MtpdError
from mtpd_train.report import curves
from mtpd_train.report.feature_maps import StageMaps, stage_maps
from mtpd_train.report.images import data_uri
from mtpd_train.report.predictions import Predictions, predictions
from mtpd_train.report.run_log import RunLog, section
from mtpd_train.report.summary import SHOWN, StageSummary, summarise
from mtpd_train.report.tables import cache_facts, class_rows

UNKNOWN = '-'

Found = TypeVar('Found')


@dataclass(frozen=True)
class Attempt(Generic[Found]):
    """What was found, or why it was not."""

    found: Found | None
    reason: str = ''


def run_page(run: RunLog, *, num_images: int, min_score: float, device: torch.device) -> str:
    """The page of a run.

    Args:
        run: finished or not.
        num_images: how many images predictions and maps are shown on; 0: none.
        min_score: of detections that are shown.
        device: where students run.
    """
    summaries = summarise(run)
    evaluated = [one for one in summaries if one.metrics]
    kinds = [kind for kind in ('box', 'mask') if any(f'{kind}/AP' in one.metrics for one in summaries)]
    context = {
        'run': run,
        'summaries': summaries,
        'evaluated': evaluated,
        'kinds': kinds,
        'shown': SHOWN,
        'charts': _charts(run, evaluated, kinds),
        'classes': {kind: rows for kind in kinds if (rows := class_rows(evaluated, kind=kind))},
        'predictions': _predictions(run, num_images=num_images, min_score=min_score, device=device),
        'min_score': min_score,
        'maps': _maps(run, num_images=num_images, device=device),
        'sources': cache_facts(run),
        'versions': section(run.facts, 'versions'),
        'device': run.facts.get('device', 'unknown'),
        'settings': {stage.number: _yaml(stage.settings) for stage in run.stages},
    }
    return render('run.html', context)


def render(template: str, context: dict[str, Any]) -> str:
    """A template of this package, with everything that comes from files escaped."""
    environment = Environment(
        loader=PackageLoader('mtpd_train.report'),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        'breakable': breakable,
        'percent': lambda value: known(value, lambda share: f'{100 * share:.1f}'),
        'number': lambda value: known(value, lambda number: f'{number:.1f}'),
        'signed': lambda value: known(value, lambda number: f'{number:+.1f}'),
        'gigabytes': lambda value: known(value, lambda num_bytes: f'{num_bytes / 1e9:.2f} GB'),
        'duration': lambda value: known(value, duration),
    }
    made = {'made_by': f'mtpd {version("mtpd")}', 'made_at': f'{datetime.now(UTC):%Y-%m-%d %H:%M} UTC'}
    return environment.get_template(template).render(context | made)


def breakable(text: str) -> Markup:
    """A path that may wrap after a slash."""
    return Markup('/<wbr>').join(text.split('/'))


def known(value: float | None, text: Callable[[float], str]) -> str:
    """A value as text; a dash for what is not known."""
    return UNKNOWN if value is None else text(value)


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 60:
        return f'{seconds:.0f} s'
    minutes = round(seconds / 60)
    return f'{minutes} min' if minutes < 120 else f'{minutes // 60} h {minutes % 60:02d} min'


def _charts(run: RunLog, evaluated: Sequence[StageSummary], kinds: Sequence[str]) -> dict[str, str]:
    """Name -> data URI, of those charts that there is something for."""
    drawn = {
        'ap': curves.ap_chart(run),
        'loss': curves.loss_chart(run),
        'lr': curves.learning_rate_chart(run),
        'speed': curves.speed_chart(run),
        'wait': curves.wait_chart(run),
        **{f'size_{kind}': curves.size_chart(evaluated, kind=kind) for kind in kinds},
    }
    return {name: data_uri(svg, 'image/svg+xml') for name, svg in drawn.items() if svg is not None}


def _predictions(run: RunLog, *, num_images: int, min_score: float, device: torch.device) -> Attempt[Predictions]:
    if num_images == 0:
        return Attempt(None, 'disabled by --images 0')
    return _attempt(
        lambda: predictions(run, num_images=num_images, min_score=min_score, device=device, read=read_annotations)
    )


def _maps(run: RunLog, *, num_images: int, device: torch.device) -> dict[int, Attempt[StageMaps]]:
    if num_images == 0:
        return {stage.number: Attempt(None, 'disabled by --images 0') for stage in run.stages}
    read = cached(read_annotations)  # stages mostly share their data
    draw = partial(stage_maps, run, num_images=num_images, device=device, read=read)
    return {stage.number: _attempt(partial(draw, stage)) for stage in run.stages}


def _attempt(make: Callable[[], Found]) -> Attempt[Found]:
    """Data, caches or weights may be gone by now: the rest of the page is worth having all the same."""
    try:
        return Attempt(make())
    except (MtpdError, OSError) as error:
        return Attempt(None, ' '.join(str(error).split()))


def _yaml(settings: Any) -> str:
    text: str = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
    return text
