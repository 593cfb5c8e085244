"""A detector's backbone: its first weights, and its blocks, such as residual blocks or transformer layers.

To save memory, blocks can keep their inputs alone and be computed again in the backward pass.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mtpd.detectors.checkpoint import require_kinds
from mtpd.detectors.detector import Detector
from mtpd.errors import InputError

# Modules that hold others in an order; torchvision's bodies are dicts.
LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# Counters, and the norms of a transformer's outputs, which only detectors have.
NOT_IN_IMAGENET = re.compile(r'num_batches_tracked$|^norm\d+\.')


def load_backbone(detector: Detector, state: Mapping[str, Tensor], *, reference: str) -> str:
    """Loads the backbone from tensors by their names in it, and says so; others are left out.

    Raises:
        InputError: tensors that pretrained backbones have are missing, or of another shape.
    """
    backbone = detector.module.get_submodule(detector.backbone)
    own = backbone.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    missing = [name for name in own if name not in fitting and not NOT_IN_IMAGENET.search(name)]
    if missing:
        raise InputError(
            f'init.backbone: {reference} lacks {len(missing)} of {len(own)} tensors of the backbone, the first is '
            f'{missing[0]}; use weights of the same network, or set init.backbone to none'
        )
    require_kinds(fitting, own, name=f'init.backbone: {reference}')
    backbone.load_state_dict(fitting, strict=False)
    return f'backbone from {reference}, {len(fitting)} tensors'


def checkpoint_activations(backbone: nn.Module) -> int:
    """Lets every block of a backbone be computed again in the backward pass; returns their number.

    Losses, gradients, running statistics, names of parameters and evaluation stay what they are; a step takes longer,
    as the backbone's forward pass is done twice (Chen et al. 2016, "Training deep nets with sublinear memory cost").
    """
    blocks = list(backbone_blocks(backbone))
    if not blocks:
        raise InputError(
            'optim.activation_checkpointing needs a backbone built from sequential blocks, which the student lacks; '
            'remove it, or lower data.batch_size'
        )
    for block in blocks:
        block.forward = partial(_forward, block, block.forward)
    return len(blocks)


def backbone_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost members of sequences that have parts themselves: a residual block, or a stage of Swin's."""
    for child in module.children():
        if isinstance(module, LISTS) and not isinstance(child, LISTS):
            if next(child.children(), None) is not None:
                yield child
        else:
            yield from backbone_blocks(child)


def _forward(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not block.training:
        return forward(*args, **kwargs)

    def contexts() -> Any:
        return nullcontext(), _statistics_kept(block)  # around the first pass over the block, and the second

    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """BatchNorm computes with the batch's statistics as before, but they enter the running ones only once."""
    norms = [one for one in block.modules() if isinstance(one, _BatchNorm) and one.training]
    states = [(one.momentum, one.num_batches_tracked) for one in norms]
    for one in norms:
        one.momentum, one.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for one, (momentum, num_batches) in zip(norms, states, strict=True):
            one.momentum, one.num_batches_tracked = momentum, num_batches
