"""The layer that brings a student's map to the teacher's channels."""

from torch import nn

from mtpd.losses.level_term import Adapter


def build_adapter(student_channels: int, teacher_channels: int, *, adapter: Adapter = 'auto') -> nn.Conv2d | None:
    """A 1x1 convolution from the student's to the teacher's channels, or None where none is needed.

    Between equal channels it starts as the identity, so that training begins where it would without an adapter. Between
    different ones it starts random and keeps the variance of its input (He et al. 2015 with gain 1), from torch's
    global generator.

    Args:
        student_channels: channels of the student's map.
        teacher_channels: channels of the teacher's map.
        adapter: `auto`: only where the channels differ; `always`: between equal ones too.
    """
    if student_channels == teacher_channels and adapter == 'auto':
        return None
    convolution = nn.Conv2d(student_channels, teacher_channels, kernel_size=1)
    if student_channels == teacher_channels:
        nn.init.dirac_(convolution.weight)
    else:
        nn.init.kaiming_normal_(convolution.weight, nonlinearity='linear')
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution
