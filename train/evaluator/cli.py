"""`mtpd-eval`: the command line. Imports nothing heavy, so that --help is instant."""

from pathlib import Path
from typing import Any

import click

from mtpd.command_line import CONTEXT, LocalPath, complete_model, output_options, parse_scale, require_pairs
from mtpd.system.console import reported

EXAMPLES = """
\b
Examples:
  mtpd-eval runs/progressive
  mtpd-eval runs/progressive/stage1 --coco data/coco --classes
  mtpd-eval student.onnx --coco data/coco
  mtpd-eval --model r101 --coco data/coco --batch-size 8
  mtpd-eval --model my_config.py --checkpoint my.pth --images data/my/images --annotations data/my/val.json
  mtpd-eval runs/progressive --json scores.json --results detections.json --backend faster
  eval "$(_MTPD_EVAL_COMPLETE=bash_source mtpd-eval)"   # completion; also zsh_source, fish_source
"""

_path, _folder = LocalPath(), LocalPath(file_okay=False)
_file = LocalPath(dir_okay=False)


@click.command(epilog=EXAMPLES, context_settings=CONTEXT)
@click.argument('run', required=False, metavar='[RUN]', type=_path)
@click.option(
    '--model',
    metavar='M',
    shell_complete=complete_model,
    help='Instead of RUN: zoo model, alias (r101, swin_l, ...), mmdet config (.py), torchvision:NAME or hf:FOLDER.',
)
@click.option('--checkpoint', type=_file, help="Weights file.  [default: the run's, or the zoo's]")
@click.option(
    '--trust-checkpoint',
    is_flag=True,
    help='Unpickle a checkpoint that holds more than tensors. This can run code from the file.',
)
@click.option(
    '--coco', type=_folder, help="Data set in COCO's own layout.  [default: the run's; with --model data/coco]"
)
@click.option('--split', default='val2017', help='Split of --coco.')
@click.option('--images', type=_folder, help='Image folder, instead of --coco and --split.')
@click.option('--annotations', type=_file, help='COCO annotation file; required with --images.')
@click.option(
    '--scale', callback=parse_scale, metavar='1333x800', help="Resize of the images.  [default: the config's]"
)
@click.option('--batch-size', type=click.IntRange(1), default=4, help='Images per forward pass.')
@click.option('--workers', type=click.IntRange(0), default=2, help='Processes that read images.')
@click.option('--device', type=click.Choice(['auto', 'cpu', 'cuda']), default='auto')
@click.option(
    '--backend',
    type=click.Choice(['pycocotools', 'faster']),
    default='pycocotools',
    help='AP implementation; faster is faster-coco-eval, same results: pip install faster-coco-eval.',
)
@click.option('--classes', 'with_classes', is_flag=True, help='Also print the AP of each class.')
@click.option(
    '--json', 'json_file', type=_file, metavar='OUT.json', help='Write the metrics as JSON, with the AP of each class.'
)
@click.option(
    '--results', 'results_file', type=_file, metavar='OUT.json', help='Write all detections in the COCO results format.'
)
@output_options
def main(
    verbose: bool,
    quiet: bool,
    run: Path | None,
    model: str | None,
    coco: Path | None,
    images: Path | None,
    annotations: Path | None,
    **others: Any,
) -> None:
    """Evaluate a student or teacher on an annotated set: COCO AP of boxes and masks.

    RUN is a run folder of mtpd-train, one of its stage folders, a checkpoint in one, or an ONNX file of mtpd-export.
    The default data set is the validation set of the run. Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted.
    """
    if (run is None) == (model is None):
        raise click.UsageError('give either a run, a checkpoint or an ONNX file, or --model')
    require_pairs(images, annotations)
    if images is not None and coco is not None:
        raise click.UsageError('--images and --coco exclude each other: remove one of them')
    if model is not None and images is None and coco is None:
        coco = Path('data/coco')
    with reported(verbose=verbose, quiet=quiet):
        from mtpd_train.evaluator.run import EvalOptions, evaluate_model

        evaluate_model(EvalOptions(run=run, model=model, coco=coco, images=images, annotations=annotations, **others))
