"""mmdet's detectors by their names: of its zoo, an alias, or a config file."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mtpd.detectors.backbones import load_backbone
from mtpd.detectors.checkpoint import load_into
from mtpd.detectors.class_names import checkpoint_classes, class_list
from mtpd.detectors.detector import CHECKPOINT_OFFLINE, Definition, Detector
from mtpd.detectors.hook_points import HookChoice
from mtpd.detectors.ingredients import Ingredient
from mtpd.detectors.input_options import InputOptions, require_only_scale
from mtpd.detectors.of_mmdet.config_input import read_normalisation, read_preprocessing
from mtpd.detectors.of_mmdet.config_output import export_config
from mtpd.detectors.of_mmdet.detector import MmdetDetector, num_classes_of, predicts_masks
from mtpd.detectors.of_mmdet.features import probe_levels, teacher_hook_point
from mtpd.detectors.of_mmdet.model_config import backbone_reference, definition_sha256
from mtpd.detectors.of_mmdet.models import build_detector, load_config
from mtpd.detectors.of_mmdet.recipe import recipe_ingredients
from mtpd.detectors.of_mmdet.trainable import require_trainable, unfreeze
from mtpd.detectors.of_mmdet.weights import backbone_weights, fetch_weights
from mtpd.detectors.preprocessing import Preprocessing, at_geometry, probe_size
from mtpd.detectors.teachers import Teacher, teacher_of_detector
from mtpd.errors import InputError
from mtpd.geometry import Geometry

# The file of a run's folder that has the config of its student.
CONFIG_FILE = 'student_config.py'


@dataclass(frozen=True)
class MmdetDefinition(Definition):
    """See `Definition`."""

    name: str
    config: Any  # its mmengine Config

    def states_num_classes(self) -> bool:
        """Its config does."""
        return True

    @property
    def sha256(self) -> str:
        """Hash of `model` in the config."""
        return definition_sha256(self.config)

    def preprocessing(
        self, geometry: Geometry | None = None, *, scale: tuple[int, int] | None = None
    ) -> tuple[Preprocessing, tuple[str, ...]]:
        """From the config's test pipeline and data preprocessor."""
        if geometry is None:
            own = read_preprocessing(self.config, scale=scale)
            return at_geometry(own, own.geometry), ()
        normalisation, notes = read_normalisation(self.config, geometry=geometry)
        return at_geometry(Preprocessing(geometry, normalisation), geometry), notes

    def build(
        self,
        preprocessing: Preprocessing,
        *,
        num_classes: int | None = None,
        loaded: Collection[str] = (),
        with_levels: bool = True,
    ) -> Detector:
        """From `model` in the config; initialised for training only, where levels are asked for."""
        model = build_detector(self.config, num_classes=num_classes, init_weights=with_levels)
        levels = probe_levels(model, input_size=probe_size(preprocessing.geometry)) if with_levels else ()
        return MmdetDetector(
            self.name, model, preprocessing, levels, num_classes_of(model), has_masks=predicts_masks(model)
        )

    def fetch_weights(self, *, offline: str = CHECKPOINT_OFFLINE) -> Path:
        """Those of the zoo."""
        return fetch_weights(self.name, offline=offline)

    def load_backbone(self, detector: Detector, choice: str) -> str:
        """What the config names, or a file or address."""
        reference = backbone_reference(self.config.model) if choice == 'pretrained' else choice
        if reference is None:
            raise InputError(
                "init.backbone is pretrained, but the student's config has no pretrained weights; "
                'set it to none or to a file'
            )
        return load_backbone(detector, backbone_weights(reference), reference=reference)

    def description(
        self, detector: Detector, *, classes: Sequence[str], evaluated_on: tuple[Path, Path] | None
    ) -> tuple[str, str]:
        """A config that mmdet's own tools take."""
        text = export_config(
            self.config,
            preprocessing=detector.preprocessing,
            classes=classes,
            has_masks=detector.has_masks,
            evaluated_on=evaluated_on,
        )
        return CONFIG_FILE, text

    def require_trainable(self) -> None:
        """By its parts."""
        require_trainable(self.config)

    def unfreeze(self, *, loaded: Collection[str], kept: Collection[str]) -> Mapping[str, Any]:
        """Changes `model` in the config."""
        return unfreeze(self.config.model, loaded=loaded, kept=kept)

    def recipe(self) -> Sequence[Ingredient]:
        """What the config asks for."""
        return recipe_ingredients(self.config)

    def classes(self) -> tuple[str, ...] | None:
        """The classes that its test set names; None where it leaves them to mmdet's own data set."""
        dataset = (self.config.get('test_dataloader') or {}).get('dataset') or {}
        while 'metainfo' not in dataset and isinstance(dataset.get('dataset'), dict):
            dataset = dataset['dataset']
        metainfo = dataset.get('metainfo') or self.config.get('metainfo') or {}
        return class_list(metainfo.get('classes')) if isinstance(metainfo, dict) else None

    def evaluated_on(self) -> tuple[Path, Path] | None:
        """The set that a student's config carries for mmdet's test tool."""
        dataset = self.config.get('test_dataloader', {}).get('dataset', {})
        return (Path(dataset.data_prefix['img']), Path(dataset.ann_file)) if 'ann_file' in dataset else None


def define(reference: str, changes: Mapping[str, Any]) -> MmdetDefinition:
    """A detector of the zoo, an alias, or a config; `changes` replace entries of its `model`, by dotted key."""
    config = load_config(reference)
    try:
        config.merge_from_dict({'model': dict(changes)})
    except (TypeError, KeyError, AssertionError) as error:
        raise InputError(f'model: its changes do not fit the config {reference}: {error}') from error
    return MmdetDefinition(reference, config)


def read(folder: Path) -> Definition | None:
    """The student of the folder of a stage, by its config."""
    path = folder / CONFIG_FILE
    return MmdetDefinition(str(folder), load_config(str(path))) if path.is_file() else None


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
    require_only_scale(options, reference, source='config')
    definition = MmdetDefinition(reference, load_config(reference))
    preprocessing = read_preprocessing(definition.config, scale=options.scale)
    weights = checkpoint or fetch_weights(reference)
    module = build_detector(definition.config, init_weights=False)
    name = f'teacher {reference} from {weights}'
    meta = load_into(module, weights, name=name, allow_pickle=trust_checkpoint)
    module = module.to(device).eval().requires_grad_(False)
    return teacher_of_detector(
        MmdetDetector(reference, module, preprocessing, (), num_classes_of(module)),
        definition_sha256=definition.sha256,
        hook_point=teacher_hook_point(module, hook, name=reference),
        classes=checkpoint_classes(meta) or definition.classes(),
    )
