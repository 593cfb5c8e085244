"""What the `type` of a node in an mmengine config calls, however it is written."""

from collections.abc import Mapping
from typing import Any


def type_name(node: Mapping[str, Any]) -> str:
    """The bare name of the class: 'RetinaNet' for 'RetinaNet', 'mmdet.RetinaNet' and the class itself.

    mmengine takes all three, the second with the scope of a registry, the third in configs of pure Python. An empty
    string where the node has no type.
    """
    found = node.get('type')
    if isinstance(found, str):
        return found.rpartition('.')[2]
    return getattr(found, '__name__', '')
