"""A few real steps of a stage on the clock: what a dry run tells hours and memory by."""

import itertools
import time
from dataclasses import dataclass

import torch
from torch.amp.grad_scaler import GradScaler

from mtpd_train.data.sampling import share_of
from mtpd_train.optimization.gradient_step import gradient_step
from mtpd_train.optimization.optimizer import build_optimizer
from mtpd_train.processes import ALONE, World
from mtpd_train.stage import Stage
from mtpd_train.training.data_parallel import build_network
from mtpd_train.training.step import add_gradient, loaded


@dataclass(frozen=True)
class Trial:
    """What a trial found.

    Attributes:
        num_steps: optimizer steps on the clock, after one to warm up.
        seconds_per_step: of an optimizer step, with the reading of its images; evaluations come on top.
        gpu_bytes: the most that tensors took on the GPU of this process in these steps; None on a CPU.
    """

    num_steps: int
    seconds_per_step: float
    gpu_bytes: int | None


def run_trial(stage: Stage, device: torch.device, *, num_steps: int, world: World = ALONE) -> Trial:
    """Trains a stage for `num_steps` steps and one before them, and leaves it changed: for dry runs only.

    All processes of `world` do so together, as in training.

    Raises:
        MtpdError: an image or a map cannot be read.
    """
    recipe, on_gpu = stage.recipe, device.type == 'cuda'
    stage.to(device)
    stage.student.model.train()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    networks = (stage.student.model, stage.distiller)
    parameters = [one for one in itertools.chain(*(one.parameters() for one in networks)) if one.requires_grad]
    # A rate that changes nothing: untrained networks must not diverge under the trial.
    optimizer = build_optimizer(parameters, kind=recipe.optimizer, lr=1e-3 * recipe.lr, momentum=recipe.momentum)
    scaler = GradScaler(device.type, enabled=recipe.precision == 'fp16')
    network = build_network(stage, world)
    batches = stage.epoch_batches(0)[: (1 + num_steps) * recipe.accumulate]
    shares = [share_of(batch, rank=world.rank, size=world.size).requests for batch in batches]
    moments = [time.perf_counter()]
    for number, (samples, ahead) in enumerate(loaded(stage, shares), start=1):
        ends_step = number % recipe.accumulate == 0 or number == len(batches)
        add_gradient(
            stage,
            samples,
            ahead,
            share=1 / recipe.accumulate,
            progress=0.0,
            scaler=scaler,
            device=device,
            network=network,
            ends_step=ends_step,
        )
        if not ends_step:
            continue
        gradient_step(optimizer, scaler, grad_clip=recipe.grad_clip)
        if on_gpu:
            torch.cuda.synchronize(device)
        moments.append(time.perf_counter())
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else None
    stage.to(torch.device('cpu'))
    # The first step warms up, unless it is the only one that the data gives.
    timed = moments[1:] if len(moments) > 2 else moments
    return Trial(len(timed) - 1, (timed[-1] - timed[0]) / (len(timed) - 1), peak)
