"""What is to be evaluated, and on what: from a run's folder or from a model's name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtpd.data.coco import coco_paths
from mtpd.detectors.models import load_config
from mtpd.detectors.weights import fetch_weights
from mtpd.detectors.zoo import find_model
from mtpd.errors import InputError
from mtpd_train.evaluator.stage_student import without_student
from mtpd_train.run_folder import CONFIG_FILE, STUDENT_FILE


@dataclass(frozen=True)
class Files:
    """An annotated set.

    Attributes:
        images: the folder that `file_name` starts from.
        annotations: the COCO annotation file.
    """

    images: Path
    annotations: Path


@dataclass(frozen=True)
class Target:
    """A detector.

    Attributes:
        name: for people.
        config: its mmengine Config.
        checkpoint: its weights.
        files: what it was evaluated on when it was trained, if that is known.
    """

    name: str
    config: Any
    checkpoint: Path
    files: Files | None = None


def find_target(options: Mapping[str, Any]) -> Target:
    """The detector that the command line names.

    Raises:
        InputError: there is no such run or model, or it has no weights.
        UnavailableError: the weights of a zoo model cannot be fetched.
    """
    if options['run'] is not None:
        return target_of_run(options['run'], checkpoint=options['checkpoint'])
    reference = options['model']
    if '.py:' in reference:
        raise InputError(
            f'--model {reference}: only mmdet detectors can be evaluated; for the head of a '
            'file.py:callable, extract a '
            'cache and use mtpd-cache fidelity'
        )
    config, checkpoint = load_config(reference), options['checkpoint']
    if checkpoint is None:
        entry = find_model(reference)
        if entry is None:
            raise InputError(f'--model {reference}: a config file needs its weights: add --checkpoint FILE')
        checkpoint = fetch_weights(entry)
    return Target(reference, config, checkpoint)


def find_files(options: Mapping[str, Any], target: Target) -> Files:
    """The set that the command line names, or else the one of the run.

    Raises:
        InputError: neither names one.
    """
    if options['images'] is not None:
        return Files(options['images'], options['annotations'])
    if options['coco'] is not None:
        return Files(*coco_paths(options['coco'], options['split']))
    if target.files is None:
        raise InputError(
            f'{target.name}: does not name a validation set; add --coco DIR, or --images DIR --annotations FILE'
        )
    return target.files


def target_of_run(folder: Path, *, checkpoint: Path | None = None) -> Target:
    """The student in the folder of a run or of one of its stages, with other weights if these are given.

    Raises:
        InputError: there is none.
    """
    config_file, weights = folder / CONFIG_FILE, checkpoint or folder / STUDENT_FILE
    if checkpoint is None and not weights.is_file():
        raise without_student(folder)
    if not config_file.is_file():
        raise InputError(
            f'{folder}: has no {CONFIG_FILE}, the config of its student; give the folder of the stage of {weights}, '
            f'or --model CONFIG.py --checkpoint {weights}'
        )
    config = load_config(str(config_file))
    return Target(str(folder), config, weights, _files_of(config))


def _files_of(config: Any) -> Files | None:
    """The validation set that a student's config carries for mmdet's test tool."""
    dataset = config.get('test_dataloader', {}).get('dataset', {})
    if 'ann_file' not in dataset:
        return None
    return Files(Path(dataset.data_prefix['img']), Path(dataset.ann_file))
