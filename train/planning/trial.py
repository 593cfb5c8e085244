"""A few real steps of a stage on the clock: what a dry run tells hours and memory by."""

import itertools
import math
import time
from dataclasses import dataclass

import torch
from torch.amp.grad_scaler import GradScaler

from mtpd.detectors.detection import tell_progress
from mtpd_train.data.sampling import share_of
from mtpd_train.optimization.gradient_step import gradient_step
from mtpd_train.optimization.optimizer import build_optimizer
from mtpd_train.planning.plan import PREFETCHED_BATCHES
from mtpd_train.processes import ALONE, World
from mtpd_train.stage import Stage
from mtpd_train.training.step import add_gradient, build_network, loaded


@dataclass(frozen=True)
class Trial:
    """What a trial found.

    Attributes:
        num_steps: optimizer steps on the clock, after some to warm up.
        seconds_per_step: of an optimizer step, with the reading of its images; evaluations come on top.
        gpu_bytes: the most that tensors took on the GPU of this process in these steps; None on a CPU.
    """

    num_steps: int
    seconds_per_step: float
    gpu_bytes: int | None


def run_trial(stage: Stage, device: torch.device, *, num_steps: int, world: World = ALONE) -> Trial:
    """Trains a stage for some steps and leaves it changed: for dry runs only.

    All processes of `world` do so together, as in training. At least `num_steps` steps are timed, more where processes
    read images, and fewer where an epoch is shorter.

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
    num_warm, num_timed = _steps(stage, num_steps)
    # The whole epoch is asked for, so that images are read ahead to the end of the trial and beyond, as in training.
    shares = [share_of(batch, rank=world.rank, size=world.size).requests for batch in stage.epoch_batches(0)]
    num_tried = min(len(shares), (num_warm + num_timed) * recipe.accumulate)
    tell_progress(epoch=0, step=0)
    moments = [time.perf_counter()]
    for number, (samples, ahead) in enumerate(itertools.islice(loaded(stage, shares), num_tried), start=1):
        ends_step = number % recipe.accumulate == 0 or number == num_tried
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
    # An epoch may be short.
    timed = moments[min(num_warm, (len(moments) - 1) // 2) :]
    return Trial(len(timed) - 1, (timed[-1] - timed[0]) / (len(timed) - 1), peak)


def _steps(stage: Stage, num_steps: int) -> tuple[int, int]:
    """How many optimizer steps warm up, and how many are then timed."""
    accumulate, num_workers = stage.recipe.accumulate, stage.num_workers
    if not num_workers:
        return 1, num_steps
    # What was read ahead while the first step warmed up must be used up, or a trial would not wait for images where the
    # run does. Workers, which begin together, hand over a batch each at about the same time: all of them are timed.
    num_rounds = math.ceil(num_steps * accumulate / num_workers)
    return (
        math.ceil(PREFETCHED_BATCHES * num_workers / accumulate),
        math.ceil(num_rounds * num_workers / accumulate),
    )
