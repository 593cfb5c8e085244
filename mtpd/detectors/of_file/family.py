"""Detectors and teachers from a user's own file, `file.py:callable`.

For a teacher the callable takes the checkpoint's path, or None. It returns a torch module with `features(images)`,
whose attributes tell how images become its inputs (see `mtpd.detectors.input_options`), or a `Detector`.

For a student it takes `num_classes=N` and, as further keywords, the entries of `model` in the stage file, and returns a
`Detector` that finds objects of that many classes.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtpd.detectors.backbones import load_backbone
from mtpd.detectors.checkpoint import load_checkpoint
from mtpd.detectors.detector import CHECKPOINT_OFFLINE, Definition, Detector
from mtpd.detectors.hook_points import HookChoice
from mtpd.detectors.input_options import InputOptions, require_only_scale
from mtpd.detectors.levels import levels_of
from mtpd.detectors.of_file.program import build_module, call_file
from mtpd.detectors.preprocessing import Preprocessing, moved, probe_size
from mtpd.detectors.record import RECORD_FILE, DetectorRecord, read_record, record_text
from mtpd.detectors.teacher_maps import guarded, tell_random_weights
from mtpd.detectors.teachers import Teacher, teacher_of_detector, teacher_of_module
from mtpd.errors import InputError
from mtpd.geometry import Geometry
from mtpd.system.files import canonical_json, sha256_bytes, sha256_file


@dataclass(frozen=True)
class FileDefinition(Definition):
    """See `Definition`."""

    name: str
    path: Path
    function: str
    changes: Mapping[str, Any]
    record: DetectorRecord | None = None  # of one that was trained

    @property
    def sha256(self) -> str:
        """Hash of the file, the callable and the changes."""
        return sha256_bytes(canonical_json([sha256_file(self.path), self.function, dict(self.changes)]))

    def preprocessing(
        self, geometry: Geometry | None = None, *, scale: tuple[int, int] | None = None
    ) -> tuple[Preprocessing, tuple[str, ...]]:
        """That of the detector which the callable returns."""
        if self.record is not None:
            own = self.record.preprocessing
        else:
            with torch.random.fork_rng():  # Asking for its input must not change what is drawn later.
                own = self._call(num_classes=1).preprocessing
        return moved(own, geometry, scale=scale, name=self.name)

    def build(
        self,
        preprocessing: Preprocessing,
        *,
        num_classes: int | None = None,
        loaded: Collection[str] = (),
        with_levels: bool = True,
    ) -> Detector:
        """What the callable returns, with that preprocessing."""
        if num_classes is None and self.record is not None:
            num_classes = len(self.record.classes)
        if num_classes is None:
            raise InputError(
                f'{self.name}: the number of its classes is not known; give the folder of the run that trained it'
            )
        found = replace(self._call(num_classes=num_classes), preprocessing=preprocessing)
        if not with_levels:
            return found
        found.module.eval()
        # With an error of its own for all that a user's program may do.
        levels = levels_of(guarded(self.name, found.maps), input_size=probe_size(preprocessing.geometry))
        found.module.train()
        return replace(found, levels=levels)

    def fetch_weights(self, *, offline: str = CHECKPOINT_OFFLINE) -> Path:
        """Nothing says where they are."""
        raise InputError(f'{self.name}: has no published weights; {offline}')

    def load_backbone(self, detector: Detector, choice: str) -> str:
        """From a file alone."""
        if choice == 'pretrained':
            raise InputError(
                f'init.backbone is pretrained, but {self.name} has no published weights; set init.backbone to '
                'none (random weights, or those that the callable loads), or to a file'
            )
        if not Path(choice).is_file():
            raise InputError(f'init.backbone: there is no file {choice}; give a local file, or none')
        state, prefix = load_checkpoint(Path(choice))[0], f'{detector.backbone}.'
        part = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        return load_backbone(detector, part or state, reference=choice)

    def description(
        self, detector: Detector, *, classes: Sequence[str], evaluated_on: tuple[Path, Path] | None
    ) -> tuple[str, str]:
        """`student.json`, which names the file."""
        return RECORD_FILE, record_text(
            f'{self.path.resolve()}:{self.function}',
            changes=dict(self.changes),
            classes=classes,
            preprocessing=detector.preprocessing,
            evaluated_on=evaluated_on,
            source_sha256=sha256_file(self.path),
        )

    def _call(self, *, num_classes: int) -> Detector:
        found = call_file(
            self.path,
            self.function,
            name=self.name,
            given=f'num_classes={num_classes}' + ''.join(f', {key}={value!r}' for key, value in self.changes.items()),
            num_classes=num_classes,
            **self.changes,
        )
        if not isinstance(found, Detector):
            raise InputError(
                f'{self.name} returned a {type(found).__name__}, expected a mtpd.detectors.Detector; see '
                'docs/families.md'
            )
        for what, kind in (('module', nn.Module), ('preprocessing', Preprocessing)):
            value = getattr(found, what)
            if not isinstance(value, kind):
                raise InputError(f'{self.name}: its {what} is a {type(value).__name__}, expected a {kind.__name__}')
        if not hasattr(found.module, found.backbone.partition('.')[0]):
            raise InputError(f'{self.name}: its module has no part named {found.backbone!r}; see docs/families.md')
        try:
            return replace(found, num_classes=num_classes)
        except TypeError as error:
            raise InputError(
                f'{self.name}: a {type(found).__name__} cannot be copied ({error}); make it a frozen dataclass without '
                'an __init__ of its own'
            ) from error


def define(reference: str, changes: Mapping[str, Any]) -> Definition:
    """The detector of `file.py:callable`; `changes` are given to the callable as keywords."""
    path, function = _split(reference)
    reserved = sorted({'checkpoint', 'num_classes'} & changes.keys())
    if reserved:
        raise InputError(f'model: {reserved[0]}: is given to {reference} by mtpd; remove it')
    return FileDefinition(reference, path, function, changes)


def read(folder: Path) -> Definition | None:
    """The student of the folder of a stage, by its `student.json`."""
    record = read_record(folder / RECORD_FILE)
    path, function = _split(record.detector)
    if not path.is_absolute() or not path.is_file():
        raise InputError(f'{folder / RECORD_FILE}: its detector {record.detector} is not there; restore that file')
    # It is a program, and will be run.
    if sha256_file(path) != record.source_sha256:
        raise InputError(
            f'{folder / RECORD_FILE}: {path} is not the file that the student was trained with (its sha256 differs); '
            'restore that file'
        )
    return FileDefinition(str(folder), path, function, record.model, record)


def load_teacher(
    reference: str,
    *,
    checkpoint: Path | None,
    options: InputOptions,
    device: torch.device,
    trust_checkpoint: bool,
    hook: HookChoice,
) -> Teacher:
    """See `mtpd.detectors.references.load_teacher`."""
    path, function = _split(reference)
    found = build_module(path, function, checkpoint=checkpoint, device=device)
    definition = sha256_bytes(canonical_json([sha256_file(path), function]))
    if isinstance(found, Detector):
        require_only_scale(options, reference, source='detector')
        preprocessing, _ = moved(found.preprocessing, None, scale=options.scale, name=reference)
        teacher = teacher_of_detector(
            replace(found, name=reference, preprocessing=preprocessing), definition_sha256=definition
        )
    else:
        teacher = teacher_of_module(reference, found, definition_sha256=definition, options=options, device=device)
    again = None
    with suppress(InputError):  # a function that works only once, in which nothing is wrong
        again = build_module(path, function, checkpoint=checkpoint, device=torch.device('cpu'), seed=1)
    if again is not None:
        tell_random_weights(teacher.module, getattr(again, 'module', again), name=reference, checkpoint=checkpoint)
    return teacher


def _split(reference: str) -> tuple[Path, str]:
    path, _, function = reference.rpartition(':')
    return Path(path), function
