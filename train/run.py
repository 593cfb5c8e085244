"""One run of `mtpd-train`: the stages one after another, each starting from the student of the one before."""

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mtpd.console import say
from mtpd.environment import choose_device
from mtpd.errors import InputError
from mtpd.files import write_atomically
from mtpd.interrupt import StopFlag, stop_on_signals
from mtpd.outcome import Interrupted
from mtpd_train.building.inheritance_report import inheritance_summary, inheritance_table
from mtpd_train.building.stages import build_stages
from mtpd_train.checkpoint import save_student
from mtpd_train.divergence import DivergedError, describe
from mtpd_train.loop import Place, train_stage
from mtpd_train.planning.account import plan_lines, require_room
from mtpd_train.planning.dry_run import dry_run
from mtpd_train.planning.plan import plan_stage
from mtpd_train.run_folder import (
    CONFIG_FILE,
    DIVERGED_FILE,
    INHERITANCE_FILE,
    METRICS_FILE,
    PROGRESS_FILE,
    STUDENT_FILE,
    claim_folder,
    describe_run,
    held_folder,
    stage_folder,
)
from mtpd_train.settings.commented import dump_stage
from mtpd_train.settings.stage_file import load_stages, place_of
from mtpd_train.settings.stage_settings import StageSettings
from mtpd_train.stage import Stage
from mtpd_train.student import load_student


def run(options: Mapping[str, Any]) -> None:
    """Checks all stages, then trains them."""
    settings = load_stages(options['stages'], overrides=options['overrides'])
    if options['print_config']:
        print('---\n'.join(dump_stage(stage) for stage in settings), end='')
        return
    out: Path = options['out']
    device = choose_device(options['device'])
    _check_precision(settings, device)
    stages = build_stages(settings, place=partial(place_of, options['stages'], options['overrides']))
    for stage in stages:
        say(_summary(stage))
    plans = [plan_stage(stage) for stage in stages]
    if options['dry_run']:
        dry_run(stages, plans, out=out, device=device, num_trial_steps=options['trial_steps'])
        return
    say('\n'.join(plan_lines(plans)))
    if not options['resume']:
        require_room(plans, out)
    with held_folder(out), stop_on_signals() as stop:
        claim_folder(out, describe_run(settings, stages, device), resume=options['resume'])
        for stage in stages:
            _run_stage(stage, out=out, device=device, stop=stop)
            if stop and stage is not stages[-1]:
                raise Interrupted(
                    f'stopped after stage {stage.number}, which is done; run the same command with --resume to go on'
                )
        _publish(out, num_stages=len(stages))


def _publish(out: Path, *, num_stages: int) -> None:
    """The last stage's student is the run's."""
    last = stage_folder(out, num_stages)
    for name in (STUDENT_FILE, CONFIG_FILE):
        write_atomically(out / name, (last / name).read_bytes())
    say(f'{out / STUDENT_FILE}: the student; {out / CONFIG_FILE} is its mmdet config')


def _run_stage(stage: Stage, *, out: Path, device: torch.device, stop: StopFlag) -> None:
    number, model = stage.number, stage.student.model
    folder = stage_folder(out, number)
    student_file, progress_file = folder / STUDENT_FILE, folder / PROGRESS_FILE
    if student_file.exists():
        # A kill may have come between the two.
        progress_file.unlink(missing_ok=True)
        say(f'stage {number}: finished before')
        return
    if stage.origin is None and not progress_file.exists():
        load_student(model, stage_folder(out, number - 1) / STUDENT_FILE, name=f'stage {number}: student')
    if stage.inheritance:
        write_atomically(folder / INHERITANCE_FILE, inheritance_table(stage.inheritance).encode())
    place = Place(device=device, progress_file=progress_file, metrics_file=out / METRICS_FILE, stop=stop)
    try:
        train_stage(stage, place)
    except DivergedError as error:
        raise describe(error, losses_file=folder / DIVERGED_FILE, progress_file=progress_file) from error
    write_atomically(folder / CONFIG_FILE, stage.config_text.encode())
    meta = {'mtpd_version': version('mtpd'), 'stage': number, 'epochs': stage.recipe.epochs}
    save_student(student_file, model, classes=stage.classes, meta=meta)
    progress_file.unlink(missing_ok=True)
    stage.to(torch.device('cpu'))  # The networks of all stages would fill the GPU.


def _check_precision(settings: Sequence[StageSettings], device: torch.device) -> None:
    if device.type == 'cpu' and any(stage.optim.precision == 'fp16' for stage in settings):
        raise InputError('optim.precision is fp16, which needs a GPU; on a CPU use fp32 or bf16')


def _summary(stage: Stage) -> str:
    geometry = stage.student.preprocessing.geometry
    parameters = sum(one.numel() for one in stage.student.model.parameters())
    names = [*stage.distiller.losses, *([] if stage.responses is None else [stage.responses.term.loss])]
    losses = ', '.join(sorted(names)) or 'none'
    start = stage.origin or f'student of stage {stage.number - 1}'
    if stage.inheritance:
        start += f', {inheritance_summary(stage.inheritance)}'
    return (
        f'stage {stage.number}: {parameters / 1e6:.2f} M parameters, {start}; '
        f'{len(stage.train_set.coco.images)} images at {geometry.scale[0]}x{geometry.scale[1]}, '
        f'{stage.source or "no teacher"}, distillation losses: {losses}, '
        f'{stage.recipe.epochs} {"epoch" if stage.recipe.epochs == 1 else "epochs"}'
    )
