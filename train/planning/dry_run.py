"""A dry run: everything is opened, built and tried, nothing is written."""

from collections.abc import Sequence
from pathlib import Path

import torch

from mtpd_train.building.inheritance_report import inheritance_table
from mtpd_train.planning.account import plan_lines, require_room, room_lines
from mtpd_train.planning.plan import StagePlan
from mtpd_train.planning.trial import run_trial
from mtpd_train.processes import World
from mtpd_train.stage import Stage


def dry_run(
    stages: Sequence[Stage],
    plans: Sequence[StagePlan],
    *,
    out: Path,
    device: torch.device,
    world: World,
    num_trial_steps: int,
) -> None:
    """Prints what the run would take, by a few real steps of each stage unless `num_trial_steps` is 0.

    All processes of `world` take these steps; the first of them prints.

    Raises:
        MtpdError: there is no room, or a step of the trial fails.
    """
    for stage in stages:
        if stage.inheritance and world.is_main:
            print(inheritance_table(stage.inheritance))
    trials = [run_trial(stage, device, num_steps=num_trial_steps, world=world) for stage in stages if num_trial_steps]
    if not world.is_main:
        return
    print('\n'.join([*plan_lines(plans, trials), *room_lines(plans, out, device)]))
    require_room(plans, out)
    print('Dry run: nothing was trained or written.')
