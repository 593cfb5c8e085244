"""One export, from the options to the file."""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mtpd import __version__
from mtpd.data.coco import CocoSet, coco_paths, read_annotations, spread
from mtpd.data.images import read_image
from mtpd.detectors.class_names import checkpoint_classes
from mtpd.detectors.detector import Detector
from mtpd.detectors.exportable import Exportable
from mtpd.detectors.samples import Sample, make_sample
from mtpd.errors import InputError, MtpdError
from mtpd.evaluation import evaluate, metrics_by_name
from mtpd.export.comparison import Comparison, compare
from mtpd.export.exported import ExportedDetector, batch_of, open_onnx, open_session, open_torch
from mtpd.export.formats import OPSET, onnx_bytes, recorded, torch_bytes
from mtpd.export.packages import require_packages
from mtpd.export.program import IMAGES, SIZES, Program, RawProgram
from mtpd.export.quantisation import quantised
from mtpd.export.record import ExportRecord, Precision, input_geometry
from mtpd.system.console import say, warn
from mtpd.system.files import sha256_bytes, sha256_file, write_output
from mtpd.system.text import format_bytes
from mtpd_train.data.dataset import DetectionDataset
from mtpd_train.data.sampling import Request
from mtpd_train.evaluation import Finder, detect
from mtpd_train.evaluator.detector import SavedDetector, build_student, category_ids
from mtpd_train.evaluator.run import SetOptions, evaluation_set, saved_detector
from mtpd_train.exporter.benchmark import benchmark
from mtpd_train.run_folder import EXPORTS_FILE, RUN_FILE

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
CPU = torch.device('cpu')
# Of raw outputs, relative to the largest value.
RAW_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class ExportOptions(SetOptions):
    """Options of `mtpd-export`, as the command line gives them; `size` is width and height."""

    out: Path
    format: Literal['onnx', 'torch']
    raw: bool
    size: tuple[int, int] | None
    batch: int | None
    precision: Precision
    calibrate: Path | None
    num_calibrate: int
    percentile: float
    num_samples: int
    num_evaluate: int
    license: str | None
    benchmark: bool


@dataclass(frozen=True)
class Subject:
    """What is exported, and what it is compared on."""

    saved: SavedDetector
    detector: Detector
    network: Exportable
    record: ExportRecord
    dataset: DetectionDataset
    samples: Sequence[Sample]
    category_ids: Sequence[int]


def export_detector(options: ExportOptions) -> None:
    """Exports a run's student or a model, compares the file with it, and writes the file."""
    if options.format == 'onnx':
        require_packages('onnx', 'onnxruntime', 'onnxscript')
    subject = _subject(options)
    for note in subject.network.notes:
        say(f'note: {note}')
    if options.raw:
        content = _raw(subject, options)
    else:
        expected = subject.detector.find(subject.samples)
        content = _content(subject, options)
        if options.precision == 'float32':
            say(_compared(subject, expected, _opened(content, options), options).line())
    write_output(options.out, content, option='--out')
    size, batch = subject.record.size, subject.record.batch
    sides = 'any size' if size is None else f'{size[1]} x {size[0]} px (width x height)'
    images = 'any number of images' if batch is None else f'{batch} image{"s" if batch > 1 else ""}'
    say(f'{options.out}: {format_bytes(len(content))}, {options.precision}, for {images} of {sides}')
    facts: dict[str, Any] = {
        'file': str(options.out), 'sha256': sha256_bytes(content), 'bytes': len(content), 'format': options.format,
        'precision': options.precision, 'raw': options.raw, 'size': size, 'checkpoint': str(subject.saved.checkpoint),
    }  # fmt: skip
    if options.precision != 'float32' and not options.raw and options.num_evaluate:
        facts['ap'] = _precision_loss(subject, _opened(content, options), options)
    if options.benchmark:
        facts['benchmark'] = benchmark(
            subject.saved,
            subject.detector,
            subject.samples[0],
            options.out,
            subject.record,
            trust_checkpoint=options.trust_checkpoint,
        )
    _note_in_run(subject.saved.checkpoint, facts)


def _subject(options: ExportOptions) -> Subject:
    """Builds the detector at the geometry of the export, and reads the sample images."""
    saved = saved_detector(options)
    images, annotations = evaluation_set(options, saved.val_set, name=saved.definition.name)
    annotated = read_annotations(annotations)
    if not annotated.images:
        raise InputError(f'{annotated.path}: lists no images; give another annotation file')
    own, _ = saved.definition.preprocessing(scale=options.scale)
    asked = None if options.size is None else (options.size[1], options.size[0])
    geometry = input_geometry(own.geometry, asked)
    preprocessing, notes = saved.definition.preprocessing(geometry)
    for note in notes:
        say(f'note: {note}')
    detector, meta = build_student(
        saved, CPU, preprocessing=preprocessing, trust_checkpoint=options.trust_checkpoint, with_levels=True
    )
    ids = category_ids(saved, detector, meta, annotated)
    names = {one.id: one.name for one in annotated.categories}
    classes = checkpoint_classes(meta) or saved.definition.classes() or tuple(names[one] for one in ids)
    network = detector.exportable()
    size = None
    if not geometry.keep_ratio or geometry.pad_size is not None:
        size = preprocessing.geometry.padded((1, 1))
        if asked is not None and asked != size:
            raise InputError(
                f'--size {asked[1]}x{asked[0]}: the sides of inputs must be multiples of '
                f'{geometry.pad_divisor} px; give {size[1]}x{size[0]}'
            )
        detector.require_inputs([size])
    record = ExportRecord(
        mtpd=__version__,
        detector=_network_name(saved, detector),
        checkpoint_sha256=sha256_file(saved.checkpoint),
        license=options.license,
        classes=classes,
        geometry=preprocessing.geometry,
        normalisation=preprocessing.normalisation,
        size=size,
        batch=options.batch,
        num_detections=network.num_detections,
        precision=options.precision,
        opset=OPSET if options.format == 'onnx' else None,
        paste=network.paste,
        raw=dict(network.raw_record()) if options.raw else None,
    )
    dataset = DetectionDataset(annotated, images, geometry=preprocessing.geometry, for_training=False, with_masks=False)
    samples = [_sample(dataset, image_id) for image_id in spread(list(dataset.sizes()), options.num_samples)]
    return Subject(saved, detector, network, record, dataset, samples, ids)


def _network_name(saved: SavedDetector, detector: Detector) -> str:
    """The name of a detector, or of its network for one that is named by its place on this machine."""
    record = saved.definition.record
    name = saved.definition.name if record is None else record.detector
    place = Path(name.partition(':')[2] or name)
    is_local = any(path.is_absolute() or path.exists() for path in (Path(name), place))
    return type(detector.module).__name__ if is_local or '.py' in name else name


def _content(subject: Subject, options: ExportOptions) -> bytes:
    """The file's, with the precision that is asked for."""
    network, record = subject.network, subject.record
    if options.precision == 'half':
        network = copy.deepcopy(network).half()
    program = Program(network, record.preprocessing)
    example = _example(subject, record)
    say('recording the graph')
    graph = recorded(program, example, batch=record.batch is None, size=record.size is None)
    if options.format == 'torch':
        return torch_bytes(graph, record)
    say('translating it to ONNX')
    plain = record.model_copy(update={'precision': 'float32'}) if options.precision == 'int8' else record
    content = onnx_bytes(graph, example, plain, inputs=program.input_names, outputs=program.output_names)
    if options.precision != 'int8':
        return content
    # What is quantised is known to be right.
    exported = open_onnx(content, name=str(options.out))
    say(_compared(subject, subject.detector.find(subject.samples), exported, options).line())
    return quantised(content, record, *_calibration(subject, options), percentile=options.percentile)


def _raw(subject: Subject, options: ExportOptions) -> bytes:
    """The file with raw outputs, which equal those of the network; writes the JSON that belongs to it."""
    network, record = subject.network, subject.record
    if options.precision == 'half':
        network = copy.deepcopy(network).half()
    height, width = record.size or subject.record.geometry.padded(subject.samples[0].original)
    images = torch.rand(record.batch or 2, 3, height, width)
    with torch.no_grad():
        expected = dict(network.eval().raw(images))
    program = RawProgram(network, list(expected))
    graph = recorded(program, [images], batch=record.batch is None, size=record.size is None)
    content = onnx_bytes(graph, [images], record, inputs=program.input_names, outputs=program.output_names)
    if options.precision == 'float32':
        session, _ = open_session(content, name=str(options.out))
        for name, found in zip(expected, session.run(list(expected), {IMAGES: images.numpy()}), strict=True):
            scale = max(1.0, float(expected[name].abs().max()))
            error = float(np.abs(found - expected[name].numpy()).max()) / scale
            if not error <= RAW_TOLERANCE:
                raise InputError(
                    f'{options.out}: not written: its output {name} differs by {error:.2g} of the largest value, '
                    f'expected at most {RAW_TOLERANCE:g}'
                )
    text = json.dumps(record.model_dump(mode='json') | {'outputs': {k: list(v.shape[1:]) for k, v in expected.items()}})
    write_output(options.out.with_name(f'{options.out.name}.json'), text.encode(), option='--out')
    return content


def _example(subject: Subject, record: ExportRecord) -> list[torch.Tensor]:
    """Inputs to record the graph with: two images where it takes any number, as 1 would become a constant."""
    samples = (list(subject.samples) * 2)[: record.batch or 2]
    return [torch.from_numpy(one) for one in batch_of(samples, record=record, name='the export')]


def _opened(content: bytes, options: ExportOptions) -> ExportedDetector:
    opened = open_onnx if options.format == 'onnx' else open_torch
    return opened(content, name=str(options.out))


def _compared(
    subject: Subject, expected: Sequence[Any], exported: ExportedDetector, options: ExportOptions
) -> Comparison:
    """Refuses a file that finds something else than its detector."""
    found = exported.find(subject.samples)
    comparison = compare(
        expected, found, iou_threshold=subject.network.iou_threshold, limit=subject.network.num_detections
    )
    if failure := comparison.failure():
        raise InputError(
            f'{options.out}: not written: the exported graph differs from {subject.saved.full_name}: {failure}; '
            'try --format torch, and report it'
        )
    if not comparison.num_detections:
        warn(f'{subject.saved.full_name} finds nothing in the {len(subject.samples)} sample images; give others')
    return comparison


def _precision_loss(subject: Subject, exported: ExportedDetector, options: ExportOptions) -> dict[str, float]:
    """Prints the AP of the detector and of its file of another precision, on some images of the set; returns both."""
    coco = subject.dataset.coco
    chosen = spread(coco.images, options.num_evaluate)
    subset = replace(coco, images=chosen)
    found: dict[str, float] = {}
    before, after = (_ap(finder, subset, subject) for finder in (subject.detector, exported))
    for name in ('box/AP', 'mask/AP'):
        if name in before:
            print(
                f'{name}: float32 {100 * before[name]:.2f}, {options.precision} {100 * after[name]:.2f}, change '
                f'{100 * (after[name] - before[name]):+.2f} ({len(chosen)} of {len(coco.images)} images)'
            )
            found |= {f'float32 {name}': before[name], f'{options.precision} {name}': after[name]}
    return found


def _ap(finder: Finder, coco: CocoSet, subject: Subject) -> dict[str, float]:
    dataset = DetectionDataset(
        coco, subject.dataset.folder, geometry=finder.preprocessing.geometry, for_training=False, with_masks=False
    )
    boxes, masks = detect(
        finder, dataset, batch_size=subject.record.batch or 4, num_workers=0, category_ids=subject.category_ids
    )
    has_masks = subject.detector.has_masks
    ids = [image.id for image in coco.images]
    found = {'box': evaluate(coco, boxes, kind='bbox', image_ids=ids)}
    if has_masks and coco.has_masks:
        found['mask'] = evaluate(coco, masks, kind='segm', image_ids=ids)
    return metrics_by_name(found)


def _calibration(subject: Subject, options: ExportOptions) -> tuple[int, Callable[[int], Mapping[str, np.ndarray]]]:
    """Number of inputs made of training images, and how to get one."""
    folder = options.calibrate or _training_images(subject.saved.checkpoint.parent)
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise InputError(f'--calibrate {folder}: has no images ({", ".join(IMAGE_SUFFIXES)}); give another folder')
    record, chosen = subject.record, spread(files, options.num_calibrate)
    say(f'measuring the ranges of activations on {len(chosen)} images of {folder}')

    def batch_at(number: int) -> Mapping[str, np.ndarray]:
        path = chosen[number]
        sample = make_sample(read_image(path), image_id=0, geometry=record.geometry, view='plain')
        images, sizes = batch_of([sample], record=record, name=str(path))
        return {IMAGES: images, SIZES: sizes}

    return len(chosen), batch_at


def _training_images(folder: Path) -> Path:
    """The image folder that the run of a stage's folder, or a run's, was trained on."""
    for place in (folder, folder.parent):
        try:
            stages = json.loads((place / RUN_FILE).read_bytes())['stages']
            data = stages[max(stages, key=int)]['data']
            train = data['train']
            return coco_paths(Path(data['coco']), train)[0] if isinstance(train, str) else Path(train['images'])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    raise InputError(f'--int8: {folder} does not name its training images; add --calibrate DIR')


def _sample(dataset: DetectionDataset, image_id: int) -> Sample:
    found = dataset[Request(image_id, 'plain')]
    if isinstance(found, MtpdError):
        raise found
    return found


def _note_in_run(checkpoint: Path, facts: Mapping[str, Any]) -> None:
    """Adds a line to the run that the checkpoint belongs to, if it belongs to one."""
    for folder in (checkpoint.parent, checkpoint.parent.parent):
        if (folder / RUN_FILE).is_file():
            try:
                with (folder / EXPORTS_FILE).open('a') as file:
                    file.write(json.dumps(facts) + '\n')
            except OSError as error:
                warn(f'{folder / EXPORTS_FILE}: cannot be written ({error.strerror}): the report lacks this export')
            return
