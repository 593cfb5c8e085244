"""A replacement for mmcv's compiled operators, `mmcv._ext`, on torchvision and plain PyTorch.

The Python side of mmcv (mmcv/ops/*.py, also in mmcv-lite) gets every compiled operator from the one module
`mmcv._ext`. `install` registers a module of that name that holds the operators which mmdet needs, with mmcv's own
names and argument lists: outputs are tensors that the caller allocates and the operator fills. Any other name gives
a function that raises NotImplementedError, because mmcv looks up all names when it is imported.

Half-precision inputs are computed in float32 and rounded once: positions in half precision are off by a tenth of a
cell on large maps.
"""

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any, NoReturn

import torch

from mtpd.detectors.of_mmdet.mmcv_ext import attention, carafe, convolution, focal, nms, roi

NAME = 'mmcv._ext'


def get_compiler_version() -> str:
    """Nothing was compiled: names the replacement."""
    return 'none (mtpd.detectors.of_mmdet.mmcv_ext)'


def get_compiling_cuda_version() -> str:
    """The CUDA version of PyTorch and torchvision, which do the work."""
    return str(torch.version.cuda or 'not available')


# Every public function of these modules is the operator of its name.
MODULES = (attention, carafe, convolution, focal, nms, roi)


def install() -> None:
    """Registers the replacement as `mmcv._ext`. Call it before anything imports `mmcv.ops`."""
    module = ModuleType(NAME, __doc__)
    # Without a spec, importlib.util.find_spec('mmcv._ext') raises ValueError instead of answering.
    module.__spec__ = ModuleSpec(NAME, loader=None, origin=__file__)
    functions: list[Any] = [get_compiler_version, get_compiling_cuda_version]
    for part in MODULES:
        own = [one for one in vars(part).values() if isinstance(one, FunctionType) and one.__module__ == part.__name__]
        functions += [one for one in own if not one.__name__.startswith('_')]
    vars(module).update({one.__name__: one for one in functions}, __getattr__=_missing)
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
