"""The kernel as an operator of PyTorch: its registration, torch.compile, autocast. On a GPU or in the interpreter."""

import shutil

import pytest
import torch
from torch import Tensor, nn

from mtpd.kernels.fused_mse import Operands, fused_weighted_mse
from mtpd.kernels.reference import reference_weighted_mse


def inputs(device: torch.device, dtype: torch.dtype = torch.float16) -> Operands:
    generator = torch.Generator().manual_seed(0)
    shape = (2, 4, 5, 7)
    student = torch.randn(shape, generator=generator).to(device, dtype)
    teacher = torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8).to(device)
    weights = torch.rand((2, 1, 5, 7), generator=generator).to(device)
    scale = (0.02 * torch.rand((2, 2, 4), generator=generator)).to(device)
    return student, teacher, weights, scale, torch.rand((2, 4), generator=generator).to(device)


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'sliced'])
def test_registration(layout: str, device: torch.device) -> None:
    """Schemas, fake results and traces of dynamic shapes, as PyTorch itself checks them."""
    student, teacher, weights, scale, channel_weights = inputs(device)
    if layout == 'channels_last':
        student = student.contiguous(memory_format=torch.channels_last)
    if layout == 'sliced':
        student, teacher, weights = (one[..., ::2, 1:] for one in (student, teacher, weights))
        scale = None
    other = inputs(device)
    operands = ([student, other[0]], [teacher, other[1]], [weights, other[2]], [scale, None], [channel_weights, None])
    torch.library.opcheck(torch.ops.mtpd.weighted_mse.default, operands)
    losses, totals = torch.ops.mtpd.weighted_mse(*operands)
    torch.library.opcheck(torch.ops.mtpd.weighted_mse_backward.default, (losses, *operands, totals))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('g++') is None, reason='inductor needs a C++ compiler')
def test_torch_compile(device: torch.device) -> None:
    student, teacher, weights, scale, channel_weights = inputs(device)

    def losses(student: Tensor) -> Tensor:
        activated = student.relu()
        # Two losses of one level share tensors.
        one, two = fused_weighted_mse(
            [(activated, teacher, weights, scale, channel_weights), (activated, teacher, weights, None, None)]
        )
        loss: Tensor = 3 * one + two + activated.float().mean()
        return loss

    results = []
    for function in (losses, torch.compile(losses, fullgraph=True)):
        leaf = student.detach().requires_grad_()
        loss = function(leaf)
        results.append((loss, *torch.autograd.grad(loss, leaf)))
    torch.testing.assert_close(results[1], results[0])


def test_autocast(device: torch.device) -> None:
    student, teacher, weights, scale, channel_weights = inputs(device, torch.float32)
    convolution = nn.Conv2d(4, 4, 1, device=device)
    with torch.autocast(device.type, dtype=torch.float16):
        output = convolution(student)
        (loss,) = fused_weighted_mse([(output, teacher, weights, scale, channel_weights)])
    gradients = torch.autograd.grad(loss, list(convolution.parameters()), retain_graph=True)
    assert output.dtype == torch.float16
    assert loss.dtype == torch.float32
    wanted = reference_weighted_mse(output, teacher, weights, scale, channel_weights)
    torch.testing.assert_close(loss, wanted)
    wanted_gradients = torch.autograd.grad(wanted, list(convolution.parameters()))
    torch.testing.assert_close(gradients, wanted_gradients, rtol=2e-3, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_cuda_graph(device: torch.device) -> None:
    """Captured once, it follows what is written into its inputs."""
    student, *constants = inputs(device)
    student.requires_grad_()

    def step() -> tuple[Tensor, Tensor]:
        teacher, weights, scale, channel_weights = constants
        assert teacher is not None
        assert weights is not None
        (loss,) = fused_weighted_mse([(student, teacher, weights, scale, channel_weights)])
        return loss.detach(), torch.autograd.grad(loss, student)[0]

    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        step()  # compiles
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for factor in (0.5, 2.0):
        with torch.no_grad():
            student.mul_(factor)
        graph.replay()
        for found, wanted in zip(captured, step(), strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)
