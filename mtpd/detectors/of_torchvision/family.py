"""torchvision's detectors by their names: `torchvision:NAME`, such as `torchvision:fasterrcnn_resnet50_fpn_v2`."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtpd.detectors.checkpoint import load_checkpoint, load_into, require_kinds
from mtpd.detectors.checkpoint_file import read_checkpoint
from mtpd.detectors.class_names import checkpoint_classes
from mtpd.detectors.detector import BACKBONE, CHECKPOINT_OFFLINE, Definition, Detector
from mtpd.detectors.downloads import BACKBONE_OFFLINE, download, weights_folder
from mtpd.detectors.hook_points import HookChoice
from mtpd.detectors.ingredients import Ingredient
from mtpd.detectors.input_options import InputOptions, require_only_scale
from mtpd.detectors.levels import levels_of
from mtpd.detectors.of_torchvision import networks
from mtpd.detectors.of_torchvision.detector import TorchvisionDetector, detector_class
from mtpd.detectors.of_torchvision.networks import PREFIX
from mtpd.detectors.of_torchvision.ready_inputs import ReadyTransform
from mtpd.detectors.of_torchvision.recipe import recipe_ingredients
from mtpd.detectors.preprocessing import Normalisation, Preprocessing, moved, probe_size, rgb
from mtpd.detectors.record import RECORD_FILE, DetectorRecord, read_record, record_text
from mtpd.detectors.teachers import Teacher, teacher_of_detector
from mtpd.errors import InputError
from mtpd.geometry import Geometry, Level
from mtpd.system.files import canonical_json, sha256_bytes

# What classifiers have behind their backbone.
_CLASSIFIERS = ('fc.', 'classifier.')
_COUNTER = 'num_batches_tracked'


@dataclass(frozen=True)
class TorchvisionDefinition(Definition):
    """See `Definition`."""

    name: str
    network: str  # the name of torchvision's function
    changes: Mapping[str, Any]
    record: DetectorRecord | None = None  # of one that was trained

    @property
    def sha256(self) -> str:
        """Hash of the name and the changes."""
        return sha256_bytes(canonical_json([PREFIX + self.network, dict(self.changes)]))

    def preprocessing(
        self, geometry: Geometry | None = None, *, scale: tuple[int, int] | None = None
    ) -> tuple[Preprocessing, tuple[str, ...]]:
        """That of its transform; its padding is zero after the normalisation in any geometry."""
        if self.record is not None:
            own = self.record.preprocessing
        else:
            own = _own_preprocessing(networks.empty_network(self.network, self.changes).transform)
        return moved(own, geometry, scale=scale, name=self.name)

    def build(
        self,
        preprocessing: Preprocessing,
        *,
        num_classes: int | None = None,
        loaded: Collection[str] = (),
        with_levels: bool = True,
    ) -> TorchvisionDetector:
        """As torchvision builds it for a pretrained backbone where that is `loaded`, or without `num_classes`."""
        if num_classes is None and self.record is not None:
            num_classes = len(self.record.classes)
        as_published = num_classes is None
        model = networks.build_network(
            self.network,
            self.changes,
            num_outputs=None if num_classes is None else num_classes + 1,
            pretrained=as_published or BACKBONE in loaded,
        )
        model.transform = ReadyTransform()
        outputs = networks.published_outputs(self.network) if num_classes is None else range(1, num_classes + 1)
        detector = detector_class(self.network)(
            self.name,
            model,
            preprocessing,
            num_classes=len(outputs),
            has_masks=hasattr(model, 'roi_heads') and model.roi_heads.has_mask(),
            network=self.network,
            outputs=tuple(outputs),
        )
        if as_published:
            detector.set_published(True)
        return replace(detector, levels=_levels(detector)) if with_levels else detector

    def fetch_weights(self, *, offline: str = CHECKPOINT_OFFLINE) -> Path:
        """torchvision's own."""
        if self.record is not None:
            raise InputError(f'{self.name}: the student of a run has no published weights; {offline}')
        return _fetch(networks.published_weights(self.network), offline=offline)

    def load_backbone(self, detector: Detector, choice: str) -> str:
        """The weights of ImageNet that torchvision starts from, or a classifier's or a detector's file."""
        if choice != 'pretrained':
            if not Path(choice).is_file():
                raise InputError(f'init.backbone: there is no file {choice}; give a local file, or none')
            return self._load_backbone(detector, load_checkpoint(Path(choice))[0], reference=choice)
        if self.network == networks.SSDLITE and self.changes.get(networks.TAIL, True):
            raise InputError(
                f"init.backbone is pretrained, but {self.name} has half the channels of ImageNet's MobileNet in its "
                f'last layers; set it to none, or {networks.TAIL} of `model` to false, or use init.fine_tune'
            )
        weights = networks.backbone_weights(self.network)
        # Not `load_checkpoint`, which would tell of the numbers that are missing in the classifier of SSD's VGG.
        state = read_checkpoint(_fetch(weights, offline=BACKBONE_OFFLINE), allow_pickle=False)
        return self._load_backbone(detector, state, reference=str(weights))

    def _load_backbone(self, detector: Detector, state: Mapping[str, Tensor], *, reference: str) -> str:
        name = f'init.backbone: {reference}'
        own = detector.module.state_dict()
        names = networks.backbone_tensors(self.network, self.changes)
        is_detector = any(key.startswith(f'{detector.backbone}.') for key in state)
        sources = {key: key if is_detector else names[key] for key in names if not key.endswith(_COUNTER)}
        for key, source in sources.items():
            found = tuple(state[source].shape) if source in state else 'missing'
            if found != tuple(own[key].shape):
                raise InputError(
                    f'{name}: {source} is {found}, expected {tuple(own[key].shape)}; use weights of the same network, '
                    'or set init.backbone to none'
                )
        others = [key for key in state if key not in sources.values() and not key.endswith(_COUNTER)]
        others = [] if is_detector else [key for key in others if not key.startswith(_CLASSIFIERS)]
        if others:
            raise InputError(
                f'{name}: has {len(others)} tensors beyond the backbone of {self.name}, the first is {others[0]}; use '
                'weights of the same network, or set init.backbone to none'
            )
        fitting = {key: state[source] for key, source in sources.items()}
        require_kinds(fitting, own, name=name)
        detector.module.load_state_dict(fitting, strict=False)
        return f'backbone from {reference}, {len(fitting)} tensors'

    def description(
        self, detector: Detector, *, classes: Sequence[str], evaluated_on: tuple[Path, Path] | None
    ) -> tuple[str, str]:
        """`student.json`."""
        return RECORD_FILE, record_text(
            PREFIX + self.network,
            changes=dict(self.changes),
            classes=classes,
            preprocessing=detector.preprocessing,
            evaluated_on=evaluated_on,
        )

    def unfreeze(self, *, loaded: Collection[str], kept: Collection[str]) -> Mapping[str, Any]:
        """Nothing is frozen that starts at random; refuses a user's wish for it."""
        if networks.TRAINABLE in self.changes and BACKBONE not in loaded:
            raise InputError(
                f'model: {networks.TRAINABLE}: torchvision freezes layers of pretrained backbones alone, and this one '
                'starts at random; remove it, or set init.backbone'
            )
        return {}

    def recipe(self) -> Sequence[Ingredient]:
        """torchvision's reference training."""
        return recipe_ingredients(self.network)

    def classes(self) -> tuple[str, ...] | None:
        """Those that it was trained on, or COCO's of the published weights."""
        return super().classes() or networks.published_classes(self.network)


def define(reference: str, changes: Mapping[str, Any]) -> Definition:
    """The detector of `torchvision:NAME`; `changes` are given to torchvision's function as keywords."""
    return _definition(reference, changes, among=networks.STUDENTS)


def read(folder: Path) -> Definition | None:
    """The student of the folder of a stage, by its `student.json`."""
    record = read_record(folder / RECORD_FILE)
    found = _definition(record.detector, record.model, among=networks.STUDENTS)
    return replace(found, name=str(folder), record=record)


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
    require_only_scale(options, reference, source='own transform')
    definition = _definition(reference, {}, among=networks.TEACHERS)
    path = checkpoint or definition.fetch_weights()
    content = read_checkpoint(path, allow_pickle=trust_checkpoint)
    meta = content.get('meta') if isinstance(content, Mapping) else None
    classes = checkpoint_classes(meta) if isinstance(meta, Mapping) else None
    preprocessing, _ = definition.preprocessing(scale=options.scale)
    detector = definition.build(preprocessing, num_classes=None if classes is None else len(classes), with_levels=False)
    load_into(detector.module, path, name=f'teacher {reference} from {path}', allow_pickle=trust_checkpoint)
    detector.weights_loaded(path)
    detector.module.to(device).eval().requires_grad_(False)
    return teacher_of_detector(
        detector,
        definition_sha256=sha256_bytes(canonical_json([reference])),
        classes=classes or definition.classes(),
    )


def _definition(reference: str, changes: Mapping[str, Any], *, among: tuple[str, ...]) -> TorchvisionDefinition:
    network = networks.require_network(reference, among=among)
    networks.require_changes(network, changes)
    return TorchvisionDefinition(reference, network, changes)


def _own_preprocessing(transform: Any) -> Preprocessing:
    """How torchvision's transform makes inputs: it resizes numbers, not pixels, and rounds sizes down."""
    mean, std = (rgb(255 * one for one in part) for part in (transform.image_mean, transform.image_std))
    divisor = int(transform.size_divisible)
    if transform.fixed_size is not None:
        width, height = transform.fixed_size
        geometry = Geometry((width, height), keep_ratio=False, pad_divisor=divisor, float_pixels=True)
    else:
        long, short = int(transform.max_size), int(transform.min_size[-1])
        # Where the short edge is the longer one of the two, the long edge alone counts.
        scale = long, min(short, long)
        geometry = Geometry(scale, pad_divisor=divisor, rounds_down=True, float_pixels=True)
    return Preprocessing(geometry, Normalisation(mean, std, to_rgb=True))


def _levels(detector: TorchvisionDetector) -> tuple[Level, ...]:
    size = probe_size(detector.preprocessing.geometry)
    detector.module.eval()
    try:
        return levels_of(detector.maps, input_size=size)
    except RuntimeError as error:
        raise InputError(
            f'{detector.name}: cannot take inputs of {size[0]} x {size[1]} px: {" ".join(str(error).split())[:200]}; '
            'use its own scale without keep_ratio'
        ) from error
    finally:
        detector.module.train()


def _fetch(weights: Any, *, offline: str) -> Path:
    return download(weights.url, weights_folder(), offline=offline)
