"""Weights of teachers and of backbones: where they come from."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mtpd.detectors.checkpoint import load_checkpoint
from mtpd.detectors.download import download
from mtpd.detectors.runtime import prepare
from mtpd.detectors.zoo import ZooModel
from mtpd.errors import InputError

BACKBONE = 'backbone.'
# Names of Swin's and PVT's own releases, which mmdet's configs point to.
SWIN_ORIGINAL, PVT_ORIGINAL = 'layers.0.blocks.0.attn.qkv.weight', 'patch_embed1.proj.weight'
CHECKPOINT_OFFLINE = 'give a local file with --checkpoint FILE, or `checkpoint: FILE` in a stage file'
BACKBONE_OFFLINE = 'set init.backbone to a local file, or to none to start without pretrained weights'


def fetch_weights(model: ZooModel, *, offline: str = CHECKPOINT_OFFLINE) -> Path:
    """The checkpoint file of a zoo model, in PyTorch's usual folder; fetched unless it is there.

    Args:
        model: whose weights.
        offline: what else the user can do, for the error messages.

    Raises:
        InputError: the model has no published weights, or the file that is there is damaged.
        UnavailableError: they cannot be fetched.
    """
    if model.weights is None:
        raise InputError(f'{model.name}: the zoo has no weights for it; {offline}')
    return download(model.weights, _checkpoint_folder(), offline=offline)


def backbone_weights(reference: str) -> dict[str, Tensor]:
    """Weights of a backbone, by their names in the backbone.

    Args:
        reference: 'torchvision://NAME', 'open-mmlab://NAME', 'mmcls://NAME', an http(s) address, or a local file. Of
            a whole detector's or classifier's checkpoint only the part under `backbone.` is taken.

    Raises:
        InputError: there is no such name or file, or it is not a checkpoint.
        UnavailableError: it cannot be fetched.
    """
    address = _address(reference)
    if address is None:
        path = Path(reference)
        if not path.is_file():
            raise InputError(f'init.backbone: there is no file {path}; give a local file, or none')
    else:
        path = download(address, _checkpoint_folder(), offline=BACKBONE_OFFLINE)
    state = load_checkpoint(path)
    if SWIN_ORIGINAL in state:
        prepare()
        from mmdet.models.backbones.swin import swin_converter

        state = swin_converter(state)
    if PVT_ORIGINAL in state:
        prepare()
        from mmdet.models.backbones.pvt import pvt_convert

        state = pvt_convert(state)
    part = {name.removeprefix(BACKBONE): value for name, value in state.items() if name.startswith(BACKBONE)}
    return part or state


def _checkpoint_folder() -> Path:
    return Path(torch.hub.get_dir()) / 'checkpoints'


def _address(reference: str) -> str | None:
    """The http(s) address that a reference stands for; None for a local file."""
    scheme, separator, name = reference.partition('://')
    if not separator:
        return None
    if scheme in ('http', 'https'):
        return reference
    tables: dict[str, Callable[[], Mapping[str, str]]] = {
        'torchvision': _torchvision_addresses,
        'open-mmlab': _openmmlab_addresses,
        'openmmlab': _openmmlab_addresses,
        'mmcls': _mmcls_addresses,
    }
    if scheme not in tables:
        raise InputError(
            f'init.backbone: {reference} is not torchvision://, open-mmlab://, mmcls://, https:// or a local file'
        )
    address = tables[scheme]().get(name)
    if address is None:
        raise InputError(f'init.backbone: {scheme}:// has no weights named {name}; give a local file, or none')
    return address


def _torchvision_addresses() -> Mapping[str, str]:
    prepare()
    from mmengine.runner.checkpoint import get_torchvision_models

    # Plain names are the original weights (`resnet50` is IMAGENET1K_V1), as the zoo's recipes mean them.
    addresses: Mapping[str, str] = get_torchvision_models()
    return addresses


def _openmmlab_addresses() -> Mapping[str, str]:
    prepare()
    from mmengine.runner.checkpoint import get_deprecated_model_names, get_external_models

    addresses: dict[str, str] = get_external_models()
    renamed = {old: addresses[new] for old, new in get_deprecated_model_names().items() if new in addresses}
    return {**renamed, **addresses}


def _mmcls_addresses() -> Mapping[str, str]:
    prepare()
    from mmengine.runner.checkpoint import get_mmcls_models

    addresses: Mapping[str, str] = get_mmcls_models()
    return addresses
