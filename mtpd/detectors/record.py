"""`student.json`: what a detector of a library without config files is built from again, beside its weights."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mtpd.detectors.preprocessing import Normalisation, Preprocessing
from mtpd.detectors.samples import INTERPOLATIONS
from mtpd.errors import InputError
from mtpd.geometry import MAX_SIDE, Geometry

RECORD_FILE = 'student.json'


class DetectorRecord(BaseModel):
    """The content of `student.json`.

    Attributes:
        detector: its name, such as `torchvision:retinanet_resnet50_fpn`.
        model: what the user changed of it, by name.
        classes: what its labels mean, in their order.
        geometry, normalisation: of its inputs.
        evaluated_on: image folder and annotation file of its training; None: it was not evaluated.
        config: the whole config of a library that has one.
        source_sha256: hash of the file that `detector` names, if it names one.
    """

    model_config = ConfigDict(extra='forbid', frozen=True)

    detector: str
    model: dict[str, Any] = {}
    classes: tuple[str, ...]
    geometry: Geometry
    normalisation: Normalisation
    evaluated_on: tuple[Path, Path] | None = None
    config: dict[str, Any] | None = None
    source_sha256: str | None = None

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become its inputs."""
        return Preprocessing(self.geometry, self.normalisation)


def record_text(
    name: str,
    *,
    changes: dict[str, Any],
    classes: Sequence[str],
    preprocessing: Preprocessing,
    evaluated_on: tuple[Path, Path] | None,
    config: dict[str, Any] | None = None,
    source_sha256: str | None = None,
) -> str:
    """The text of `student.json`."""
    content = {
        'detector': name,
        'model': changes,
        'classes': list(classes),
        'geometry': preprocessing.geometry.to_dict(),
        'normalisation': asdict(preprocessing.normalisation),
        'evaluated_on': None if evaluated_on is None else [str(path.resolve()) for path in evaluated_on],
        'config': config,
        'source_sha256': source_sha256,
    }
    return json.dumps(content, indent=1) + '\n'


def read_record(path: Path) -> DetectorRecord:
    """A `student.json`, checked."""
    try:
        record = DetectorRecord.model_validate_json(path.read_bytes())
        require_plain(record.preprocessing, record.classes)
        return record
    except (ValidationError, InputError) as error:
        reason = error
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = InputError(f'{".".join(map(str, first["loc"])) or "its content"}: {first["msg"]}')
        raise InputError(f'{path}: is not a description of a detector: {reason}') from None


def require_plain(preprocessing: Preprocessing, classes: Sequence[str]) -> None:
    """Refuses numbers that no run writes, and a detector without classes."""
    geometry, normalisation = preprocessing.geometry, preprocessing.normalisation
    sides = (*geometry.scale, *(geometry.pad_size or ()), geometry.pad_divisor)
    if not all(1 <= side <= MAX_SIDE for side in sides):
        raise InputError(f'geometry: its sides are {sides}, expected 1 to {MAX_SIDE} px')
    if geometry.interpolation not in INTERPOLATIONS.get(geometry.backend, ()):
        raise InputError(f'geometry: there is no {geometry.interpolation!r:.40} by {geometry.backend!r:.40}')
    values = (*normalisation.mean, *normalisation.std, *normalisation.padding)
    if not all(map(math.isfinite, values)) or min(normalisation.std) <= 0:
        raise InputError('normalisation: expected finite numbers, and std above 0')
    if not classes:
        raise InputError('classes: there are none')
