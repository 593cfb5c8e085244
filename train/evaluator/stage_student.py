"""Which student of a stage is there: its last one or, before that, the best or else the newest that it keeps."""

import re
from dataclasses import dataclass
from pathlib import Path

from mtpd.detectors.checkpoint import checkpoint_meta
from mtpd.errors import InputError
from mtpd_train.run_folder import DIVERGED_FILE, RUN_FILE, STUDENT_FILE, stage_folder
from mtpd_train.training.saving import BEST_FILE, epoch_file, last_epoch

NONE_YET = 'no student yet: the first is saved after an epoch (save.keep) or an evaluation (best.pth)'
DIVERGED = 'no student: its losses diverged before the first save'
GO_ON = 'wait for it, or resume the run with its mtpd-train command and --resume'
_STAGE_FOLDER = re.compile(r'stage\d+')


@dataclass(frozen=True)
class StageStudent:
    """A student that a stage has left.

    Attributes:
        checkpoint: its file.
        title: which one it is, such as `best so far, epoch 3`; empty for the last one of a stage that has finished.
    """

    checkpoint: Path
    title: str = ''


def find_student(folder: Path) -> StageStudent | None:
    """The student in the folder of a stage: the last one, else the best so far, else the newest so far.

    Raises:
        InputError: the best one is damaged.
    """
    last, best = folder / STUDENT_FILE, folder / BEST_FILE
    if last.is_file():
        return StageStudent(last)
    if best.is_file():
        return StageStudent(best, f'best so far, epoch {checkpoint_meta(best).get("epoch", "unknown")}')
    epoch = last_epoch(folder)
    return None if epoch is None else StageStudent(epoch_file(folder, epoch), f'latest so far, epoch {epoch}')


def why_none(folder: Path) -> str:
    """Why a stage has no student at all."""
    return DIVERGED if (folder / DIVERGED_FILE).is_file() else NONE_YET


def without_student(folder: Path) -> InputError:
    """What to do about a folder without a last student: that of a run, of a stage, or of neither."""
    if (folder / RUN_FILE).is_file():
        return _without_student_of_run(folder)
    whole = folder.resolve()
    if not (_STAGE_FOLDER.fullmatch(whole.name) and (whole.parent / RUN_FILE).is_file()):
        return InputError(
            f'{folder}: is neither a run nor a stage of a run (no {RUN_FILE}, no {STUDENT_FILE}); give the --out of '
            'mtpd-train, or --model and --checkpoint'
        )
    if not folder.is_dir():
        return InputError(f'{folder}: there is no such stage, or the run has not reached it; {GO_ON}')
    found = find_student(folder)
    if found is None:
        return InputError(f'{folder}: has {why_none(folder)}; {_how_to_get_one(folder)}')
    return InputError(
        f'{folder}: has no {STUDENT_FILE}, the stage has not finished; for its {found.title}, add --checkpoint '
        f'{found.checkpoint}'
    )


def _without_student_of_run(folder: Path) -> InputError:
    """Names the student of the latest stage that has one, as the command line takes it."""
    numbers = [int(path.name[len('stage') :]) for path in folder.iterdir() if _STAGE_FOLDER.fullmatch(path.name)]
    for number in sorted(numbers, reverse=True):
        stage = stage_folder(folder, number)
        found = find_student(stage)
        if found is not None:
            way = f'give a finished stage, such as {stage}'
            if found.title:
                way = f'for the {found.title} of stage {number}, give {stage} --checkpoint {found.checkpoint}'
            return InputError(f'{folder}: has no {STUDENT_FILE}, the run has not finished; {way}')
    first = stage_folder(folder, 1)
    return InputError(f'{folder}: has {why_none(first)}; {_how_to_get_one(first)}')


def _how_to_get_one(stage: Path) -> str:
    is_hopeless = (stage / DIVERGED_FILE).is_file()
    return 'train again in another --out, with a lower optim.lr or optim.grad_clip' if is_hopeless else GO_ON
