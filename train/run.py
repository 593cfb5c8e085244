"""One run of `mtpd-train`: the stages one after another, each starting from the student of the one before."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mtpd.detectors.export import export_config
from mtpd.differences import differences
from mtpd.environment import choose_device, describe_device, versions
from mtpd.errors import InputError
from mtpd.files import write_atomically
from mtpd.interrupt import StopFlag, stop_on_signals
from mtpd_train.build import Stage, build_stage
from mtpd_train.checkpoint import save_student
from mtpd_train.loop import Place, train_stage
from mtpd_train.metrics import MetricsLog, truncate_metrics
from mtpd_train.settings import StageSettings
from mtpd_train.stage_file import dump_stage, load_stages
from mtpd_train.student import inherit, load_backbone, load_student

STUDENT_FILE, CONFIG_FILE, PROGRESS_FILE = 'student.pth', 'student_config.py', 'progress.pth'
METRICS_FILE, RUN_FILE = 'metrics.jsonl', 'run.json'
LIBRARIES = ('mtpd', 'torch', 'torchvision', 'mmdet', 'mmengine', 'numpy', 'opencv-python', 'pycocotools')


def run(options: Mapping[str, Any]) -> None:
    """Checks all stages, then trains them."""
    settings = load_stages(options['stages'], overrides=options['overrides'])
    if options['print_config']:
        print('---\n'.join(dump_stage(stage) for stage in settings), end='')
        return
    out: Path = options['out']
    device = choose_device(options['device'])
    _check_precision(settings, device)
    # Every stage is built before the first is trained: a typo in the last must not show after two days.
    stages = [build_stage(one, number=number) for number, one in enumerate(settings, start=1)]
    for stage in stages:
        _print_stage(stage)
    if options['dry_run']:
        print('Dry run: nothing was trained or written.')
        return
    _prepare_folder(out, _describe(settings, stages, device), resume=options['resume'])
    with stop_on_signals() as stop:
        for stage, stage_settings in zip(stages, settings, strict=True):
            _run_stage(stage, stage_settings, out=out, device=device, stop=stop)
    last = out / f'stage{len(settings)}'
    for name in (STUDENT_FILE, CONFIG_FILE):
        write_atomically(out / name, (last / name).read_bytes())
    print(f'{out / STUDENT_FILE}: the student; {out / CONFIG_FILE} is its mmdet config')


def _run_stage(stage: Stage, settings: StageSettings, *, out: Path, device: torch.device, stop: StopFlag) -> None:
    number, student = stage.number, stage.student
    folder = out / f'stage{number}'
    if (folder / STUDENT_FILE).exists():
        tqdm.write(f'stage {number}: finished before')
        return
    folder.mkdir(parents=True, exist_ok=True)
    progress_file = folder / PROGRESS_FILE
    if not progress_file.exists():
        tqdm.write(f'stage {number}: {_initialise(stage, settings, out=out)}')
        truncate_metrics(out / METRICS_FILE, stage=number, step=-1)
    with MetricsLog(out / METRICS_FILE) as log:
        train_stage(stage, Place(device=device, progress_file=progress_file, log=log, stop=stop))
    write_atomically(
        folder / CONFIG_FILE,
        export_config(student.config, num_classes=student.num_classes, geometry=stage.geometry).encode(),
    )
    save_student(
        folder / STUDENT_FILE,
        student.model,
        classes=tuple(category.name for category in stage.train_set.coco.categories),
        meta={'mtpd_version': version('mtpd'), 'stage': number, 'epochs': settings.optim.epochs},
    )
    progress_file.unlink()


def _initialise(stage: Stage, settings: StageSettings, *, out: Path) -> str:
    """Gives the student its first weights and says where they come from."""
    init = settings.init
    if init.checkpoint is not None:
        source = load_student(stage.student, init.checkpoint)
    elif stage.number > 1:
        source = load_student(stage.student, out / f'stage{stage.number - 1}' / STUDENT_FILE)
    else:
        source = load_backbone(stage.student, init.backbone)
    if init.inherit and stage.cache is not None:
        source += '; ' + inherit(stage.student, stage.cache.teacher_weights(), init.inherit)
    return source


def _check_precision(settings: Sequence[StageSettings], device: torch.device) -> None:
    if device.type == 'cpu' and any(stage.optim.precision == 'fp16' for stage in settings):
        raise InputError('optim.precision is fp16, which needs a GPU; on a CPU use fp32 or bf16')


def _describe(settings: Sequence[StageSettings], stages: Sequence[Stage], device: torch.device) -> dict[str, Any]:
    """The content of run.json."""
    descriptions = {
        str(stage.cache.path): stage.cache.manifest.description for stage in stages if stage.cache is not None
    }
    return {
        'stages': [stage.model_dump(mode='json') for stage in settings],
        'caches': {
            path: {'fingerprint': description.fingerprint, 'provenance': description.provenance}
            for path, description in descriptions.items()
        },
        'device': describe_device(device),
        'versions': versions(LIBRARIES),
    }


def _prepare_folder(out: Path, description: Mapping[str, Any], *, resume: bool) -> None:
    """Makes the run's folder, or checks that what is there is this run.

    Raises:
        InputError: the folder holds another run, or one that was not asked to go on.
    """
    run_file = out / RUN_FILE
    if run_file.exists():
        if not resume:
            raise InputError(f'{out}: already holds a run; add --resume to go on with it, or choose another --out')
        found = json.loads(run_file.read_bytes())
        for part in ('stages', 'caches'):
            old, new = (
                {str(n): item for n, item in enumerate(side[part])} if part == 'stages' else side[part]
                for side in (found, description)
            )
            for field, before, now in differences(old, new)[:1]:
                raise InputError(
                    f'{out}: --resume needs the same configuration, but {part}.{field} was {before} and is {now}; '
                    'restore it or choose another --out'
                )
        return
    if out.exists() and any(out.iterdir()):
        raise InputError(f'{out}: the folder is not empty and holds no run; choose another --out')
    write_atomically(run_file, json.dumps(description, indent=1).encode())


def _print_stage(stage: Stage) -> None:
    losses = ', '.join(sorted(stage.distiller.losses)) or 'none'
    source = 'no cache' if stage.cache is None else f'cache {stage.cache.path} ({", ".join(stage.cache.views)})'
    scale = 'x'.join(map(str, stage.geometry.scale))
    parameters = sum(one.numel() for one in stage.student.model.parameters())
    print(
        f'stage {stage.number}: {parameters / 1e6:.2f} M parameters, {len(stage.train_set.coco.images)} images '
        f'at {scale}, {source}, distillation losses: {losses}, {stage.optim.epochs} epochs'
    )
