"""Training by several processes, each with its share of every batch, by torch's DistributedDataParallel.

What equals what: a batch is of all processes together (`data.batch_size`), and gradients and losses are means over its
images. So they are those of one process with the same batch wherever a loss is a mean over images of equal weight. A
loss that divides by what it counts in a batch (objects, cells, a variance) does so in each process by itself, as
mmdet's do, but for those heads of mmdet that count in all processes. Batch statistics are of the images of process 0,
random draws each process's own.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mtpd.detectors.transforms import Sample
from mtpd_train.processes import World
from mtpd_train.stage import Stage
from mtpd_train.teachers.teacher_source import ReadAhead
from mtpd_train.training.step import step_losses


class StepLosses(nn.Module):
    """`step_losses` with all that it trains as its parameters."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage
        self.model = stage.student.model
        self.distiller = stage.distiller

    def forward(self, samples: Sequence[Sample], ahead: ReadAhead, **options: Any) -> dict[str, Tensor]:
        """The losses of a batch by name."""
        return step_losses(self._stage, samples, ahead, **options)


def build_network(stage: Stage, world: World) -> DistributedDataParallel | None:
    """The stage's losses as a network whose gradients are means over all processes; None for one process.

    All processes get the weights and buffers of process 0.
    """
    if world.size == 1:
        return None
    # Which layers take part depends on the images: a mask head has nothing to do without objects.
    return DistributedDataParallel(StepLosses(stage), find_unused_parameters=True, gradient_as_bucket_view=True)
