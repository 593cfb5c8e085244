"""Weights of teachers and of backbones: where mmdet says that they are."""

from pathlib import Path

from torch import Tensor

from mtpd.detectors.checkpoint import load_checkpoint
from mtpd.detectors.detector import CHECKPOINT_OFFLINE
from mtpd.detectors.downloads import BACKBONE_OFFLINE, download, weights_folder
from mtpd.detectors.of_mmdet.runtime import prepare
from mtpd.detectors.of_mmdet.zoo import resolve
from mtpd.errors import InputError

BACKBONE = 'backbone.'
# Names of Swin's and PVT's own releases, which mmdet's configs point to.
SWIN_ORIGINAL, PVT_ORIGINAL = 'layers.0.blocks.0.attn.qkv.weight', 'patch_embed1.proj.weight'


def fetch_weights(reference: str, *, offline: str = CHECKPOINT_OFFLINE) -> Path:
    """The checkpoint file of a zoo model, in PyTorch's usual folder; errors advise `offline` as another way.

    A path to a config is refused: nothing says where its weights are.
    """
    if reference.endswith('.py'):
        raise InputError(
            f'{reference}: a config file needs its weights: add --checkpoint FILE, or `checkpoint: FILE` to a stage '
            'file'
        )
    weights = resolve(reference).weights
    if weights is None:
        raise InputError(f'{reference}: the zoo has no weights for it; {offline}')
    return download(weights, weights_folder(), offline=offline)


def backbone_weights(reference: str) -> dict[str, Tensor]:
    """Weights of a backbone, by their names in the backbone.

    The reference is torchvision://NAME, open-mmlab://NAME, mmcls://NAME, an http(s) address, or a local file. Of a
    whole detector's or classifier's checkpoint only the part under `backbone.` is taken.
    """
    address = _address(reference)
    if address is None:
        path = Path(reference)
        if not path.is_file():
            raise InputError(f'init.backbone: there is no file {path}; give a local file, or none')
    else:
        path = download(address, weights_folder(), offline=BACKBONE_OFFLINE)
    state, _ = load_checkpoint(path)
    if SWIN_ORIGINAL in state or PVT_ORIGINAL in state:
        prepare()
        from mmdet.models.backbones.pvt import pvt_convert
        from mmdet.models.backbones.swin import swin_converter

        state = swin_converter(state) if SWIN_ORIGINAL in state else pvt_convert(state)
    part = {name.removeprefix(BACKBONE): value for name, value in state.items() if name.startswith(BACKBONE)}
    return part or state


def _address(reference: str) -> str | None:
    """The http(s) address that a reference stands for; None for a local file."""
    scheme, separator, name = reference.partition('://')
    if not separator:
        return None
    if scheme in ('http', 'https'):
        return reference
    prepare()
    from mmengine.runner import checkpoint as tables

    published: dict[str, str]
    if scheme == 'torchvision':
        # Plain names are the original weights (`resnet50` is IMAGENET1K_V1), as the zoo's recipes mean them.
        published = tables.get_torchvision_models()
    elif scheme == 'mmcls':
        published = tables.get_mmcls_models()
    elif scheme in ('open-mmlab', 'openmmlab'):
        published = tables.get_external_models()
        renamed = {old: published[new] for old, new in tables.get_deprecated_model_names().items() if new in published}
        published = renamed | dict(published)
    else:
        raise InputError(
            f'init.backbone: {reference} is not torchvision://, open-mmlab://, mmcls://, https:// or a local file'
        )
    if name not in published:
        raise InputError(f'init.backbone: {scheme}:// has no weights named {name}; give a local file, or none')
    return published[name]
