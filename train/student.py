"""The student: an mmdet detector, its input, and where its first weights come from."""

import re
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtpd.detectors.checkpoint import load_checkpoint, load_into, require_kinds
from mtpd.detectors.detection import predicts_masks
from mtpd.detectors.features import probe_levels
from mtpd.detectors.inheritance import Inheritance, inherited_tensors, plan_inheritance, shape_text
from mtpd.detectors.model_config import backbone_reference
from mtpd.detectors.models import build_detector, load_config, missing_package
from mtpd.detectors.preprocessing import Preprocessing, probe_size
from mtpd.detectors.trainable import BACKBONE, PARTS, require_trainable
from mtpd.detectors.weights import backbone_weights, fetch_weights
from mtpd.detectors.zoo import find_model
from mtpd.errors import InputError, MtpdError, UnavailableError
from mtpd.geometry import Level
from mtpd.system.text import table
from mtpd_train.settings.stage_settings import InitSettings

# Counters, and the norms of a transformer's outputs, which only detectors have.
_NOT_IN_IMAGENET = re.compile(r'num_batches_tracked$|^norm\d+\.')


@dataclass(frozen=True)
class Student:
    """A detector to be trained."""

    name: str  # of its model, or the path of its config, for messages
    model: nn.Module
    preprocessing: Preprocessing  # the stage's geometry with the network's normalisation
    levels: tuple[Level, ...]  # what its neck gives
    has_masks: bool

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device


@contextmanager
def named_failures(name: str, doing: str, *, image_ids: Sequence[int] = ()) -> Iterator[None]:
    """Names the student and the images in errors of the network's own code: configs can cause any error there.

    MtpdErrors and errors of memory and workers pass unchanged.
    """
    try:
        yield
    except (MtpdError, MemoryError, torch.OutOfMemoryError):
        raise
    except ImportError as error:
        raise UnavailableError(f'student {name} cannot {doing}: it needs {missing_package(error)}') from error
    except Exception as error:
        # torch raises this anywhere when a process that reads images is killed.
        if 'DataLoader worker' in str(error):
            raise
        text = next((' '.join(line.split()) for line in str(error).splitlines() if line.strip()), 'no message')
        images = f' (on images {", ".join(map(str, image_ids))})' if image_ids else ''
        raise InputError(f'student {name} cannot {doing}: {type(error).__name__}: {text}{images}') from error


def student_config(reference: str, *, changes: Mapping[str, Any]) -> Any:
    """The mmengine Config of a student, a zoo name or config path; `changes` replace entries of its `model`."""
    config = load_config(reference)
    try:
        config.merge_from_dict({'model': dict(changes)})
    except (TypeError, KeyError, AssertionError) as error:
        raise InputError(f'model: its changes do not fit the config {reference}: {error}') from error
    require_trainable(config)
    return config


def build_student(config: Any, preprocessing: Preprocessing, *, name: str, num_classes: int, seed: int) -> Student:
    """A student with random weights from `seed`, its heads for `num_classes`; `config` is from `student_config`."""
    torch.manual_seed(seed)
    model = build_detector(config, num_classes=num_classes, init_weights=True)
    levels = probe_levels(model, input_size=probe_size(preprocessing.geometry))
    return Student(name, model, preprocessing, levels, has_masks=predicts_masks(model))


def changed_keys(changes: Mapping[str, Any], path: str = '') -> set[str]:
    """Dotted keys of all entries, nested ones too, that `model` in a stage file sets."""
    places = {f'{path}.{key}' if path else key: value for key, value in changes.items()}
    inner = [changed_keys(value, place) for place, value in places.items() if isinstance(value, Mapping)]
    return set(places).union(*inner)


def loaded_parts(init: InitSettings, *, before: frozenset[str] | None) -> frozenset[str]:
    """The `PARTS` of a student that start from loaded weights; `before` are those of the previous stage, if any."""
    if init.checkpoint is not None or init.fine_tune is not None:
        return PARTS
    if before is not None:
        return before
    return frozenset({*init.inherit, *([] if init.backbone == 'none' else [BACKBONE])})


def first_weights(model: nn.Module, init: InitSettings, *, config: Any, is_first: bool) -> str | None:
    """Loads a student's first weights and describes their origin; None: they come from the previous stage."""
    if init.checkpoint is not None:
        return load_student(model, init.checkpoint, name='init.checkpoint')
    if init.fine_tune is not None:
        return load_for_other_classes(model, init.fine_tune)
    return load_backbone(model, init.backbone, config=config) if is_first else None


def load_backbone(model: nn.Module, choice: str, *, config: Any) -> str:
    """Loads the backbone of a new student, `pretrained` (what the config names), `none` or a file, and describes it."""
    if choice == 'none':
        return 'random weights (init.backbone: none)'
    reference = backbone_reference(config.model) if choice == 'pretrained' else choice
    if reference is None:
        raise InputError(
            "init.backbone is pretrained, but the student's config has no pretrained weights; "
            'set it to none or to a file'
        )
    state = backbone_weights(reference)
    backbone = model.get_submodule('backbone')
    own = backbone.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    missing = [name for name in own if name not in fitting and not _NOT_IN_IMAGENET.search(name)]
    if missing:
        raise InputError(
            f'init.backbone: {reference} lacks {len(missing)} of {len(own)} tensors of the backbone, the first is '
            f'{missing[0]}; use weights of the same network, or set init.backbone to none'
        )
    require_kinds(fitting, own, name=f'init.backbone: {reference}')
    backbone.load_state_dict(fitting, strict=False)
    return f'backbone from {reference}, {len(fitting)} tensors'


def load_student(model: nn.Module, checkpoint: Path, *, name: str) -> str:
    """Loads all weights of a student and describes them; errors call the file `name`."""
    load_into(model, checkpoint, name=f'{name} {checkpoint}')
    return f'student from {checkpoint}'


def load_for_other_classes(model: nn.Module, reference: str) -> str:
    """Loads a zoo name or file, trained on other classes, except the layers of their number, and describes it."""
    path = Path(reference)
    # Names of the zoo have dots, too.
    if not path.exists() and (not path.suffix or find_model(reference) is not None):
        path = fetch_weights(reference, offline='set init.fine_tune to a local file instead of the name')
    state, _ = load_checkpoint(path, network=model)
    own = model.state_dict()
    initialised = [name for name, value in own.items() if name in state and state[name].shape != value.shape]
    missing = [name for name in own if name not in state and not _NOT_IN_IMAGENET.search(name)]
    # Classes are outputs: the first axis of weights and biases.
    wrong = [name for name in initialised if state[name].shape[1:] != own[name].shape[1:]]
    if missing or wrong:
        found = f'has {tuple(state[wrong[0]].shape)} for {wrong[0]}' if wrong else f'lacks {missing[0]}'
        raise InputError(
            f'init.fine_tune: {reference} {found}, so it is a different network, not the student with other '
            'classes; set `student` and `model` to the network of these weights'
        )
    require_kinds(state, own, name=f'init.fine_tune: {reference}')
    kept = OrderedDict((name, value) for name, value in state.items() if name not in initialised)
    vars(kept)['_metadata'] = vars(state).get('_metadata', {})  # Modules tell old layouts from new ones by it.
    model.load_state_dict(kept, strict=False)
    started = f', initialised: {", ".join(initialised)}' if initialised else ''
    return f'fine-tuned from {reference}: {len(own) - len(initialised)} of {len(own)} tensors{started}'


def require_same_network(model: nn.Module, previous: nn.Module, *, number: int) -> None:
    """Refuses a stage `number` that cannot start from the student of the stage before; names the first tensor."""
    shapes, previous_shapes = _shapes(model.state_dict()), _shapes(previous.state_dict())
    names = (name for name in shapes | previous_shapes if shapes.get(name, ()) != previous_shapes.get(name, ()))
    if first := next(names, None):
        raise InputError(
            f'stage {number} starts from the student of stage {number - 1}, but that is a different network: '
            f'{first} is {previous_shapes.get(first, "missing")} there and {shapes.get(first, "missing")} here; make '
            '`student`, `model` and the classes the same, or set init.checkpoint'
        )


def inherit(model: nn.Module, teacher_weights: Mapping[str, Tensor], parts: Sequence[str]) -> tuple[Inheritance, ...]:
    """Copies tensors of the teacher's `parts` (neck, head) that fit; the outcome of each, of which one must fit."""
    plan = plan_inheritance(_shapes(model.state_dict()), _shapes(teacher_weights), parts=parts)
    tensors = inherited_tensors(plan, teacher_weights)
    if not tensors:
        raise InputError(
            f"init.inherit: none of the teacher's {len(plan)} neck and head tensors has a counterpart of the "
            'same name and shape in the student; remove init.inherit'
        )
    model.load_state_dict(tensors, strict=False)
    return plan


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def inheritance_summary(plan: Sequence[Inheritance]) -> str:
    """`inherited 37 tensors from the teacher, tiled 2, skipped 30 (22 later cascade stage, ...; 8 another shape)`."""
    outcomes = Counter(entry.outcome for entry in plan)
    reasons = Counter(entry.reason for entry in plan if entry.outcome == 'skipped')
    why = '; '.join(f'{count} {reason}' for reason, count in reasons.most_common())
    return (
        f'inherited {outcomes["inherited"]} tensors from the teacher, tiled {outcomes["tiled"]}, '
        f'skipped {outcomes["skipped"]}' + (f' ({why})' if why else '')
    )


def inheritance_table(plan: Sequence[Inheritance]) -> str:
    """A table with a line for each tensor, and the summary."""
    header = ('outcome', 'student', 'shape', 'teacher', 'why')
    rows = []
    for one in plan:
        why = f'{one.reason}: {one.detail}' if one.detail else one.reason
        rows.append((one.outcome, one.student or '-', shape_text(one.shape), one.teacher or '-', why))
    return '\n'.join([*table(header, rows, num_texts=len(header)), '', inheritance_summary(plan), ''])
