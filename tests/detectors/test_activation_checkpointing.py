"""Activation checkpointing changes what a step holds, and nothing that it gives."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mtpd.detectors.activation_checkpointing import checkpoint_activations
from mtpd.detectors.models import build_detector, load_config
from mtpd.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]


def student(name: str, **backbone: Any) -> Any:
    config = load_config(str(REPOSITORY / 'configs' / name))
    config.merge_from_dict({f'model.backbone.{key}': value for key, value in backbone.items()})
    torch.manual_seed(0)
    return build_detector(config, num_classes=3).train()


def trained(model: Any, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Gradients and buffers after a backward pass over the neck's maps, and the bytes that were kept for it."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    torch.manual_seed(1)
    with saved_tensors_hooks(keep, lambda one: one):
        loss = sum(one.square().mean() for one in model.extract_feat(images))
    held = sum(kept.values())
    torch.autograd.backward(loss)
    gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    return gradients, dict(model.named_buffers()), held


@pytest.mark.parametrize(
    ('name', 'backbone', 'num_blocks', 'share'),
    [
        ('demo/retinanet_tiny.py', {'norm_eval': False, 'frozen_stages': -1}, 8, 0.8),
        ('demo/retinanet_tiny.py', {'norm_eval': True, 'frozen_stages': 2}, 8, 0.9),
        ('students/retinanet_mobilenet_v2.py', {}, 17, 0.6),
        # Its stages drop paths at random.
        ('teachers/retinanet_swin_t_fpn_3x_coco.py', {'depths': (1, 1, 2, 1), 'drop_path_rate': 0.5}, 4, 0.6),
    ],
)
def test_gradients_and_statistics_are_the_same(
    name: str, backbone: dict[str, Any], num_blocks: int, share: float
) -> None:
    plain, frugal = (student(name, **backbone) for _ in range(2))
    assert checkpoint_activations(frugal) == num_blocks
    assert list(frugal.state_dict()) == list(plain.state_dict())
    images = torch.randn(2, 3, 96, 64)
    (gradients, buffers, held), (found, found_buffers, found_held) = (trained(one, images) for one in (plain, frugal))
    with torch.no_grad():
        for one in (plain, frugal):
            one.extract_feat(2 * images)  # The statistics of a further step enter as before.
    assert gradients.keys() == found.keys()
    assert gradients
    for key, wanted in gradients.items():
        assert torch.equal(found[key], wanted), key
    for key, wanted in buffers.items():
        assert torch.equal(found_buffers[key], wanted), key
    assert found_held < share * held
    plain.eval()
    frugal.eval()
    for one, other in zip(plain.extract_feat(images), frugal.extract_feat(images), strict=True):
        assert torch.equal(one, other)


def test_a_copy_computes_with_its_own_blocks() -> None:
    model = student('demo/retinanet_tiny.py')
    checkpoint_activations(model)
    images = torch.randn(1, 3, 64, 64)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for one in model.parameters():
            one.zero_()
        assert all(float(one.abs().sum()) > 0 for one in other.extract_feat(images))


def test_a_detector_without_blocks() -> None:
    with pytest.raises(
        InputError, match=r'optim\.activation_checkpointing needs a backbone built from sequential blocks'
    ):
        checkpoint_activations(nn.Sequential(nn.Conv2d(3, 3, 1)))
