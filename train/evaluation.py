"""COCO AP of a student on a split."""

import time
from collections.abc import Sequence
from typing import Any, Protocol

from mtpd.detectors.detector import Detections, Detector
from mtpd.detectors.preprocessing import Preprocessing
from mtpd.detectors.results import coco_results
from mtpd.detectors.samples import Sample
from mtpd.evaluation import evaluate_detections, metrics_by_name
from mtpd.system.console import progress_bar, say
from mtpd.system.interrupt import StopFlag, StopRequested
from mtpd_train.data.dataset import DetectionDataset, load_batches
from mtpd_train.data.sampling import evaluation_batches
from mtpd_train.processes import ALONE, World
from mtpd_train.records.metrics import EvaluationRecord
from mtpd_train.stage import Stage
from mtpd_train.student import named_failures

NEVER = StopFlag()


class Finder(Protocol):
    """What finds objects: a detector in eval mode, or an exported file."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become its inputs."""

    def find(self, samples: Sequence[Sample]) -> list[Detections]:
        """What it finds in each image."""


def detect(
    finder: Finder,
    dataset: DetectionDataset,
    *,
    batch_size: int,
    num_workers: int,
    category_ids: Sequence[int] | None = None,
    num_images: int | None = None,
    stop: StopFlag = NEVER,
    world: World = ALONE,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Box and mask results of every image of `dataset`, in COCO's result format.

    `category_ids` are those of the finder's labels; None: those of the dataset, ascending. Several processes divide
    the batches, and the first of them gets all results. `num_images` are the first of the first batch; None: all.
    Raises StopRequested when `stop` was set in any process.
    """
    padded = {image_id: finder.preprocessing.geometry.padded(size) for image_id, size in dataset.sizes().items()}
    batches = evaluation_batches(padded, batch_size=max(1, batch_size // world.size))[world.rank :: world.size]
    if num_images is not None:
        batches = [batch[:num_images] for batch in batches[:1]]
    if category_ids is None:
        category_ids = [category.id for category in dataset.coco.categories]
    boxes: list[dict[str, Any]] = []
    masks: list[dict[str, Any]] = []
    total, is_whole = sum(map(len, batches)), num_images is None
    with progress_bar(total=total, unit='image', desc='evaluate', leave=False, in_logs=is_whole) as bar:
        for samples in load_batches(dataset, batches, num_workers=num_workers):
            with named_failures(finder.name, 'predict', image_ids=[one.image_id for one in samples]):
                found = coco_results(finder.find(samples), [one.image_id for one in samples], category_ids=category_ids)
            boxes += found[0]
            masks += found[1]
            bar.update(len(samples))
            if stop:
                break
    if any(world.any(bool(stop))):
        raise StopRequested
    found_by_all = world.gathered_by_main((boxes, masks))
    return [one for part in found_by_all for one in part[0]], [one for part in found_by_all for one in part[1]]


def evaluate_stage(
    stage: Stage, student: Detector, *, step: int, epoch: int, stop: StopFlag = NEVER, world: World = ALONE
) -> EvaluationRecord:
    """Evaluates a student on the stage's val_set, shows the main numbers above the progress bar; raises as `detect`.

    Leaves the student in eval mode.
    """
    assert stage.val_set is not None
    started, data, record = time.perf_counter(), stage.settings.data, None
    student.module.eval()
    boxes, masks = detect(
        student, stage.val_set, batch_size=data.batch_size, num_workers=data.workers, stop=stop, world=world
    )
    if world.is_main:
        evaluated = evaluate_detections(
            stage.val_set.coco, boxes, masks if student.has_masks else None, backend=stage.settings.evaluate.backend
        )
        metrics = metrics_by_name(evaluated)
        shown = [f'{name} {100 * value:.1f}' for name, value in metrics.items() if name.endswith(('/AP', '/AP50'))]
        found = 'no objects in the set' if metrics['box/AP'] < 0 else ', '.join(shown)
        say(f'stage {stage.number} epoch {epoch}: {found}')
        class_ap = {kind: one.class_ap for kind, one in evaluated.items()}
        record = EvaluationRecord(stage.number, step, epoch, metrics, time.perf_counter() - started, class_ap)
    record = world.from_main(record)
    assert record is not None
    return record
