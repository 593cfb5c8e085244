"""The types that configs name: by a string, a string with a scope, or the class itself."""

from typing import Any


def type_name(node: Any) -> str:
    """The bare class name of a config's `type`, or of the node (a mapping) that has it.

    'mmdet.Resize', 'Resize' and the class `Resize` are all 'Resize'; what names no type gives ''.
    """
    kind = node.get('type') if hasattr(node, 'get') else node
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return str(name).rpartition('.')[2]
