"""One run of `mtpd-train`: trains the stages in order, each from the student of the previous one."""

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch

from mtpd.data.account import evaluation_account, suspicions, training_account
from mtpd.errors import InputError, Interrupted, UnavailableError
from mtpd.system.console import exit_code, hush, say, warn
from mtpd.system.environment import choose_device
from mtpd.system.interrupt import StopFlag, stop_on_signals
from mtpd_train.planning import dry_run, plan_lines, plan_stage, require_room, try_predictions
from mtpd_train.processes import World, joined, world_of
from mtpd_train.records.divergence import DivergedError, describe
from mtpd_train.run_folder import (
    DIVERGED_FILE,
    INHERITANCE_FILE,
    METRICS_FILE,
    PROGRESS_FILE,
    STUDENT_FILE,
    claim_folder,
    describe_run,
    held_folder,
    require_usable,
    stage_folder,
)
from mtpd_train.settings.stage_file import dump_stage, load_stages, place_of
from mtpd_train.stage import Stage, build_stages
from mtpd_train.student import inheritance_summary, inheritance_table, load_student
from mtpd_train.training.loop import train_stage
from mtpd_train.training.saving import save_student, write_file


def print_stages(paths: Sequence[Path], *, overrides: Sequence[str]) -> None:
    """Prints stages with all settings."""
    settings = load_stages(paths, overrides=overrides)
    if world_of(os.environ).is_main:
        print('---\n'.join(map(dump_stage, settings)), end='')


def run(
    paths: Sequence[Path],
    *,
    out: Path,
    overrides: Sequence[str],
    resume: bool,
    is_dry_run: bool,
    num_trial_steps: int,
    device_name: str,
) -> None:
    """Checks all stages, then trains them; the options are those of the command line."""
    settings = load_stages(paths, overrides=overrides)
    world = world_of(os.environ)
    if not world.is_main:
        hush()
    device = choose_device(device_name, number=world.local_rank if world.size > 1 else None)
    if device.type == 'cpu' and any(stage.optim.precision == 'fp16' for stage in settings):
        raise InputError('optim.precision is fp16, which needs a GPU; on a CPU use fp32 or bf16')
    smallest = min(stage.data.batch_size for stage in settings)
    if smallest < world.size:
        raise InputError(
            f'data.batch_size is {smallest}, the global batch size of all {world.size} processes: each needs '
            'at least one image; raise it, or start fewer processes'
        )
    try:
        with joined(world, device):
            if world.is_main:
                require_usable(out, settings, resume=resume)
            stages = build_stages(settings, place_of=partial(place_of, paths, overrides), num_processes=world.size)
            if world.is_main:
                _report(stages)
            _forget_unused_masks(stages)
            unfinished = [one for one in stages if not (stage_folder(out, one.number) / STUDENT_FILE).exists()]
            try_predictions(unfinished, device)
            plans = [plan_stage(stage, world) for stage in stages]
            if is_dry_run:
                dry_run(stages, plans, out=out, device=device, world=world, num_trial_steps=num_trial_steps)
                return
            say('\n'.join(plan_lines(plans)))
            if world.is_main and not resume:
                require_room(plans, out)
            with held_folder(out) if world.is_main else nullcontext(), stop_on_signals() as stop:
                if world.is_main:
                    claim_folder(out, describe_run(settings, stages, device), resume=resume)
                for stage in stages:
                    _run_stage(stage, out=out, device=device, stop=stop, world=world)
                    if any(world.any(bool(stop))) and stage is not stages[-1]:
                        raise Interrupted(
                            f'stopped after stage {stage.number}, which is done; run the same command with --resume '
                            'to continue'
                        )
                if world.is_main:
                    last = stage_folder(out, len(stages))
                    for name in (STUDENT_FILE, stages[-1].config_name):
                        write_file(out / name, (last / name).read_bytes())
                    # A stage that had finished before has no weights in this process.
                    load_student(stages[-1].student.module, last / STUDENT_FILE, name='the last student')
                    stages[-1].student.save(out, classes=stages[-1].classes)
                    say(f'{out / STUDENT_FILE}: the student; {out / stages[-1].config_name}: what it is built from')
    except (Interrupted, DivergedError) as error:
        if world.is_main:
            raise
        # All processes stop together; only the first reports it.
        sys.exit(exit_code(error))


def _run_stage(stage: Stage, *, out: Path, device: torch.device, stop: StopFlag, world: World) -> None:
    number, model, folder = stage.number, stage.student.module, stage_folder(out, stage.number)
    student_file, progress_file = folder / STUDENT_FILE, folder / PROGRESS_FILE
    if world.from_main(student_file.exists()):
        if world.is_main:
            # The run may have been killed before it deleted this file.
            progress_file.unlink(missing_ok=True)
        say(f'stage {number}: finished before')
        return
    # The other processes receive the weights of the first in `build_network`.
    if world.is_main:
        if stage.origin is None and not progress_file.exists():
            load_student(model, stage_folder(out, number - 1) / STUDENT_FILE, name=f'stage {number}: student')
        # Before the first student that is kept, so that each of them can be evaluated.
        write_file(folder / stage.config_name, stage.config_text.encode())
        if stage.inheritance:
            write_file(folder / INHERITANCE_FILE, inheritance_table(stage.inheritance).encode())
        # Its content is from an earlier attempt.
        (folder / DIVERGED_FILE).unlink(missing_ok=True)
    files = {'progress_file': progress_file, 'metrics_file': out / METRICS_FILE}
    try:
        train_stage(stage, device=device, stop=stop, world=world, **files)
    except DivergedError as error:
        if not world.is_main:
            raise
        raise describe(error, losses_file=folder / DIVERGED_FILE, progress_file=progress_file) from error
    except RuntimeError as error:
        # torch raises this anywhere, even in the middle of a step: this state must not be saved.
        if 'DataLoader worker' not in str(error):
            raise
        raise UnavailableError(
            f'stage {number}: a process that reads images was killed, probably by the OOM killer '
            '(lower data.workers); earlier saves are intact: run the same command with --resume'
        ) from error
    if world.is_main:
        stage.student.save(folder, classes=stage.classes)
        meta = {'stage': number, 'epochs': stage.settings.optim.epochs}
        save_student(student_file, model, classes=stage.classes, meta=meta)
        progress_file.unlink(missing_ok=True)
    stage.to(torch.device('cpu'))  # The networks of all stages would fill the GPU.


def _report(stages: Sequence[Stage]) -> None:
    """Says what the run will do, and warns of what may be wrong with it."""
    for stage in stages:
        say(_summary(stage))
    workers, cores = max(stage.settings.data.workers for stage in stages), os.cpu_count() or 1
    if workers > cores:
        more = f'more than the {cores} CPU cores of this machine'
        warn(f'data.workers is {workers}, {more}; fewer may be just as fast')
    # Stages mostly share their data.
    training = {stage.train_set.coco.path: stage.train_set.coco for stage in stages}
    tested = {
        one.val_set.coco.path: (one.val_set.coco, one.student.has_masks) for one in stages if one.val_set is not None
    }
    accounts = [training_account(coco) for coco in training.values()]
    accounts += [evaluation_account(coco, with_masks=with_masks) for coco, with_masks in tested.values()]
    for account in filter(None, accounts):
        say(account)
    for path, coco in (training | {path: coco for path, (coco, _) in tested.items()}).items():
        for doubt in suspicions(coco):
            warn(f'{path}: {doubt}')
    # One line for all stages, or for each that differs.
    recipes = {f'stage {stage.number}': (stage.student.name, stage.not_taken_over) for stage in stages}
    if len(stages) > 1 and len(set(recipes.values())) == 1:
        recipes = {'all stages': recipes['stage 1']}
    for who, (name, things) in recipes.items():
        if things:
            what = 'not adopted from the recipe of'
            say(f'{who}: {what} {name} (replaced by the setting in brackets): {", ".join(things)}')
    for stage in stages:
        # Later stages continue with the same student.
        if stage.unfrozen and stage.origin is not None:
            changes = ', '.join(f'{key}: {value}' for key, value in stage.unfrozen.items())
            say(f'stage {stage.number}: layers with random weights are not frozen, the config is changed: {changes}')
        if names := stage.frozen_at_random:
            warn(
                f'stage {stage.number}: {len(names)} parameters keep random weights, because {stage.student.name} '
                f'freezes them; the first is {names[0]}; load weights with `init`, or unfreeze them with `model`'
            )
    for note in dict.fromkeys(note for stage in stages for note in stage.notes):
        warn(note)


def _forget_unused_masks(stages: Sequence[Stage]) -> None:
    """Frees the polygons of the annotations, 0.3 GB for COCO, where no student has masks."""
    if any(stage.student.has_masks for stage in stages):
        return
    for stage in stages:
        for dataset in filter(None, (stage.train_set, stage.val_set)):
            dataset.coco.annotations.forget_masks()


def _summary(stage: Stage) -> str:
    used, total = len(stage.train_set.sizes(with_objects=True)), len(stage.train_set.coco.images)
    images = f'{used} images' if used == total else f'{used} of {total} images (those with objects)'
    geometry, epochs = stage.student.preprocessing.geometry, stage.settings.optim.epochs
    parameters = sum(one.numel() for one in stage.student.module.parameters())
    names = [*stage.distiller.losses, *([] if stage.responses is None else [stage.responses.options.loss])]
    losses = ', '.join(sorted(names)) or 'none'
    start = stage.origin or f'student of stage {stage.number - 1}'
    if stage.inheritance:
        start += f', {inheritance_summary(stage.inheritance)}'
    return (
        f'stage {stage.number}: {parameters / 1e6:.2f} M parameters, {start}; '
        f'{images} at {geometry.scale[0]}x{geometry.scale[1]}, '
        f'{stage.source or "no teacher"}, distillation losses: {losses}, '
        f'{epochs} {"epoch" if epochs == 1 else "epochs"}'
    )
