"""What mmcv asks about its own build."""

import torch


def get_compiler_version() -> str:
    """Nothing was compiled: names the replacement."""
    return 'none (mtpd.detectors.mmcv_ext)'


def get_compiling_cuda_version() -> str:
    """The CUDA version of PyTorch and torchvision, which do the work."""
    return str(torch.version.cuda or 'not available')
