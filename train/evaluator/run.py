"""One evaluation, from the options to the tables."""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mtpd.data.account import evaluation_account, suspicions
from mtpd.data.coco import coco_paths, read_annotations
from mtpd.errors import InputError
from mtpd.evaluation import METRICS, Backend, Evaluation, require_backend
from mtpd.system.console import say, warn
from mtpd.system.environment import choose_device, describe_device, versions
from mtpd.system.files import unwritable, write_output
from mtpd.system.text import table
from mtpd_train.data.dataset import DetectionDataset
from mtpd_train.evaluation import detect, evaluate_detections, metrics_by_name
from mtpd_train.evaluator.detector import Detector, build_student, category_ids, model_by_name, student_of_run

LIBRARIES = ('mtpd', 'torch', 'torchvision', 'mmdet', 'pycocotools')


@dataclass(frozen=True)
class EvalOptions:
    """The command line of `mtpd-eval`; its help describes each option. Either `run` or `model` is given."""

    run: Path | None
    model: str | None
    checkpoint: Path | None
    trust_checkpoint: bool
    coco: Path | None
    split: str
    images: Path | None
    annotations: Path | None
    scale: tuple[int, int] | None
    batch_size: int
    workers: int
    device: Literal['auto', 'cpu', 'cuda']
    backend: Backend
    classes: bool
    json: Path | None
    results: Path | None


def evaluate_model(options: EvalOptions) -> None:
    """Evaluates a detector, prints the tables and writes the requested files."""
    require_backend(options.backend)
    device = choose_device(options.device)
    if options.run is not None:
        detector = student_of_run(options.run, options.checkpoint)
    else:
        assert options.model is not None
        detector = model_by_name(options.model, options.checkpoint)
    images, annotations = _files(options, detector)
    coco = read_annotations(annotations)
    if not coco.images:
        raise InputError(f'{coco.path}: lists no images; give another annotation file')
    for doubt in suspicions(coco):
        warn(f'{coco.path}: {doubt}')
    student = build_student(detector, device, scale=options.scale, trust_checkpoint=options.trust_checkpoint)
    ids = category_ids(detector, student, coco, trust_checkpoint=options.trust_checkpoint)
    geometry = student.preprocessing.geometry
    dataset = DetectionDataset(coco, images, geometry=geometry, for_training=False, with_masks=False)
    if line := evaluation_account(coco, with_masks=student.has_masks and coco.has_masks):
        say(line)
    for option, out in (('--json', options.json), ('--results', options.results)):
        if out is not None:
            _require_place(option, out)

    started = time.perf_counter()
    boxes, masks = detect(
        student,
        dataset,
        batch_size=options.batch_size,
        num_workers=options.workers,
        device=device,
        category_ids=ids,
    )
    seconds = time.perf_counter() - started
    if options.results is not None:
        write_output(options.results, json.dumps(_together(boxes, masks)).encode(), option='--results')
    found = evaluate_detections(coco, boxes, masks if student.has_masks else None, backend=options.backend)

    if options.json is not None:
        record = {
            'model': detector.name,
            'checkpoint': str(detector.checkpoint),
            'images': str(images),
            'annotations': str(coco.path),
            'num_images': len(coco.images),
            'metrics': metrics_by_name(found),
            'class_ap': {kind: dict(one.class_ap) for kind, one in found.items()},
            'seconds': seconds,
            'backend': options.backend,
            'device': describe_device(device),
            'versions': versions(LIBRARIES),
        }
        write_output(options.json, json.dumps(record).encode(), option='--json')
    print(f'{detector.name} from {detector.checkpoint} on {coco.path}')
    print(f'{len(coco.images)} images in {seconds:.1f} s ({len(coco.images) / seconds:.1f} images/s)')
    if student.has_masks and 'mask' not in found:
        print('masks are not evaluated: the annotations have no masks')
    print('\n'.join(metrics_table(found)))
    if options.classes:
        print('\n' + '\n'.join(class_table(found)))


def metrics_table(found: Mapping[str, Evaluation]) -> list[str]:
    """COCO's twelve numbers of boxes and masks, in percent; `-` where there is nothing to find."""
    rows = [[kind, *(_percent(one.metrics[name]) for name in METRICS)] for kind, one in found.items()]
    return table(['', *METRICS], rows)


def class_table(found: Mapping[str, Evaluation]) -> list[str]:
    """AP of each class, the best first."""
    class_ap = next(iter(found.values())).class_ap
    names = sorted(class_ap, key=lambda name: -class_ap[name])
    rows = [[name, *(_percent(one.class_ap[name]) for one in found.values())] for name in names]
    return table(['class', *(f'{kind} AP' for kind in found)], rows)


def _percent(value: float) -> str:
    return '-' if value < 0 else f'{100 * value:.1f}'


def _files(options: EvalOptions, detector: Detector) -> tuple[Path, Path]:
    """Image folder and annotation file that the command line names, or else those of the run."""
    if options.images is not None and options.annotations is not None:
        return options.images, options.annotations
    if options.coco is not None:
        return coco_paths(options.coco, options.split)
    if detector.val_set is None:
        raise InputError(
            f'{detector.name}: does not name a validation set; add --coco DIR, or --images DIR --annotations FILE'
        )
    return detector.val_set


def _together(boxes: Sequence[Mapping[str, Any]], masks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One result record for each detection, with its mask where there are masks."""
    if not masks:
        return [dict(box) for box in boxes]
    return [{**box, 'segmentation': mask['segmentation']} for box, mask in zip(boxes, masks, strict=True)]


def _require_place(option: str, path: Path) -> None:
    """Finds out before a long evaluation whether its file can be written, by writing nothing beside it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise unwritable(path, error, option=option) from error
