"""Weights of teachers and of backbones: where they come from, and fetching them so that a file is whole or absent."""

import hashlib
import http.client
import logging
import os
import re
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch
from filelock import FileLock
from torch import Tensor

from mtpd.detectors.checkpoint import load_checkpoint
from mtpd.detectors.detector import CHECKPOINT_OFFLINE
from mtpd.detectors.of_mmdet.runtime import prepare
from mtpd.detectors.of_mmdet.zoo import resolve
from mtpd.errors import InputError, UnavailableError
from mtpd.system.files import sha256_file

logger = logging.getLogger(__name__)

BACKBONE = 'backbone.'
# Names of Swin's and PVT's own releases, which mmdet's configs point to.
SWIN_ORIGINAL, PVT_ORIGINAL = 'layers.0.blocks.0.attn.qkv.weight', 'patch_embed1.proj.weight'
BACKBONE_OFFLINE = 'set init.backbone to a local file, or to none to start without pretrained weights'

TIMEOUT = 30.0  # seconds without a byte
PIECE = 1 << 20  # bytes
REPORTS = 10  # lines of progress for one file
# Names of published weights end in the first hex digits of their sha256.
HASH_IN_NAME = re.compile(r'-([0-9a-f]{8,64})\.\w+$')


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
    return download(weights, _checkpoint_folder(), offline=offline)


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
        path = download(address, _checkpoint_folder(), offline=BACKBONE_OFFLINE)
    state, _ = load_checkpoint(path)
    if SWIN_ORIGINAL in state or PVT_ORIGINAL in state:
        prepare()
        from mmdet.models.backbones.pvt import pvt_convert
        from mmdet.models.backbones.swin import swin_converter

        state = swin_converter(state) if SWIN_ORIGINAL in state else pvt_convert(state)
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


def download(url: str, folder: Path, *, offline: str) -> Path:
    """The file at an http(s) `url`, kept in `folder` under its own name; fetched unless it is there.

    A hash in its name is checked, of a new file (UnavailableError) and of one that is there (InputError).
    """
    path = folder / Path(unquote(urlsplit(url).path)).name
    in_name = HASH_IN_NAME.search(path.name)
    expected = in_name[1] if in_name else ''
    # A file gets its name when it is whole, so only fetching needs the lock.
    if path.is_file():
        if not (actual := sha256_file(path)).startswith(expected):
            raise InputError(f'{path}: its sha256 starts with {actual[:8]}, expected {expected}; delete it')
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Two programs that start together must not fetch one file twice.
        with FileLock(folder / f'.{path.name}.lock'):
            if not path.is_file():
                _fetch(url, path, expected, offline)
    # URLError, HTTPError and timeouts are OSErrors; so are a full disk and a folder that cannot be written.
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # It holds the connection.
        raise UnavailableError(f'cannot fetch {url} to {path}: {error}; {offline}') from error
    return path


def _fetch(url: str, path: Path, expected: str, offline: str) -> None:
    if not expected:
        logger.warning('%s: its name has no hash, so it cannot be verified', url)
    temporary = path.with_name(f'.tmp-{os.getpid()}-{path.name}')
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response, temporary.open('wb') as file:
            if response.headers.get_content_type() == 'text/html':
                raise UnavailableError(f'{url}: returned a web page, not a weights file; {offline}')
            total = int(response.headers.get('Content-Length') or 0)
            logger.info('fetching %s (%.0f MB) to %s', url, total / 1e6, path)
            received = reported = 0
            while piece := response.read(PIECE):
                digest.update(piece)
                file.write(piece)
                received += len(piece)
                share = REPORTS * received // total if total else 0
                if share > reported:
                    reported = share
                    logger.info('%d of %d MB', received // 10**6, total // 10**6)
            file.flush()
            os.fsync(file.fileno())
        if received < total:
            raise UnavailableError(f'{url}: connection lost after {received} of {total} bytes; try again, or {offline}')
        if not digest.hexdigest().startswith(expected):
            raise UnavailableError(
                f'{url}: the sha256 of the download starts with {digest.hexdigest()[:8]}, expected {expected}; '
                f'try again, or {offline}'
            )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
