"""The detector to evaluate: a run's student or a model by name, with its weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mtpd.data.coco import CocoSet
from mtpd.detectors.checkpoint import load_checkpoint, load_into
from mtpd.detectors.class_names import checkpoint_classes, config_classes, labels_to_categories, num_classes_of
from mtpd.detectors.config_input import read_preprocessing
from mtpd.detectors.detection import predicts_masks
from mtpd.detectors.models import build_detector, load_config
from mtpd.detectors.preprocessing import at_geometry
from mtpd.detectors.weights import fetch_weights
from mtpd.errors import InputError
from mtpd_train.run_folder import CONFIG_FILE, DIVERGED_FILE, RUN_FILE, STUDENT_FILE, stage_folder
from mtpd_train.student import Student
from mtpd_train.training.saving import BEST_FILE, epoch_file, kept_epochs

NONE_YET = 'no student yet: the first is saved after an epoch (save.keep) or an evaluation (best.pth)'
DIVERGED = 'no student: its losses diverged before the first save'
RESUME = 'wait for it, or resume the run with its mtpd-train command and --resume'
_STAGE_FOLDER = re.compile(r'stage(\d+)')


@dataclass(frozen=True)
class Detector:
    """A detector on disk."""

    name: str
    config: Any  # its mmengine Config
    checkpoint: Path
    val_set: tuple[Path, Path] | None = None  # image folder and annotation file of its training, if they are known

    @property
    def full_name(self) -> str:
        """Its name with its weights, for messages."""
        return self.name if self.checkpoint.is_relative_to(self.name) else f'{self.name} from {self.checkpoint}'


def model_by_name(reference: str, checkpoint: Path | None) -> Detector:
    """A model of the zoo or a config file, with weights of its own if `checkpoint` is None."""
    if '.py:' in reference:
        raise InputError(
            f'--model {reference}: only mmdet detectors can be evaluated; for the head of a file.py:callable, extract '
            'a cache and use mtpd-cache fidelity'
        )
    return Detector(reference, load_config(reference), checkpoint or fetch_weights(reference))


def student_of_run(folder: Path, checkpoint: Path | None = None) -> Detector:
    """The student in the folder of a run or of one of its stages, with other weights if these are given."""
    config_file, weights = folder / CONFIG_FILE, checkpoint or folder / STUDENT_FILE
    if checkpoint is None and not weights.is_file():
        raise without_student(folder)
    if not config_file.is_file():
        raise InputError(
            f'{folder}: has no {CONFIG_FILE}, the config of its student; give the folder of the stage of {weights}, '
            f'or --model CONFIG.py --checkpoint {weights}'
        )
    config = load_config(str(config_file))
    # The set that a student's config carries for mmdet's test tool.
    dataset = config.get('test_dataloader', {}).get('dataset', {})
    has_set = 'ann_file' in dataset
    val_set = (Path(dataset.data_prefix['img']), Path(dataset.ann_file)) if has_set else None
    return Detector(str(folder), config, weights, val_set)


def build_student(
    detector: Detector,
    device: torch.device,
    *,
    scale: tuple[int, int] | None = None,
    trust_checkpoint: bool = False,
) -> tuple[Student, Mapping[str, Any]]:
    """The detector with its weights, in eval mode, and the `meta` of its checkpoint; `scale` replaces its resize.

    With `trust_checkpoint` a checkpoint may hold more than tensors and plain values.
    """
    own = read_preprocessing(detector.config, scale=scale)
    model = build_detector(detector.config, init_weights=False)
    meta = load_into(model, detector.checkpoint, name=detector.full_name, allow_pickle=trust_checkpoint)
    student = Student(
        name=detector.full_name,
        model=model.to(device).eval().requires_grad_(False),
        preprocessing=at_geometry(own, own.geometry),
        levels=(),  # Only losses on maps ask for them.
        has_masks=predicts_masks(model),
    )
    return student, meta


def category_ids(detector: Detector, student: Student, meta: Mapping[str, Any], coco: CocoSet) -> list[int]:
    """The category id of each of the detector's labels: by name where names are known, else in the order of the ids.

    `student` and `meta` are from `build_student`. Refuses a detector that was trained on other classes.
    """
    in_file = checkpoint_classes(meta)
    in_config = config_classes(detector.config)
    if in_file is not None and in_config is not None and in_file != in_config:
        raise InputError(
            f'{detector.checkpoint}: was trained on {len(in_file)} classes ({in_file[0]}, ...), but its config has '
            f'{len(in_config)} ({in_config[0]}, ...); give the checkpoint of this config'
        )
    return labels_to_categories(
        [(one.id, one.name) for one in coco.categories],
        classes=in_file or in_config,
        num_classes=num_classes_of(student.model),
        name=detector.full_name,
    )


@dataclass(frozen=True)
class StageStudent:
    """A student that a stage has saved."""

    checkpoint: Path
    title: str = ''  # such as `best so far, epoch 3`; empty for the last one of a stage that has finished


def find_student(folder: Path) -> StageStudent | None:
    """The student in the folder of a stage: the last one, else the best so far, else the newest so far."""
    last, best = folder / STUDENT_FILE, folder / BEST_FILE
    if last.is_file():
        return StageStudent(last)
    if best.is_file():
        _, meta = load_checkpoint(best)
        return StageStudent(best, f'best so far, epoch {meta.get("epoch", "unknown")}')
    epoch = max(kept_epochs(folder), default=None)
    return None if epoch is None else StageStudent(epoch_file(folder, epoch), f'latest so far, epoch {epoch}')


def require_student(folder: Path) -> StageStudent:
    """As `find_student`; refuses a stage without any."""
    found = find_student(folder)
    if found is None:
        raise InputError(_why_none(folder))
    return found


def _why_none(folder: Path) -> str:
    """Why a stage has no student at all."""
    return DIVERGED if (folder / DIVERGED_FILE).is_file() else NONE_YET


def without_student(folder: Path) -> InputError:
    """What to do about a folder without a last student: that of a run, of a stage, or of neither."""
    if (folder / RUN_FILE).is_file():
        # The latest stage that has one, as the command line takes it.
        matches = (_STAGE_FOLDER.fullmatch(path.name) for path in folder.iterdir())
        for number in sorted((int(match[1]) for match in matches if match), reverse=True):
            stage = stage_folder(folder, number)
            found = find_student(stage)
            if found is not None:
                way = f'give a finished stage, such as {stage}'
                if found.title:
                    way = f'for the {found.title} of stage {number}, give {stage} --checkpoint {found.checkpoint}'
                return InputError(f'{folder}: has no {STUDENT_FILE}, the run has not finished; {way}')
        return _without_any_student(folder, stage_folder(folder, 1))
    whole = folder.resolve()
    if not (_STAGE_FOLDER.fullmatch(whole.name) and (whole.parent / RUN_FILE).is_file()):
        return InputError(
            f'{folder}: is neither a run nor a stage of a run (no {RUN_FILE}, no {STUDENT_FILE}); give the --out of '
            'mtpd-train, or --model and --checkpoint'
        )
    if not folder.is_dir():
        return InputError(f'{folder}: there is no such stage, or the run has not reached it; {RESUME}')
    found = find_student(folder)
    if found is None:
        return _without_any_student(folder, folder)
    return InputError(
        f'{folder}: has no {STUDENT_FILE}, the stage has not finished; for its {found.title}, add --checkpoint '
        f'{found.checkpoint}'
    )


def _without_any_student(folder: Path, stage: Path) -> InputError:
    is_hopeless = (stage / DIVERGED_FILE).is_file()
    way = 'train again in another --out, with a lower optim.lr or optim.grad_clip' if is_hopeless else RESUME
    return InputError(f'{folder}: has {_why_none(stage)}; {way}')
