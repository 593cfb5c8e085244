"""The stand-in module itself: how it is installed, what it answers to, and that it cannot end the process."""

import copy
import importlib.util
import subprocess
import sys

import pytest

from mtpd.detectors.of_mmdet.runtime import prepare


def run_python(code: str) -> str:
    command = [sys.executable, '-X', 'faulthandler', '-c', code]
    process = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_an_operator_without_a_stand_in_says_so() -> None:
    from mmcv import _ext

    with pytest.raises(NotImplementedError, match=r"operator 'ball_query_forward' .* compiled mmcv"):
        _ext.ball_query_forward(1, x=2)


def test_every_operator_of_mmcv_can_be_imported() -> None:
    import mmcv.ops
    from mmcv import _ext

    assert mmcv.ops.nms
    assert mmcv.ops.get_compiler_version()
    assert mmcv.ops.get_compiling_cuda_version()
    spec = importlib.util.find_spec('mmcv._ext')
    assert spec is not None
    assert spec is _ext.__spec__
    # Python's own probing must not be taken for an operator.
    assert not hasattr(_ext, '__path__')
    assert copy.copy(_ext.nms) is _ext.nms


def test_preparing_twice_changes_nothing() -> None:
    before = sys.modules['mmcv._ext']
    prepare()
    assert sys.modules['mmcv._ext'] is before


def test_a_compiled_mmcv_is_left_alone() -> None:
    code = """
import sys, types
compiled = types.ModuleType('mmcv._ext')
sys.modules['mmcv._ext'] = compiled
from mtpd.detectors.of_mmdet import runtime
runtime._provide_operators()
assert sys.modules['mmcv._ext'] is compiled
"""
    run_python(code)


def test_importing_the_package_has_no_side_effect() -> None:
    run_python(
        'import sys, mtpd.detectors.of_mmdet.runtime, mtpd.detectors.of_mmdet.mmcv_ext, mtpd.detectors.of_mmdet.models;'
        "assert not {'mmcv', 'mmdet', 'mmengine', 'mmcv._ext'} & set(sys.modules)"
    )


def test_hostile_numbers_do_not_end_the_process() -> None:
    """torchvision's own CPU kernels crash on most of these."""
    code = """
import itertools, torch
from mtpd.detectors.of_mmdet.mmcv_ext import convolution, roi
image = torch.randn(2, 4, 64, 64)
hostile = [torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 1e12, 2147483648.0, -2147483649.0]
sizes = (1, 1, 1, 1, 1, 1, 1, 1)
for value, mask in itertools.product(hostile, (None, torch.rand(2, 9, 64, 64))):
    offset = torch.randn(2, 18, 64, 64)
    offset[:, ::3] = value
    weight = torch.randn(4, 4, 3, 3)
    output = convolution._forward(image, weight, offset, mask, None, sizes)
    convolution._backward(torch.ones_like(output), image, weight, offset, mask, sizes)
for value, column, ratio in itertools.product(hostile, (1, 2, 3, 4), (0, 2)):
    rois = torch.tensor([[0, 4, 4, 30, 30], [1, 0, 0, 63, 63]], dtype=torch.float32)
    rois[0, column] = value
    output = torch.zeros(2, 4, 7, 7)
    bins = dict(aligned_height=7, aligned_width=7)
    rest = dict(spatial_scale=0.5, sampling_ratio=ratio, pool_mode=1, aligned=True)
    roi.roi_align_forward(image, rois, output, output, output, **bins, **rest)
    roi.roi_align_backward(output, rois, output, output, torch.zeros_like(image), **bins, **rest)
    bins = dict(pooled_height=7, pooled_width=7, spatial_scale=0.5)
    roi.deform_roi_pool_forward(image, rois, image[:0], output, sampling_ratio=ratio, gamma=0.1, **bins)
    argmax = torch.zeros(2, 4, 7, 7, dtype=torch.int)
    roi.roi_pool_forward(image, rois, output, argmax, **bins)
    roi.roi_pool_backward(output, rois, argmax, torch.zeros_like(image), **bins)
for index in (-1, 2, 1e9, torch.nan, torch.inf):
    rois = torch.tensor([[index, 4, 4, 30, 30]])
    try:
        roi.roi_align_forward(
            image, rois, torch.zeros(1, 4, 7, 7), image, image, aligned_height=7, aligned_width=7, **rest
        )
    except IndexError:
        continue
    raise AssertionError(index)
print('alive')
"""
    assert run_python(code).strip() == 'alive'
