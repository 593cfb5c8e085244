"""Trains a student of every family of mmdet's zoo for two steps, alone and from a cache, and compares it with mmdet.

    python scripts/student_sweep.py --out students.jsonl                       all families, on the CPU
    python scripts/student_sweep.py --out students.jsonl --family ssd --family pvt     these, even if the file has them

A student works when plain and distilled training end, `mtpd-eval` finds what training's own evaluation found, and
mmdet's `init_detector` predicts the same boxes, scores and masks from the files that training left. Images are tiny and
weights random. Every family runs in a process of its own, so that a crash, a lack of memory or a hang is one line:

    works     as above
    refused   by one line with the text that the table of families expects
    unclear   by any other message
    wrong     it trains, but its predictions differ from those of mmdet, or it does not load

The last line is `students N of M, refused R, unclear U, wrong W`, of all families or of those selected.
"""

import importlib
import io
import json
import logging
import shutil
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pycocotools.mask
import torch
from click.testing import CliRunner, Result

from measuring import TrialEndedError, described_parser, isolated
from mtpd.data.synthetic import SyntheticSpec, make_synthetic_set
from mtpd.detectors.models import build_detector, load_config
from mtpd.detectors.runtime import known_warnings_ignored, prepare
from mtpd.errors import MtpdError
from mtpd_extract.cli import main as mtpd_extract
from mtpd_train.cli import main as mtpd_train
from mtpd_train.evaluator.cli import main as mtpd_eval
from student_families import FAMILIES, Family

DEMO = Path(__file__).resolve().parents[1] / 'configs' / 'demo' / 'retinanet_tiny.py'
NUM_IMAGES = 4  # of each split
# Wider ones leave rows of the deep levels that a floor would lose.
IMAGE_SIZES = ((128, 128), (96, 128))
STRIDES = (4, 8, 16, 32, 64, 128)
# SSD's levels from a stride of 100 px on have no counterpart.
TEACHER = """
_base_ = {base!r}
model = dict(
    data_preprocessor=dict(pad_size_divisor={pad_divisor}),
    neck=dict(num_outs=6),
    bbox_head=dict(num_classes={num_classes}, anchor_generator=dict(strides={strides})),
)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=({side}, {side}), keep_ratio={keep_ratio}),
    dict(type='PackDetInputs'),
]
"""
Verdict = Literal['works', 'refused', 'unclear', 'wrong']

TOLERANCE = 1e-4  # px of boxes, and of scores
MASK_TOLERANCE = 1e-3  # share of the pixels
# Untrained detectors are sure of nothing, neither of objects nor of pixels.
LEAST = {'score_thr': 1e-5, 'filter_thr': 1e-5, 'mask_thr': 1e-2}
MOST = {'max_per_img': 20, 'nms_pre': 100}


@dataclass(frozen=True)
class Outcome:
    """What became of a trial."""

    verdict: Verdict
    reason: str


class Failure(Exception):
    """A trial ends early."""

    def __init__(self, verdict: Verdict, reason: str) -> None:
        super().__init__(reason)
        self.outcome = Outcome(verdict, reason)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = described_parser(__doc__)
    parser.add_argument(
        '--family', action='append', default=[], choices=FAMILIES, metavar='F', help='only this family; repeatable'
    )
    parser.add_argument('--timeout', type=float, default=300, help='seconds for one family (default 300)')
    parser.add_argument('--out', type=Path, help='file to append results to; families already in it are skipped')
    parser.add_argument('--work', type=Path, help='keep runs and logs in this folder, without checkpoints')
    options = parser.parse_args(arguments)
    chosen = options.family or list(FAMILIES)
    known = {} if options.family else _read(options.out)
    torch.set_num_threads(1)
    # Here, and not in each process.
    prepare()
    for program in ('mtpd_extract.run', 'mtpd_train.run', 'mtpd_train.evaluator.run'):
        importlib.import_module(program)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        outcomes = {}
        for name in chosen:
            started = time.monotonic()
            outcomes[name] = known.get(name) or run_trial(name, work=work, timeout=options.timeout)
            seconds = time.monotonic() - started
            # A family's checkpoints take up to 2 GB.
            for checkpoint in (work / name).rglob('*.pth'):
                checkpoint.unlink()
            if name not in known and options.out is not None:
                record = {'family': name, **vars(outcomes[name]), 'seconds': round(seconds, 1)}
                with options.out.open('a') as file:
                    file.write(json.dumps(record) + '\n')
            print(f'{name:22} {outcomes[name].verdict:8} {outcomes[name].reason}', flush=True)
    print(summary(outcomes.values()))


def summary(outcomes: Iterable[Outcome]) -> str:
    """The last line."""
    verdicts = [one.verdict for one in outcomes]
    others = ', '.join(f'{verdict} {verdicts.count(verdict)}' for verdict in ('refused', 'unclear', 'wrong'))
    return f'students {verdicts.count("works")} of {len(verdicts)}, {others}'


def run_trial(name: str, *, work: Path, timeout: float) -> Outcome:
    """The trial of a family, in a process of its own."""
    try:
        return isolated(partial(_trial, name, work), timeout=timeout)
    except TrialEndedError as error:
        return Outcome('unclear', str(error))


def _trial(name: str, work: Path) -> Outcome:
    family = FAMILIES[name]
    try:
        work.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(work / name, ignore_errors=True)
        coco = make_set(work, num_classes=family.num_classes)
        cache = make_cache(work, coco, family)
        return try_student(family, coco=coco, cache=cache, folder=work / name)
    except Exception as error:
        (work / f'{name}.log').write_text(traceback.format_exc())
        return Outcome('unclear', f'{type(error).__name__}: {" ".join(str(error).split())[:300]}')


def _read(path: Path | None) -> dict[str, Outcome]:
    """The latest outcome of each family in a file of results."""
    if path is None or not path.is_file():
        return {}
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {one['family']: Outcome(one['verdict'], one['reason']) for one in records}


def make_set(folder: Path, *, num_classes: int) -> Path:
    """A COCO-format set of so many classes."""
    coco = folder / f'shapes{num_classes}'
    make_synthetic_set(coco, SyntheticSpec(num_train=NUM_IMAGES, num_val=NUM_IMAGES, num_empty=0, sizes=IMAGE_SIZES))
    for path in (coco / 'annotations').glob('instances_*.json'):
        content = json.loads(path.read_text())
        content['categories'] = [{'id': number + 1, 'name': f'class{number}'} for number in range(num_classes)]
        for one in content['annotations']:
            one['category_id'] = 1 + one['id'] % num_classes
        path.write_text(json.dumps(content))
    return coco


def make_cache(folder: Path, coco: Path, family: Family) -> Path:
    """The cache of a teacher that takes images as a family does; made unless it is there."""
    geometry = f'{family.side}_{family.pad_divisor}_{"fit" if family.keep_ratio else "square"}'
    cache = folder / f'cache{family.num_classes}_{geometry}'
    if cache.is_dir():
        return cache
    config, weights = cache.with_suffix('.py'), cache.with_suffix('.pth')
    values = {name: getattr(family, name) for name in ('side', 'pad_divisor', 'num_classes', 'keep_ratio')}
    config.write_text(TEACHER.format(base=str(DEMO), strides=list(STRIDES), **values))
    torch.manual_seed(0)
    torch.save({'state_dict': build_detector(load_config(str(config))).state_dict()}, weights)
    teacher = ['--teacher', config, '--checkpoint', weights]
    options = ['--coco', coco, '--out', cache, '--codec', 'fp16', '--views', 'plain', '--device', 'cpu']
    result = CliRunner().invoke(mtpd_extract, [str(one) for one in (*teacher, *options)])
    if result.exit_code:
        raise RuntimeError(f'the cache of the sweep could not be made: {result.output}')
    return cache


def try_student(family: Family, *, coco: Path, cache: Path, folder: Path) -> Outcome:
    """Trains, evaluates, exports and loads one student.

    Args:
        family: which.
        coco: from `make_set`.
        cache: of a teacher at the family's geometry.
        folder: for its runs; new.
    """
    folder.mkdir(parents=True)
    try:
        geometry = {'scale': [family.side] * 2, 'keep_ratio': family.keep_ratio, 'pad_divisor': family.pad_divisor}
        plain = _run(family, folder / 'plain', coco, data={'geometry': geometry})
        refusal = _refusal(family, plain)
        if refusal is not None and not family.plain_works:
            return Outcome('refused', refusal)
        _require_done(plain)
        taught = _run(family, folder / 'taught', coco, cache=str(cache), distill=[{'loss': 'masked_mse'}])
        refusal = _refusal(family, taught)
        if refusal is not None:
            _compare(folder / 'plain')
            return Outcome('refused', f'{refusal} (plain training works)')
        _require_done(taught)
        num_levels, num_found = _distilled_levels(folder / 'taught'), _compare(folder / 'taught')
        if not num_found:
            raise Failure('unclear', 'nothing was detected, so there is nothing to compare')
    except Failure as failure:
        return failure.outcome
    return Outcome('works', f'{num_levels} levels distilled, {num_found} detections as in mmdet')


def _run(family: Family, run: Path, coco: Path, **changes: Any) -> Result:
    stage = {
        'student': family.config,
        'model': dict(family.changes) | _few_detections(family),
        'init': {'backbone': 'none'},
        'data': {'coco': str(coco), 'batch_size': 2, 'workers': 0, 'flip': 0.0},
        # Small, so that no untrained network diverges.
        'optim': {'type': 'adamw', 'lr': 1e-5, 'epochs': 1, 'grad_clip': 1.0},
    }
    for key, value in changes.items():
        stage[key] = stage.get(key, {}) | value if isinstance(value, dict) else value  # type: ignore[operator]
    path = run.with_suffix('.yaml')
    path.write_text(json.dumps(stage))
    with known_warnings_ignored():
        result = CliRunner().invoke(mtpd_train, [str(path), '--out', str(run), '--device', 'cpu', '-v'])
    run.with_suffix('.log').write_text(result.output)
    return result


def _few_detections(family: Family) -> dict[str, Any]:
    try:
        model = load_config(family.config).model
    except MtpdError:  # which the run will say
        return {}
    return dict(_lowered(model, ''))


def _lowered(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key in LEAST and isinstance(value, float):
                yield path + key, LEAST[key]
            elif key in MOST and isinstance(value, int):
                yield path + key, min(MOST[key], value)
            else:
                yield from _lowered(value, f'{path}{key}.')


def _refusal(family: Family, result: Result) -> str | None:
    """The project's one line, if it refuses the student as the table of families says."""
    line = _error(result)
    if line is None or 'this is a bug' in line or family.refusal is None:
        return None
    return line if family.refusal in line else None


def _require_done(result: Result) -> None:
    if result.exit_code or result.exception:
        raise Failure('unclear', _error(result) or f'{result.exception!r}')


def _error(result: Result) -> str | None:
    lines = [line for line in result.stderr.splitlines() if line.startswith('Error: ')]
    if not lines:
        return None
    return lines[-1].removeprefix('Error: ')


def _distilled_levels(run: Path) -> int:
    records = _records(run)
    losses = [name for record in records for name in record.get('losses', {}) if name.startswith('distill/')]
    if not losses or any('not_finite' in record for record in records):
        raise Failure('wrong', 'nothing was distilled, or a loss was not finite')
    return len(set(losses))


def _records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]


def _compare(run: Path) -> int:
    """Compares the student as trained, as mtpd-eval loads it, and as mmdet does; gives the number of detections.

    Raises:
        Failure: they differ, or it does not load.
    """
    results, numbers = run / 'results.json', run / 'numbers.json'
    options = ['--results', results, '--json', numbers, '--batch-size', 1, '--workers', 0, '--device', 'cpu', '-v']
    with known_warnings_ignored():
        result = CliRunner().invoke(mtpd_eval, [str(one) for one in (run, *options)])
    (run / 'eval.log').write_text(result.output)
    if result.exit_code or result.exception:
        raise Failure('wrong', f'mtpd-eval: {_error(result) or result.exception!r}')
    trained = [record['metrics'] for record in _records(run) if 'metrics' in record][-1]
    evaluated = json.loads(numbers.read_text())['metrics']
    off = [name for name in trained if abs(trained[name] - evaluated.get(name, -2)) > TOLERANCE]
    if off or trained.keys() != evaluated.keys():
        raise Failure('wrong', f'mtpd-eval finds another {", ".join(off) or "set of metrics"} than training did')
    ours = json.loads(results.read_text())
    try:
        theirs = _found_by_mmdet(run)
    # mmdet raises anything.
    except Exception as error:
        raise Failure('wrong', f'mmdet: {type(error).__name__}: {error}') from error
    for image_id in theirs:
        _require_equal([one for one in ours if one['image_id'] == image_id], theirs[image_id], image_id=image_id)
    return len(ours)


def _found_by_mmdet(run: Path) -> dict[int, list[dict[str, Any]]]:
    """What mmdet's own functions find in each image, as COCO results."""
    from mmdet.apis import inference_detector, init_detector
    from mmengine.logging import MMLogger

    with known_warnings_ignored(), redirect_stdout(io.StringIO()):
        model = init_detector(str(run / 'student_config.py'), str(run / 'student.pth'), device='cpu')
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    dataset = model.cfg.test_dataloader.dataset
    images = json.loads(Path(dataset.ann_file).read_text())['images']
    found = {}
    for image in images:
        with known_warnings_ignored():
            instances = inference_detector(model, str(Path(dataset.data_prefix['img']) / image['file_name']))
        instances = instances.pred_instances.cpu().numpy()
        records = [
            {'category_id': int(label) + 1, 'score': float(score), 'bbox': [x1, y1, x2 - x1, y2 - y1]}
            for label, score, (x1, y1, x2, y2) in zip(
                instances.labels, instances.scores, instances.bboxes.tolist(), strict=True
            )
        ]
        for record, mask in zip(records, instances.get('masks', []), strict=False):
            record['mask'] = mask
        found[image['id']] = records
    return found


def _require_equal(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], *, image_id: int) -> None:
    """Each of our detections must be one of mmdet's; ties may be ordered in any way."""
    if len(ours) != len(theirs):
        raise Failure('wrong', f'{len(ours)} detections in image {image_id}, mmdet finds {len(theirs)}')
    for one in ours:
        distances = [_distance(one, other) for other in theirs]
        if min(distances) > TOLERANCE:
            raise Failure('wrong', f'a detection in image {image_id} is {min(distances):.3g} off what mmdet finds')
        if 'segmentation' not in one and 'mask' in theirs[0]:
            raise Failure('wrong', f'image {image_id}: mmdet predicts masks too')
        if 'segmentation' in one:
            mask = pycocotools.mask.decode(one['segmentation']).astype(bool)
            near = [other['mask'] for other, off in zip(theirs, distances, strict=True) if off <= TOLERANCE]
            if min(np.mean(mask != other) for other in near) > MASK_TOLERANCE:
                raise Failure('wrong', f'a mask in image {image_id} is another one than mmdet finds')


def _distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    if one['category_id'] != other['category_id']:
        return np.inf
    pairs = zip([one['score'], *one['bbox']], [other['score'], *other['bbox']], strict=True)
    return float(max(abs(a - b) for a, b in pairs))


if __name__ == '__main__':
    main()
