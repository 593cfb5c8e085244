"""Training in less memory: a backbone's blocks keep their inputs alone and are computed again in the backward pass."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mtpd.errors import InputError


def checkpoint_activations(model: nn.Module) -> int:
    """Lets every block of an mmdet detector's backbone be computed again in the backward pass, in place.

    Losses, gradients, running statistics, names of parameters and evaluation stay what they are; a step takes longer,
    as the backbone's forward pass is done twice (Chen et al. 2016, "Training deep nets with sublinear memory cost").

    Returns:
        The number of blocks.

    Raises:
        InputError: the detector has no backbone made of blocks.
    """
    backbone = getattr(model, 'backbone', None)
    blocks = [] if backbone is None else list(_blocks(backbone))
    if not blocks:
        raise InputError(
            'optim.activation_checkpointing needs a backbone built from sequential blocks, which the student lacks; '
            'remove it, or lower data.batch_size'
        )
    for block in blocks:
        block.forward = partial(_forward, block, block.forward)
    return len(blocks)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost members of sequences that have parts themselves: a residual block, or a stage of Swin's."""
    for child in module.children():
        if isinstance(module, nn.Sequential | nn.ModuleList) and not isinstance(child, nn.Sequential | nn.ModuleList):
            if next(child.children(), None) is not None:
                yield child
        else:
            yield from _blocks(child)


def _forward(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not block.training:
        return forward(*args, **kwargs)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        # Around the first pass over the block, and around the second.
        return nullcontext(), _statistics_kept(block)

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
