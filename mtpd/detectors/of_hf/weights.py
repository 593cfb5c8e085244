"""Published weights under the names that the tensors have in the network."""

import copy
import logging
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from mtpd.detectors.downloads import weights_folder
from mtpd.detectors.of_hf.library import one_line, quiet, transformers_of
from mtpd.detectors.of_hf.model_config import MODELS, network_sha256
from mtpd.detectors.of_hf.place import WEIGHTS_FILE, Place
from mtpd.errors import InputError
from mtpd.system.files import canonical_json, sha256_bytes, sha256_file, write_output
from mtpd.system.text import listed

logger = logging.getLogger(__name__)

# Counters, which frozen norms lack, and constants of the network, which it has without a file.
_MAY_LACK = ('num_batches_tracked', '.n_points_scale', '.num_points_scale')


def fetch_weights(place: Place, config: Any, *, offline: str) -> Path:
    """A file of all tensors of the network by their names in it, made from the published one; kept in PyTorch's folder.

    transformers renames tensors while it loads and saves, and leaves out the second name of a shared one.
    """
    transformers = transformers_of(place.reference)
    source = place.require(WEIGHTS_FILE, offline=offline)
    made_of = [sha256_file(source), network_sha256(config), transformers.__version__]
    name = f'hf-{config.model_type}-{sha256_bytes(canonical_json(made_of))[:16]}.safetensors'
    path = weights_folder() / name
    if path.is_file():
        return path
    try:
        with quiet(), torch.random.fork_rng():
            model, info = getattr(transformers, MODELS[config.model_type][1]).from_pretrained(
                str(source.parent), config=copy.deepcopy(config), dtype=torch.float32, output_loading_info=True,
                local_files_only=True, use_safetensors=True,
                ignore_mismatched_sizes=True,  # They are refused below, by name.
            )  # fmt: skip
    # A damaged file, or one of another network, raises any error.
    except Exception as error:
        raise InputError(f'{source}: does not fit the config of {place.reference}: {one_line(error)}') from error
    missing = sorted(one for one in info['missing_keys'] if not one.endswith(_MAY_LACK))
    other_shape = sorted(str(one[0]) for one in info['mismatched_keys'])
    for what, names in (('lacks', missing), ('has another shape for', other_shape)):
        if names:
            raise InputError(
                f'{source}: {what} {len(names)} tensors of the network ({listed(names)}); use the config of these '
                'weights, without changes of `model` that change its tensors'
            )
    if unexpected := sorted(info['unexpected_keys']):
        logger.warning('note: %s: ignored %d tensors (%s)', source, len(unexpected), listed(unexpected))
    state = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    write_output(path, safetensors.torch.save(state))
    return path
