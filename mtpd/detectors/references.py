"""From the name of a detector to its family.

`NAME:REST` belongs to the family in the folder `mtpd/detectors/of_NAME`, `file.py:callable` to `of_file`, and every
other name (of mmdet's zoo, or a config file) to `of_mmdet`. A family is a module `family` with any of these functions:

    define(reference, changes) -> Definition                  detectors that can be students and be evaluated
    read(folder) -> Definition                                one of these again, from the file of its `description`
    load_teacher(reference, *, checkpoint, options, device, trust_checkpoint, hook) -> Teacher

A folder with such a module is all that a new family needs.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import mtpd.detectors
from mtpd.detectors.detector import Definition
from mtpd.detectors.hook_points import HookChoice
from mtpd.detectors.input_options import InputOptions
from mtpd.detectors.record import RECORD_FILE, read_record
from mtpd.detectors.teachers import Teacher
from mtpd.errors import InputError

MMDET, FILE, TIMM = 'mmdet', 'file', 'timm'
FOLDER = 'of_'


def family_name(reference: str) -> str:
    """The family of a reference. InputError for a prefix that none has."""
    prefix, colon, _ = reference.partition(':')
    if not colon or reference.endswith('.py'):
        return MMDET
    if reference.rpartition(':')[0].endswith('.py'):
        return FILE
    names = [one.name.removeprefix(FOLDER) for one in pkgutil.iter_modules(mtpd.detectors.__path__) if one.ispkg]
    prefixes = sorted(set(names) - {MMDET, FILE})
    if prefix not in prefixes:
        raise InputError(
            f'{reference}: {prefix}: is not a family of detectors; the families are {", ".join(prefixes)} '
            '(as torchvision:NAME), file.py:callable, and mmdet, whose names have no prefix'
        )
    return prefix


def define_detector(reference: str, changes: Mapping[str, Any] | None = None) -> Definition:
    """A detector by its name, with a user's `changes`; InputError for one that cannot be a student."""
    definition: Definition = _function(reference, 'define', 'detectors that can be students')(reference, changes or {})
    return definition


def read_definition(folder: Path) -> Definition | None:
    """The detector that a stage wrote into its folder, as its definition; None where there is none."""
    family = MMDET
    if (folder / RECORD_FILE).is_file():
        family = family_name(read_record(folder / RECORD_FILE).detector)
    read = getattr(_module(family), 'read', None)
    if read is None or (family == MMDET and (folder / RECORD_FILE).is_file()):
        raise InputError(f'{folder / RECORD_FILE}: its detector is of {family}, whose students have no such file')
    definition: Definition | None = read(folder)
    return definition


def load_teacher(
    reference: str,
    *,
    checkpoint: Path | None,
    options: InputOptions,
    device: torch.device,
    trust_checkpoint: bool = False,
    hook: HookChoice = 'auto',
) -> Teacher:
    """Builds a teacher from its name.

    Args:
        reference: zoo name, alias, config path, `file.py:callable`, or `FAMILY:NAME` such as `timm:NAME`.
        checkpoint: a local weights file; None: published weights, which are downloaded once.
        options: the user's settings of the input.
        device: where the teacher runs.
        trust_checkpoint: unpickle a checkpoint that holds more than tensors and plain values.
        hook: where its maps are taken.

    Raises:
        InputError: the name, file, checkpoint or options do not fit.
        UnavailableError: the weights cannot be fetched, or a package is missing.
    """
    family = family_name(reference)
    if family != MMDET:
        if trust_checkpoint and family in (FILE, TIMM):
            raise InputError(f'--trust-checkpoint: {reference} loads its own checkpoint; remove the option')
        if hook == 'before-norm':
            raise InputError(f'hook before-norm: {reference} chooses its own maps; remove the option')
    load = _function(reference, 'load_teacher', 'teachers')
    teacher: Teacher = load(
        reference, checkpoint=checkpoint, options=options, device=device, trust_checkpoint=trust_checkpoint, hook=hook
    )
    return teacher


def _module(family: str) -> Any:
    return importlib.import_module(f'mtpd.detectors.{FOLDER}{family}.family')


def _function(reference: str, name: str, what: str) -> Any:
    family = family_name(reference)
    found = getattr(_module(family), name, None)
    if found is None:
        raise InputError(f'{reference}: {family} has no {what}; choose one of another family')
    return found
