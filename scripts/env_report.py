"""What a report of a problem should say about the machine: versions, GPU, memory, disk, and what is used of each.

    python scripts/env_report.py

It asks this machine alone, and shows neither names of users and machines nor paths of home folders nor variables that
could hold a secret. Where a question cannot be answered it says why. Last line: `unanswered N`.
"""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    'mtpd', 'torch', 'torchvision', 'triton', 'mmdet', 'mmengine', 'mmcv', 'mmcv-lite', 'zarr', 'numcodecs', 'numpy',
    'opencv-python', 'pillow', 'simplejpeg', 'pycocotools', 'faster-coco-eval', 'omegaconf', 'pydantic', 'safetensors',
    'tensorboard',
)  # fmt: skip
# Variables that change what the programs do, and hold no secret.
VARIABLES = ('OMP_NUM_THREADS', 'CUDA_VISIBLE_DEVICES', 'WORLD_SIZE', 'LOCAL_RANK', 'TRITON_INTERPRET')


def system() -> str:
    libc = ' '.join(platform.libc_ver())
    return f'{platform.system()} {platform.release()} {platform.machine()}, {libc}, Python {platform.python_version()}'


def commit() -> str:
    git = ['git', '-C', str(ROOT)]
    head = subprocess.run([*git, 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True, check=False)
    if head.returncode:
        return 'not in a git checkout'
    changed = subprocess.run([*git, 'status', '--porcelain'], capture_output=True, text=True, check=True).stdout
    return head.stdout.strip() + (', with changes' if changed else '')


def packages() -> str:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f'{name} {importlib.metadata.version(name)}')
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    return f'{", ".join(found)}; not installed: {", ".join(missing) or "none"}'


def cpu() -> str:
    lines = Path('/proc/cpuinfo').read_text().splitlines() if Path('/proc/cpuinfo').exists() else []
    models = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return f'{models[0] if models else platform.machine()}, {cores} cores to use, {memory / 2**30:.0f} GiB of memory'


def disk() -> str:
    shared = Path('/dev/shm')
    free = f'{shutil.disk_usage(".").free / 1e9:.0f} GB free here'
    return free + (f', {shutil.disk_usage(shared).total / 1e9:.1f} GB of /dev/shm' if shared.exists() else '')


def gpu() -> str:
    import torch
    from torch.utils.collect_env import get_nvidia_driver_version, run

    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    driver = get_nvidia_driver_version(run) or 'unknown, nvidia-smi gives none'  # type: ignore[no-untyped-call]
    devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    names = [f'{one.name} ({one.total_memory / 2**30:.0f} GiB, sm_{one.major}{one.minor})' for one in devices]
    found = ', '.join(names) or 'none that PyTorch sees'
    return f'{found}; PyTorch built for CUDA {torch.version.cuda}, cuDNN {cudnn}; driver {driver}'


def kernels() -> str:
    import torch

    if importlib.util.find_spec('triton') is None:
        return 'Triton no: losses by plain PyTorch'
    means = 'the fused kernel' if torch.cuda.is_available() else 'plain PyTorch, without a GPU'
    return f'Triton yes; losses by {means}'


def operators() -> str:
    from mtpd.detectors.of_mmdet.runtime import prepare

    prepare()
    from mmcv.ops import get_compiler_version

    is_ours = 'mtpd' in get_compiler_version()
    return 'torchvision, in place of compiled mmcv' if is_ours else 'compiled mmcv'


def codecs() -> str:
    import google_crc32c
    import numcodecs

    names = [name for name in ('zstd', 'blosc', 'pcodec') if name in numcodecs.registry.codec_registry]
    return f'numcodecs with {", ".join(names)}; crc32c in {google_crc32c.implementation}'


def threads() -> str:
    import torch

    given = [f'{name}={os.environ[name]}' for name in VARIABLES if name in os.environ]
    return f'{torch.get_num_threads()} of PyTorch; {", ".join(given) or "no variables set"}'


QUESTIONS: tuple[Callable[[], str], ...] = (
    system, commit, packages, cpu, disk, gpu, kernels, operators, codecs, threads,
)  # fmt: skip


def report() -> tuple[list[str], int]:
    """The lines, and how many questions could not be answered."""
    lines, num_unanswered = [], 0
    for question in QUESTIONS:
        try:
            answer = question()
        except Exception as error:  # A broken installation is what reports are about.
            answer = f'unanswered: {type(error).__name__}: {error}'
            num_unanswered += 1
        lines.append(f'{question.__name__:<10}{without_home(" ".join(answer.split()))}')
    return lines, num_unanswered


def without_home(text: str) -> str:
    """The text without the home folder, the folder of the checkout and the prefix of Python."""
    for path, name in ((ROOT, '<checkout>'), (Path(sys.prefix), '<prefix>'), (Path.home(), '~')):
        # A root folder as home would tear every path apart.
        if path != Path(path.anchor):
            text = text.replace(str(path), name)
    return text


def main() -> None:
    lines, num_unanswered = report()
    print('\n'.join(lines))
    print(f'unanswered {num_unanswered}')


if __name__ == '__main__':
    main()
