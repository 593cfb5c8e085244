"""One evaluation, from the options to the tables."""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtpd.data.account import evaluation_account, suspicions
from mtpd.data.coco import read_annotations
from mtpd.errors import InputError, UnavailableError
from mtpd.evaluation import Evaluation, require_backend
from mtpd.system.console import say, warn
from mtpd.system.environment import choose_device, describe_device, versions
from mtpd.system.files import write_atomically
from mtpd_train.data.dataset import DetectionDataset
from mtpd_train.evaluation import detect, evaluate_detections, metrics_by_name
from mtpd_train.evaluator.detector import build_target, category_ids
from mtpd_train.evaluator.target import find_files, find_target
from mtpd_train.evaluator.text import class_table, metrics_table

LIBRARIES = ('mtpd', 'torch', 'torchvision', 'mmdet', 'pycocotools')


def run(options: Mapping[str, Any]) -> None:
    """Evaluates a detector, prints the tables and writes the requested files."""
    require_backend(options['backend'])
    device = choose_device(options['device'])
    target = find_target(options)
    files = find_files(options, target)
    coco = read_annotations(files.annotations)
    if not coco.images:
        raise InputError(f'{coco.path}: lists no images; give another annotation file')
    for doubt in suspicions(coco):
        warn(f'{coco.path}: {doubt}')
    student = build_target(target, scale=options['scale'], trust_checkpoint=options['trust_checkpoint'], device=device)
    ids = category_ids(target, student, coco, trust_checkpoint=options['trust_checkpoint'])
    dataset = DetectionDataset(
        coco, files.images, geometry=student.preprocessing.geometry, for_training=False, with_masks=False
    )
    if line := evaluation_account(coco, with_masks=student.has_masks and coco.has_masks):
        say(line)
    for name in ('json', 'results'):
        if options[name] is not None:
            _require_place(f'--{name}', options[name])

    started = time.perf_counter()
    boxes, masks = detect(
        student,
        dataset,
        batch_size=options['batch_size'],
        num_workers=options['workers'],
        device=device,
        category_ids=ids,
    )
    seconds = time.perf_counter() - started
    if options['results'] is not None:
        _write('--results', options['results'], _together(boxes, masks))
    found = evaluate_detections(coco, boxes, masks if student.has_masks else None, backend=options['backend'])

    if options['json'] is not None:
        record = {
            'model': target.name,
            'checkpoint': str(target.checkpoint),
            'images': str(files.images),
            'annotations': str(coco.path),
            'num_images': len(coco.images),
            **_numbers(found),
            'seconds': seconds,
            'backend': options['backend'],
            'device': describe_device(device),
            'versions': versions(LIBRARIES),
        }
        _write('--json', options['json'], record)
    print(f'{target.name} from {target.checkpoint} on {coco.path}')
    print(f'{len(coco.images)} images in {seconds:.1f} s ({len(coco.images) / seconds:.1f} images/s)')
    if student.has_masks and 'mask' not in found:
        print('masks are not evaluated: the annotations have no masks')
    print('\n'.join(metrics_table(found)))
    if options['classes']:
        print('\n' + '\n'.join(class_table(found)))


def _numbers(found: Mapping[str, Evaluation]) -> dict[str, Any]:
    return {
        'metrics': metrics_by_name(found),
        'class_ap': {kind: dict(one.class_ap) for kind, one in found.items()},
    }


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
        raise _unwritable(option, path, error) from error


def _write(option: str, path: Path, content: Any) -> None:
    try:
        write_atomically(path, json.dumps(content).encode())
    except OSError as error:
        raise _unwritable(option, path, error) from error


def _unwritable(option: str, path: Path, error: OSError) -> UnavailableError:
    return UnavailableError(f'{option} {path}: cannot be written ({error.strerror}); choose another path')
