"""One evaluation, from the options to the tables."""

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mtpd.data.account import evaluation_account, suspicions
from mtpd.data.coco import CocoSet, coco_paths, read_annotations
from mtpd.detectors.class_names import labels_to_categories
from mtpd.errors import InputError
from mtpd.evaluation import METRICS, Backend, Evaluation, evaluate_detections, metrics_by_name, require_backend
from mtpd.export.exported import ExportedDetector, open_onnx
from mtpd.system.console import say, warn
from mtpd.system.environment import choose_device, describe_device, versions
from mtpd.system.files import unwritable, write_output
from mtpd.system.text import table
from mtpd_train.data.dataset import DetectionDataset
from mtpd_train.evaluation import Finder, detect
from mtpd_train.evaluator.detector import (
    SavedDetector,
    build_student,
    category_ids,
    model_by_name,
    student_of_checkpoint,
    student_of_run,
)

LIBRARIES = ('mtpd', 'torch', 'torchvision', 'mmdet', 'pycocotools')
ONNX_SUFFIX = '.onnx'


@dataclass(frozen=True, kw_only=True)
class SetOptions:
    """Options that name a detector and an annotated set, as the command line gives them."""

    run: Path | None
    model: str | None
    checkpoint: Path | None
    trust_checkpoint: bool
    coco: Path | None
    split: str
    images: Path | None
    annotations: Path | None
    scale: tuple[int, int] | None


@dataclass(frozen=True, kw_only=True)
class EvalOptions(SetOptions):
    """Options of `mtpd-eval`."""

    batch_size: int
    workers: int
    device: str
    backend: Backend
    with_classes: bool
    json_file: Path | None
    results_file: Path | None


def evaluate_model(options: EvalOptions) -> None:
    """Evaluates a run's student, a model or an exported file, prints the tables and writes the requested files."""
    require_backend(options.backend)
    device = choose_device(options.device)
    exported = None
    if options.run is not None and options.run.suffix == ONNX_SUFFIX:
        exported = _exported(options.run, options)
        name, source, val_set = 'ONNX Runtime', options.run, None
    else:
        saved = saved_detector(options)
        name, source, val_set = saved.definition.name, saved.checkpoint, saved.val_set
    images, annotations = evaluation_set(options, val_set, name=str(options.run or name))
    annotated = read_annotations(annotations)
    if not annotated.images:
        raise InputError(f'{annotated.path}: lists no images; give another annotation file')
    for doubt in suspicions(annotated):
        warn(f'{annotated.path}: {doubt}')
    finder: Finder
    if exported is None:
        preprocessing, _ = saved.definition.preprocessing(scale=options.scale)
        student, meta = build_student(
            saved, device, preprocessing=preprocessing, trust_checkpoint=options.trust_checkpoint
        )
        ids = category_ids(saved, student, meta, annotated)
        finder, has_masks = student, student.has_masks
    else:
        ids = exported_category_ids(exported, annotated)
        finder, has_masks = exported, exported.has_masks
    geometry = finder.preprocessing.geometry
    dataset = DetectionDataset(annotated, images, geometry=geometry, for_training=False, with_masks=False)
    if line := evaluation_account(annotated, with_masks=has_masks and annotated.has_masks):
        say(line)
    for option, out in (('--json', options.json_file), ('--results', options.results_file)):
        if out is not None:
            _require_place(option, out)

    started = time.perf_counter()
    boxes, masks = detect(finder, dataset, batch_size=options.batch_size, num_workers=options.workers, category_ids=ids)
    seconds = time.perf_counter() - started
    if options.results_file is not None:
        # One record for each detection, with its mask where there are masks.
        both = zip(boxes, masks, strict=True) if masks else ()
        records = [box | {'segmentation': mask['segmentation']} for box, mask in both] or boxes
        write_output(options.results_file, json.dumps(records).encode(), option='--results')
    found = evaluate_detections(annotated, boxes, masks if has_masks else None, backend=options.backend)

    if options.json_file is not None:
        record = {
            'model': name,
            'checkpoint': str(source),
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
    print(f'{name} from {source} on {annotated.path}')
    print(f'{len(annotated.images)} images in {seconds:.1f} s ({len(annotated.images) / seconds:.1f} images/s)')
    if has_masks and 'mask' not in found:
        print('masks are not evaluated: the annotations have no masks')
    print('\n'.join(metrics_table(found)))
    if options.with_classes:
        print('\n' + '\n'.join(class_table(found)))


def saved_detector(options: SetOptions) -> SavedDetector:
    """The detector that the options name: by a run, a checkpoint in it, or a model."""
    if options.run is None:
        assert options.model is not None
        return model_by_name(options.model, options.checkpoint)
    if options.run.is_dir() or options.checkpoint is not None:
        return student_of_run(options.run, options.checkpoint)
    return student_of_checkpoint(options.run) if options.run.suffix else student_of_run(options.run)


def _exported(path: Path, options: EvalOptions) -> ExportedDetector:
    """An ONNX file; refuses options that it cannot follow."""
    given = {
        '--checkpoint': options.checkpoint, '--scale': options.scale,
        '--trust-checkpoint': options.trust_checkpoint or None, '--device': options.device == 'cuda' or None,
    }  # fmt: skip
    for option, value in given.items():
        if value is not None:
            raise InputError(f'{option}: {path} has its own weights and size, and runs on the CPU; remove the option')
    if not path.is_file():
        raise InputError(f'{path}: there is no such file; give a file that mtpd-export has written')
    return open_onnx(path, name=str(path))


def exported_category_ids(exported: ExportedDetector, annotated: CocoSet) -> list[int]:
    """The category id of each label of an exported file, by name."""
    classes = exported.record.classes
    return labels_to_categories(
        [(one.id, one.name) for one in annotated.categories],
        classes=classes,
        num_classes=len(classes),
        name=exported.name,
    )


def evaluation_set(options: SetOptions, val_set: tuple[Path, Path] | None, *, name: str) -> tuple[Path, Path]:
    """Image folder and annotation file that the options name, or else the detector."""
    if options.images is not None and options.annotations is not None:
        return options.images, options.annotations
    if options.coco is not None:
        return coco_paths(options.coco, options.split)
    if val_set is None:
        raise InputError(f'{name}: does not name a validation set; add --coco DIR, or --images DIR --annotations FILE')
    return val_set


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
