"""A replacement for mmcv's compiled operators, `mmcv._ext`, on torchvision and plain PyTorch.

The Python side of mmcv (mmcv/ops/*.py, also in mmcv-lite) gets every compiled operator from the one module
`mmcv._ext`. `install` registers a module of that name that holds the operators which mmdet needs, with mmcv's own
names and argument lists: outputs are tensors that the caller allocates and the operator fills. Any other name gives
a function that raises NotImplementedError, because mmcv asks for all names when it is imported.

Half-precision inputs are computed in float32 and rounded once: positions in half precision are off by a tenth of a
cell on large maps.
"""

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

import torch

from mtpd.detectors.mmcv_ext import attention, carafe, convolution, focal, nms, roi

NAME = 'mmcv._ext'


def get_compiler_version() -> str:
    """Nothing was compiled: names the replacement."""
    return 'none (mtpd.detectors.mmcv_ext)'


def get_compiling_cuda_version() -> str:
    """The CUDA version of PyTorch and torchvision, which do the work."""
    return str(torch.version.cuda or 'not available')


OPERATORS: tuple[Callable[..., Any], ...] = (
    get_compiler_version,
    get_compiling_cuda_version,
    nms.nms,
    nms.nms_match,
    nms.softnms,
    roi.roi_align_forward,
    roi.roi_align_backward,
    roi.roi_pool_forward,
    roi.roi_pool_backward,
    focal.sigmoid_focal_loss_forward,
    focal.sigmoid_focal_loss_backward,
    focal.softmax_focal_loss_forward,
    focal.softmax_focal_loss_backward,
    convolution.deform_conv_forward,
    convolution.deform_conv_backward_input,
    convolution.deform_conv_backward_parameters,
    convolution.modulated_deform_conv_forward,
    convolution.modulated_deform_conv_backward,
    roi.deform_roi_pool_forward,
    roi.deform_roi_pool_backward,
    attention.ms_deform_attn_forward,
    attention.ms_deform_attn_backward,
    carafe.carafe_forward,
    carafe.carafe_backward,
    carafe.carafe_naive_forward,
    carafe.carafe_naive_backward,
    convolution.masked_im2col_forward,
    convolution.masked_col2im_forward,
)


def install() -> None:
    """Registers the replacement as `mmcv._ext`. Call it before anything imports `mmcv.ops`."""
    module = ModuleType(NAME, __doc__)
    # Without a spec, importlib.util.find_spec('mmcv._ext') raises ValueError instead of answering.
    module.__spec__ = ModuleSpec(NAME, loader=None, origin=__file__)
    for operator in OPERATORS:
        setattr(module, operator.__name__, operator)
    vars(module)['__getattr__'] = _missing
    sys.modules[NAME] = module


def _missing(name: str) -> Callable[..., NoReturn]:
    # Python itself probes modules for names such as __path__ and __file__; those must stay absent.
    if name.startswith('__'):
        raise AttributeError(f'module {NAME!r} has no attribute {name!r}')

    def unavailable(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f'the operator {name!r} of mmcv is not implemented in mtpd; a compiled mmcv >= 2.1, < 2.2 built for this '
            f'PyTorch has it and is used when installed in place of mmcv-lite'
        )

    return unavailable
