"""Where a student's first weights come from, and its failures in words."""

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtpd.detectors.backbones import NOT_IN_IMAGENET
from mtpd.detectors.checkpoint import load_checkpoint, load_into, require_kinds
from mtpd.detectors.detector import BACKBONE, PARTS, Definition, Detector
from mtpd.detectors.inheritance import Inheritance, inherited_tensors, plan_inheritance, shape_text
from mtpd.detectors.packages import missing_package
from mtpd.detectors.references import define_detector
from mtpd.errors import InputError, MtpdError, UnavailableError
from mtpd.system.text import table
from mtpd_train.settings.stage_settings import InitSettings

WEIGHTS_FILES = ('.pth', '.pt', '.safetensors', '.bin', '.ckpt')


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


def first_weights(detector: Detector, init: InitSettings, *, definition: Definition, is_first: bool) -> str | None:
    """Loads a student's first weights and describes their origin; None: they come from the previous stage."""
    if init.checkpoint is not None:
        return load_student(detector.module, init.checkpoint, name='init.checkpoint')
    if init.fine_tune is not None:
        return load_for_other_classes(detector.module, init.fine_tune)
    if not is_first:
        return None
    if init.backbone == 'none':
        return 'random weights (init.backbone: none)'
    return definition.load_backbone(detector, init.backbone)


def frozen_parameters(detector: Detector, *, loaded: Collection[str]) -> tuple[str, ...]:
    """Names of the parameters that never learn though they start from random weights; leaves it in training mode."""
    detector.module.train()  # Some backbones freeze their stages here.
    return tuple(
        name
        for name, parameter in detector.module.named_parameters()
        if not parameter.requires_grad and detector.part_of(name) not in loaded
    )


def load_student(model: nn.Module, checkpoint: Path, *, name: str) -> str:
    """Loads all weights of a student and describes them; errors call the file `name`."""
    load_into(model, checkpoint, name=f'{name} {checkpoint}')
    return f'student from {checkpoint}'


def load_for_other_classes(model: nn.Module, reference: str) -> str:
    """Loads a zoo name or file, trained on other classes, except the layers of their number, and describes it."""
    path = Path(reference)
    # Names of the zoo have dots, too.
    if not path.is_file() and path.suffix not in WEIGHTS_FILES:
        offline = 'set init.fine_tune to a local file instead of the name'
        path = define_detector(reference).fetch_weights(offline=offline)
    state, _ = load_checkpoint(path, network=model)
    own = model.state_dict()
    initialised = [name for name, value in own.items() if name in state and state[name].shape != value.shape]
    # Classes are outputs: the first axis of weights and biases.
    wrong = [name for name in initialised if state[name].shape[1:] != own[name].shape[1:]]
    require_kinds(state, own, name=f'init.fine_tune: {reference}')
    kept = OrderedDict((name, value) for name, value in state.items() if name not in initialised)
    vars(kept)['_metadata'] = vars(state).get('_metadata', {})  # Modules tell old layouts from new ones by it.
    try:
        # Some modules know their tensors by older names, too.
        lacking = [] if wrong else model.load_state_dict(kept, strict=False).missing_keys
    except RuntimeError as error:  # shapes of tensors that are renamed
        raise InputError(f'init.fine_tune: {reference}: {" ".join(str(error).split())[:300]}') from error
    missing = [name for name in lacking if name not in initialised and not NOT_IN_IMAGENET.search(name)]
    if missing or wrong:
        found = f'has {tuple(state[wrong[0]].shape)} for {wrong[0]}' if wrong else f'lacks {missing[0]}'
        raise InputError(
            f'init.fine_tune: {reference} {found}, so it is a different network, not the student with other '
            'classes; set `student` and `model` to the network of these weights'
        )
    started = f', initialised: {", ".join(initialised)}' if initialised else ''
    return f'fine-tuned from {reference}: {len(own) - len(initialised)} of {len(own)} tensors{started}'


def require_batches(detector: Detector, *, num_images: int, batch_size: int, num_processes: int = 1) -> None:
    """Refuses batches of fewer images than the detector can learn from, in each of the processes that divide them.

    One batch of an epoch has what is left over.
    """
    least = detector.least_images

    def smallest_of(size: int) -> int:
        return max(1, (num_images % size or size) // num_processes)

    smallest = smallest_of(batch_size)
    if smallest < least:
        wider = range(max(batch_size, least), num_images + 1)
        fitting = next((one for one in wider if smallest_of(one) >= least), None)
        advice = 'use more images' if fitting is None else f'set it to {fitting}'
        raise InputError(
            f'data.batch_size is {batch_size}, and {num_images} images have objects: a batch of an epoch has {smallest}'
            f'{f" in each of {num_processes} processes" if num_processes > 1 else ""}'
            f', but {detector.name} needs {least} or more; {advice}'
        )


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
