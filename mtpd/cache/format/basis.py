"""The channel rotation of the `lean` codec: principal directions of a level's features (Karhunen-Loeve transform).

Channels of a feature map resemble each other; rotated to their principal directions they do not, most of the energy
gathers in a few of them, and the rest rounds to zeros. A rotation leaves squared errors as they are and commutes with
masks over cells. One basis per level serves all images; it is computed once, from a sample, and stored with the cache.

Letters: B images, C channels, H W grid of a level.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mtpd.errors import CacheDamagedError
from mtpd.geometry import Level
from mtpd.system.files import canonical_json, sha256_bytes

BASIS_FILE = 'basis.safetensors'
METADATA_KEY = 'mtpd'
HEADER_BYTES = 1024
# Of the entries of B^T B from those of 1, in float32.
MAX_DEVIATION = 1e-3


class Covariance:
    """Running channel covariance of one level, each image around its own channel means."""

    def __init__(self, num_channels: int) -> None:
        self._sum = torch.zeros(num_channels, num_channels, dtype=torch.float64)

    def add(self, maps: Tensor) -> None:
        """Takes in maps (B, C, H, W)."""
        centred = maps.float() - maps.float().mean((-2, -1), keepdim=True)
        # Images differ in energy; each counts alike, as each is to keep the same relative error.
        centred = centred / centred.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-12)
        products = torch.einsum('bihw,bjhw->ij', centred, centred) / max(1, centred[0, 0].numel())
        self._sum += products.cpu().double()

    def basis(self) -> Tensor:
        """Orthonormal columns (C, C) float32, the direction of the greatest variance first."""
        _, vectors = torch.linalg.eigh(self._sum)
        vectors = vectors.flip(1)
        # An eigenvector has no sign of its own: the largest entry is made positive.
        signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        basis: Tensor = (vectors * signs).float().contiguous()
        return basis


def save_basis(bases: Mapping[str, Tensor], *, plan: str) -> bytes:
    """The bases of all levels as a safetensors file that states its hash and that of the plan it was made for."""
    tensors = {name: basis.contiguous() for name, basis in sorted(bases.items())}
    # One entry: safetensors writes several in an order that changes from run to run.
    stated = canonical_json({'plan': plan, 'sha256': _digest(tensors)}).decode()
    return safetensors.torch.save(tensors, metadata={METADATA_KEY: stated})


def max_basis_bytes(levels: Sequence[Level]) -> int:
    """What a file of `save_basis` takes at most."""
    return sum(4 * level.channels**2 + HEADER_BYTES for level in levels) + HEADER_BYTES


def load_basis(content: bytes, levels: Sequence[Level], *, name: str) -> dict[str, Tensor]:
    """Level name -> basis (C, C) float32; CacheDamagedError for other levels, another content, or no rotation."""
    try:
        tensors = safetensors.torch.load(content)
        stated = _metadata(content)['sha256']
    except (safetensors.SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CacheDamagedError(f'{name}: cannot be read ({error}); extract the cache again') from error
    wanted = {level.name: (torch.Size((level.channels, level.channels)), torch.float32) for level in levels}
    found = {level: (values.shape, values.dtype) for level, values in tensors.items()}
    if found != wanted or stated != _digest(tensors):
        raise CacheDamagedError(f'{name}: its content differs from what was written; extract the cache again')
    for level, basis in tensors.items():
        # Losses compare codes in the directions of the basis: in another one squared errors would not be those of maps.
        deviation = float((basis.T @ basis - torch.eye(len(basis))).abs().max())
        if not deviation < MAX_DEVIATION:
            raise CacheDamagedError(
                f'{name}: the basis of {level} is not orthonormal (B^T B differs from the identity by '
                f'{deviation:.2g}, expected at most {MAX_DEVIATION:g}); extract the cache again'
            )
    return tensors


def plan_of_basis(content: bytes) -> str | None:
    """Hash of the plan that a file of `save_basis` was made for; None where it does not say."""
    try:
        return str(_metadata(content)['plan'])
    except (KeyError, RecursionError, TypeError, ValueError):
        return None


def _metadata(content: bytes) -> Any:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], 'little')])
    return json.loads(header['__metadata__'][METADATA_KEY])


def _digest(tensors: Mapping[str, Tensor]) -> str:
    return sha256_bytes(b''.join(tensors[name].contiguous().numpy().tobytes() for name in sorted(tensors)))
