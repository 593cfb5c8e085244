"""Detectors of transformers by their repositories or folders."""

import importlib.util
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from mtpd.detectors.backbones import load_backbone
from mtpd.detectors.checkpoint import load_checkpoint, load_into
from mtpd.detectors.class_names import checkpoint_classes
from mtpd.detectors.detector import BACKBONE, CHECKPOINT_OFFLINE, Definition, Detector
from mtpd.detectors.downloads import BACKBONE_OFFLINE
from mtpd.detectors.hook_points import HookChoice
from mtpd.detectors.ingredients import Ingredient
from mtpd.detectors.input_options import InputOptions, require_only_scale
from mtpd.detectors.of_hf.detector import HfDetector, build_network
from mtpd.detectors.of_hf.model_config import (
    FROZEN_NORMS,
    changed_config,
    class_names,
    network_sha256,
    plain,
    read_config,
    with_classes,
)
from mtpd.detectors.of_hf.place import CONFIG_FILE, PREPROCESSOR_FILE, Place
from mtpd.detectors.of_hf.preprocessor import read_preprocessor
from mtpd.detectors.of_hf.recipe import recipe_of
from mtpd.detectors.of_hf.weights import fetch_weights
from mtpd.detectors.preprocessing import Preprocessing, moved
from mtpd.detectors.record import RECORD_FILE, DetectorRecord, read_record, record_text
from mtpd.detectors.teachers import Teacher, teacher_of_detector
from mtpd.errors import InputError, UnavailableError
from mtpd.geometry import Geometry

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HfDefinition(Definition):
    """See `Definition`."""

    name: str
    place: Place
    config: Any  # of transformers
    changes: Mapping[str, Any] = field(default_factory=dict)
    record: DetectorRecord | None = None  # of one that was trained

    @property
    def sha256(self) -> str:
        """Hash of the settings of the network."""
        return network_sha256(self.config)

    def preprocessing(
        self, geometry: Geometry | None = None, *, scale: tuple[int, int] | None = None
    ) -> tuple[Preprocessing, tuple[str, ...]]:
        """From the preprocessor_config.json, or of a trained one from its record."""
        if self.record is not None:
            own = self.record.preprocessing
        else:
            values = self.place.values(PREPROCESSOR_FILE)
            if values is None:
                logger.warning(
                    'note: %s has no %s, so its inputs are those of the family: 640 x 640 px, values from 0 to 1; '
                    'give the size that it was trained at with --scale, or for the student of a run use mtpd-eval RUN',
                    self.name,
                    PREPROCESSOR_FILE,
                )
            own = read_preprocessor(values, name=f'{self.place.reference}: {PREPROCESSOR_FILE}')
        return moved(own, geometry, scale=scale, name=self.name)

    def build(
        self,
        preprocessing: Preprocessing,
        *,
        num_classes: int | None = None,
        loaded: Collection[str] = (),
        with_levels: bool = True,
    ) -> Detector:
        """From its config, with random weights; what is frozen there is up to `unfreeze`."""
        number = self.config.num_labels if num_classes is None else num_classes
        module = build_network(with_classes(self.config, number), name=self.name)
        detector = HfDetector(self.name, module, preprocessing, num_classes=number)
        if not with_levels:
            return detector
        return replace(detector, levels=detector.probed_levels())

    def fetch_weights(self, *, offline: str = CHECKPOINT_OFFLINE) -> Path:
        """Those of its folder or repository."""
        return fetch_weights(self.place, self.config, offline=offline)

    def load_backbone(self, detector: Detector, choice: str) -> str:
        """That of its own published weights, or of a file with the whole network or the backbone alone."""
        reference, path = choice, Path(choice)
        if choice == 'pretrained':
            reference, path = self.place.reference, self.fetch_weights(offline=BACKBONE_OFFLINE)
        elif not path.is_file():
            raise InputError(f'init.backbone: there is no file {path}; give a local file, or none')
        state, _ = load_checkpoint(path, network=detector.module)
        prefix = f'{detector.backbone}.'
        part = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if not part:  # The backbone as a network of its own is the one module of the part with that name.
            part = {name if name.startswith('model.') else f'model.{name}': value for name, value in state.items()}
        return load_backbone(detector, part, reference=reference)

    def description(
        self, detector: Detector, *, classes: Sequence[str], evaluated_on: tuple[Path, Path] | None
    ) -> tuple[str, str]:
        """`student.json`, with the whole config: neither folder nor repository is needed again."""
        return RECORD_FILE, record_text(
            self.place.absolute,
            changes=dict(self.changes),
            classes=classes,
            preprocessing=detector.preprocessing,
            evaluated_on=evaluated_on,
            config=plain(with_classes(self.config, classes)),
        )

    def require_trainable(self) -> None:
        """Its criterion matches predictions with objects by scipy."""
        if importlib.util.find_spec('scipy') is None:
            raise UnavailableError(f'{self.name}: its losses need scipy, which is not installed: pip install scipy')

    def unfreeze(self, *, loaded: Collection[str], kept: Collection[str]) -> Mapping[str, Any]:
        """Norms of a backbone with random weights learn, since their statistics are random too."""
        if BACKBONE in loaded or FROZEN_NORMS in kept or not self.config.freeze_backbone_batch_norms:
            return {}
        self.config.freeze_backbone_batch_norms = False
        return {FROZEN_NORMS: False}

    def recipe(self) -> Sequence[Ingredient]:
        """That of its authors."""
        return recipe_of(self.config)

    def states_num_classes(self) -> bool:
        """Its config does."""
        return True

    def classes(self) -> tuple[str, ...] | None:
        """The names of its labels."""
        return super().classes() or class_names(self.config)


def define(reference: str, changes: Mapping[str, Any]) -> HfDefinition:
    """The detector of `hf:REPO_OR_FOLDER`; `changes` replace settings of its config by name."""
    place = Place(reference)
    place.require(CONFIG_FILE)
    config = read_config(place.values(CONFIG_FILE) or {}, name=reference)
    return HfDefinition(reference, place, changed_config(config, changes, name=reference), changes)


def read(folder: Path) -> Definition | None:
    """The student of the folder of a stage, by its `student.json`."""
    path = folder / RECORD_FILE
    record = read_record(path)
    if record.config is None:
        raise InputError(f'{path}: has no config, of which {record.detector} is built; train it again')
    config = read_config(record.config, name=str(path))
    if config.num_labels != len(record.classes):
        raise InputError(
            f'{path}: has {len(record.classes)} classes, but a config of {config.num_labels}; copy it again'
        )
    return HfDefinition(str(folder), Place(record.detector), config, record.model, record)


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
    require_only_scale(options, reference, source=PREPROCESSOR_FILE)
    definition = define(reference, {})
    preprocessing, _ = definition.preprocessing(scale=options.scale)
    module = build_network(with_classes(definition.config, definition.config.num_labels), name=reference)
    weights = checkpoint or definition.fetch_weights()
    meta = load_into(module, weights, name=f'teacher {reference} from {weights}', allow_pickle=trust_checkpoint)
    module = module.to(device).eval().requires_grad_(False)
    detector = HfDetector(reference, module, preprocessing, num_classes=definition.config.num_labels)
    return teacher_of_detector(
        detector,
        definition_sha256=definition.sha256,
        classes=checkpoint_classes(meta) or definition.classes(),
        license=definition.place.license(),
    )
