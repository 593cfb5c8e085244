"""One evaluation, from the options to the tables."""

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mtpd.data.account import evaluation_account, suspicions
from mtpd.data.coco import coco_paths, read_annotations
from mtpd.errors import InputError
from mtpd.evaluation import METRICS, Backend, Evaluation, evaluate_detections, metrics_by_name, require_backend
from mtpd.system.console import say, warn
from mtpd.system.environment import choose_device, describe_device, versions
from mtpd.system.files import unwritable, write_output
from mtpd.system.text import table
from mtpd_train.data.dataset import DetectionDataset
from mtpd_train.evaluation import detect
from mtpd_train.evaluator.detector import build_student, category_ids, model_by_name, student_of_run

LIBRARIES = ('mtpd', 'torch', 'torchvision', 'mmdet', 'pycocotools')


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Options of `mtpd-eval`, as the command line gives them."""

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
    device: str
    backend: Backend
    with_classes: bool
    json_file: Path | None
    results_file: Path | None


def evaluate_model(options: EvalOptions) -> None:
    """Evaluates a run's student or a model, prints the tables and writes the requested files."""
    require_backend(options.backend)
    device = choose_device(options.device)
    if options.run is not None:
        detector = student_of_run(options.run, options.checkpoint)
    else:
        assert options.model is not None
        detector = model_by_name(options.model, options.checkpoint)
    images, annotations = options.images, options.annotations
    if images is None or annotations is None:
        if options.coco is not None:
            images, annotations = coco_paths(options.coco, options.split)
        elif detector.val_set is not None:
            images, annotations = detector.val_set
        else:
            raise InputError(
                f'{detector.definition.name}: does not name a validation set; add --coco DIR, or --images DIR '
                '--annotations FILE'
            )
    annotated = read_annotations(annotations)
    if not annotated.images:
        raise InputError(f'{annotated.path}: lists no images; give another annotation file')
    for doubt in suspicions(annotated):
        warn(f'{annotated.path}: {doubt}')
    student, meta = build_student(detector, device, scale=options.scale, trust_checkpoint=options.trust_checkpoint)
    ids = category_ids(detector, student, meta, annotated)
    geometry = student.preprocessing.geometry
    dataset = DetectionDataset(annotated, images, geometry=geometry, for_training=False, with_masks=False)
    if line := evaluation_account(annotated, with_masks=student.has_masks and annotated.has_masks):
        say(line)
    for option, out in (('--json', options.json_file), ('--results', options.results_file)):
        if out is not None:
            _require_place(option, out)

    started = time.perf_counter()
    boxes, masks = detect(
        student, dataset, batch_size=options.batch_size, num_workers=options.workers, category_ids=ids
    )
    seconds = time.perf_counter() - started
    if options.results_file is not None:
        # One record for each detection, with its mask where there are masks.
        both = zip(boxes, masks, strict=True) if masks else ()
        records = [box | {'segmentation': mask['segmentation']} for box, mask in both] or boxes
        write_output(options.results_file, json.dumps(records).encode(), option='--results')
    found = evaluate_detections(annotated, boxes, masks if student.has_masks else None, backend=options.backend)

    if options.json_file is not None:
        record = {
            'model': detector.definition.name,
            'checkpoint': str(detector.checkpoint),
            'images': str(images),
            'annotations': str(annotated.path),
            'num_images': len(annotated.images),
            'metrics': metrics_by_name(found),
            'class_ap': {kind: dict(one.class_ap) for kind, one in found.items()},
            'seconds': seconds,
            'backend': options.backend,
            'device': describe_device(device),
            'versions': versions(LIBRARIES),
        }
        write_output(options.json_file, json.dumps(record).encode(), option='--json')
    print(f'{detector.definition.name} from {detector.checkpoint} on {annotated.path}')
    print(f'{len(annotated.images)} images in {seconds:.1f} s ({len(annotated.images) / seconds:.1f} images/s)')
    if student.has_masks and 'mask' not in found:
        print('masks are not evaluated: the annotations have no masks')
    print('\n'.join(metrics_table(found)))
    if options.with_classes:
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


def _require_place(option: str, path: Path) -> None:
    """Finds out before a long evaluation whether its file can be written, by writing nothing beside it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise unwritable(path, error, option=option) from error
