"""Hash of the network that an mmdet config defines, independent of the file and its location."""

from collections.abc import Mapping
from typing import Any

from mtpd.system.files import canonical_json, sha256_bytes


def definition_sha256(config: Any) -> str:
    """Hash of the `model` of an mmengine Config, the same in every process."""
    return sha256_bytes(canonical_json(_plain(config.model.to_dict())))


def _plain(value: Any) -> Any:
    """A config as JSON values that are the same in every process; anything else by its name."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    # JSON has no infinity, which configs use as a bound.
    if value is None or isinstance(value, str | bool | int | float):
        return repr(value) if isinstance(value, float) else value
    return getattr(value, '__qualname__', type(value).__qualname__)
