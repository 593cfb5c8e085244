"""Where in a network its maps are taken: as the heads get them, or before the norms of its neck.

MTPD (Cao et al., ICML 2023; released code) hooks `neck.fpn_convs.i.conv`. In most pyramids that is the neck's output.
Where a norm follows, as the GroupNorm of RepPoints does, the maps before it still have the scale of each image and
channel, which the norm removes.
"""

from typing import Literal

# As the fingerprint of a cache has them.
NECK_MAPS = 'neck'
BEFORE_NORM = 'neck.fpn_convs.conv'

# What a user can choose; `auto` is as in MTPD.
HookChoice = Literal['auto', 'neck', 'before-norm']


def choice_of(hook_point: str) -> HookChoice:
    """The `--hook` value that gives this hook point for any detector."""
    return 'before-norm' if hook_point == BEFORE_NORM else 'neck'
