"""The detector to evaluate: a run's student or a model by name, with its weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mtpd.data.coco import CocoSet
from mtpd.detectors.checkpoint import load_checkpoint, load_into
from mtpd.detectors.class_names import checkpoint_classes, labels_to_categories
from mtpd.detectors.detector import Definition, Detector
from mtpd.detectors.preprocessing import Preprocessing
from mtpd.detectors.references import define_detector, read_definition
from mtpd.errors import InputError
from mtpd_train.run_folder import DIVERGED_FILE, RUN_FILE, STUDENT_FILE, stage_folder
from mtpd_train.training.saving import BEST_FILE, epoch_file, kept_epochs

RESUME = 'wait for it, or resume the run with its mtpd-train command and --resume'
# Why a stage has no student, and what to do.
NONE_YET = 'no student yet: the first is saved after an epoch (save.keep) or an evaluation (best.pth)', RESUME
DIVERGED = (
    'no student: its losses diverged before the first save',
    'train again in another --out, with a lower optim.lr or optim.grad_clip',
)
_STAGE_FOLDER = re.compile(r'stage(\d+)')


@dataclass(frozen=True)
class SavedDetector:
    """A detector on disk."""

    definition: Definition
    checkpoint: Path
    val_set: tuple[Path, Path] | None = None  # image folder and annotation file of its training, if they are known

    @property
    def full_name(self) -> str:
        """Its name with its weights, for messages."""
        name = self.definition.name
        return name if self.checkpoint.is_relative_to(name) else f'{name} from {self.checkpoint}'


def model_by_name(reference: str, checkpoint: Path | None) -> SavedDetector:
    """A detector by its name, with published weights if `checkpoint` is None."""
    definition = define_detector(reference)
    return SavedDetector(definition, checkpoint or definition.fetch_weights())


def student_of_checkpoint(checkpoint: Path) -> SavedDetector:
    """The student in a file of a stage's folder, such as `best.pth`."""
    if not checkpoint.is_file():
        raise InputError(f'{checkpoint}: there is no such file or folder; give the folder of a run, or a checkpoint')
    return student_of_run(checkpoint.parent, checkpoint)


def student_of_run(folder: Path, checkpoint: Path | None = None) -> SavedDetector:
    """The student in the folder of a run or of one of its stages, with other weights if these are given."""
    weights = checkpoint or folder / STUDENT_FILE
    if checkpoint is None and not weights.is_file():
        raise without_student(folder)
    definition = read_definition(folder)
    if definition is None:
        raise InputError(
            f'{folder}: has no student_config.py or student.json, of which its student is built; give the folder of '
            f'the stage of {weights}, or --model NAME --checkpoint {weights}'
        )
    return SavedDetector(definition, weights, definition.evaluated_on())


def build_student(
    saved: SavedDetector,
    device: torch.device,
    *,
    preprocessing: Preprocessing | None = None,
    trust_checkpoint: bool = False,
    with_levels: bool = False,
) -> tuple[Detector, Mapping[str, Any]]:
    """The detector with its weights, in eval mode, and the `meta` of its checkpoint.

    `preprocessing` of its inputs; None: its own. With `trust_checkpoint` a checkpoint may hold more than tensors and
    plain values.
    """
    if preprocessing is None:
        preprocessing, _ = saved.definition.preprocessing()
    num_classes = None
    if not saved.definition.states_num_classes():
        classes = checkpoint_classes(load_checkpoint(saved.checkpoint, allow_pickle=trust_checkpoint)[1])
        num_classes = None if classes is None else len(classes)
    detector = saved.definition.build(preprocessing, num_classes=num_classes, with_levels=with_levels)
    meta = load_into(detector.module, saved.checkpoint, name=saved.full_name, allow_pickle=trust_checkpoint)
    detector.weights_loaded(saved.checkpoint)
    detector.module.to(device).eval().requires_grad_(False)
    return detector, meta


def category_ids(saved: SavedDetector, detector: Detector, meta: Mapping[str, Any], coco: CocoSet) -> list[int]:
    """The category id of each of the detector's labels: by name where names are known, else in the order of the ids.

    `detector` and `meta` are from `build_student`. Refuses a detector that was trained on other classes.
    """
    in_file = checkpoint_classes(meta)
    defined = saved.definition.classes()
    # Others are built for the classes of the file.
    states_them = saved.definition.states_num_classes()
    if states_them and in_file is not None and defined is not None and in_file != defined:
        raise InputError(
            f'{saved.checkpoint}: was trained on {len(in_file)} classes ({in_file[0]}, ...), but its config has '
            f'{len(defined)} ({defined[0]}, ...); give the checkpoint of this config'
        )
    return labels_to_categories(
        [(one.id, one.name) for one in coco.categories],
        classes=in_file or defined,
        num_classes=detector.num_classes,
        name=saved.full_name,
    )


def find_student(folder: Path) -> tuple[Path, str] | None:
    """The student in the folder of a stage, the last one, else the best so far, else the newest so far, and its title.

    The title is such as `best so far, epoch 3`; empty for the last one of a stage that has finished.
    """
    last, best = folder / STUDENT_FILE, folder / BEST_FILE
    if last.is_file():
        return last, ''
    if best.is_file():
        _, meta = load_checkpoint(best)
        return best, f'best so far, epoch {meta.get("epoch", "unknown")}'
    epoch = max(kept_epochs(folder), default=None)
    return None if epoch is None else (epoch_file(folder, epoch), f'latest so far, epoch {epoch}')


def require_student(folder: Path) -> tuple[Path, str]:
    """As `find_student`; refuses a stage without any."""
    found = find_student(folder)
    if found is None:
        raise InputError(_why_none(folder)[0])
    return found


def _why_none(folder: Path) -> tuple[str, str]:
    """Why a stage has no student at all, and what to do."""
    return DIVERGED if (folder / DIVERGED_FILE).is_file() else NONE_YET


def without_student(folder: Path) -> InputError:
    """What to do about a folder without a last student: that of a run, of a stage, or of neither."""
    whole = folder.resolve()
    if (folder / RUN_FILE).is_file():
        # The latest stage that has one, as the command line takes it.
        matches = (_STAGE_FOLDER.fullmatch(path.name) for path in folder.iterdir())
        for number in sorted((int(match[1]) for match in matches if match), reverse=True):
            stage = stage_folder(folder, number)
            if found := find_student(stage):
                way = f'give a finished stage, such as {stage}'
                if found[1]:
                    way = f'for the {found[1]} of stage {number}, give {stage} --checkpoint {found[0]}'
                return InputError(f'{folder}: has no {STUDENT_FILE}, the run has not finished; {way}')
        why, way = _why_none(stage_folder(folder, 1))
    elif not (_STAGE_FOLDER.fullmatch(whole.name) and (whole.parent / RUN_FILE).is_file()):
        return InputError(
            f'{folder}: is neither a run nor a stage of a run (no {RUN_FILE}, no {STUDENT_FILE}); give the --out of '
            'mtpd-train, or --model and --checkpoint'
        )
    elif not folder.is_dir():
        return InputError(f'{folder}: there is no such stage, or the run has not reached it; {RESUME}')
    elif found := find_student(folder):
        way = f'for its {found[1]}, add --checkpoint {found[0]}'
        return InputError(f'{folder}: has no {STUDENT_FILE}, the stage has not finished; {way}')
    else:
        why, way = _why_none(folder)
    return InputError(f'{folder}: has {why}; {way}')
