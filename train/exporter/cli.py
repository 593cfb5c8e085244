"""`mtpd-export`: the command line. Imports nothing heavy, so that --help is instant."""

from pathlib import Path
from typing import Any

import click

from mtpd.command_line import CONTEXT, LocalPath, complete_model, examples, output_options, parse_scale, require_pairs
from mtpd.system.console import reported

EXAMPLES = examples(
    'mtpd-export runs/progressive --out student.onnx',
    'mtpd-export runs/progressive/stage1/best.pth --out student.onnx --size 416x416 --batch 1',
    'mtpd-export runs/progressive --out student_int8.onnx --int8 --benchmark',
    'mtpd-export runs/progressive --out student.pt2 --format torch',
    'mtpd-export runs/progressive --out heads.onnx --raw --size 416x416',
    'mtpd-export --model hf:my_detector --coco data/coco --out detector.onnx',
    'eval "$(_MTPD_EXPORT_COMPLETE=bash_source mtpd-export)"   # completion; also zsh_source, fish_source',
)

_path, _folder, _file = LocalPath(), LocalPath(file_okay=False), LocalPath(dir_okay=False)


@click.command(epilog=EXAMPLES, context_settings=CONTEXT)
@click.argument('run', required=False, metavar='[RUN]', type=_path)
@click.option(
    '--model',
    metavar='M',
    shell_complete=complete_model,
    help='Instead of RUN: zoo model, alias (r101, ...), mmdet config (.py), torchvision:NAME or hf:FOLDER.',
)
@click.option('--checkpoint', type=_file, help="Weights file.  [default: the run's, or the zoo's]")
@click.option(
    '--trust-checkpoint',
    is_flag=True,
    help='Unpickle a checkpoint that holds more than tensors. This can run code from the file.',
)
@click.option('--out', type=_file, required=True, metavar='FILE', help='File to write.')
@click.option(
    '--format', type=click.Choice(['onnx', 'torch']), default='onnx', help='ONNX, or an archive of torch.export.'
)
@click.option(
    '--raw',
    is_flag=True,
    help='Write the outputs of the heads, not boxes, and FILE.json with what decodes them. One-stage detectors only.',
)
@click.option(
    '--scale', callback=parse_scale, metavar='1333x800', help="Resize of the images.  [default: the detector's]"
)
@click.option(
    '--size',
    callback=parse_scale,
    metavar='WxH',
    help='Fixed size of the input in px.  [default: any size, or that of the detector]',
)
@click.option('--batch', type=click.IntRange(1), help='Fixed number of images.  [default: any]')
@click.option('--half', is_flag=True, help='Weights in half precision; boxes are still computed in float32.')
@click.option('--int8', is_flag=True, help='Weights and activations of convolutions as 8-bit integers. ONNX only.')
@click.option(
    '--calibrate', type=_folder, metavar='DIR', help="Images for --int8.  [default: the run's training images]"
)
@click.option('--num-calibrate', type=click.IntRange(1), default=100, help='Number of images of --calibrate.')
@click.option(
    '--percentile',
    type=click.FloatRange(50, 100),
    default=99.99,
    help='Fraction of activations, in percent, inside the range of --int8. If AP falls, try 99.9.',
)
@click.option('--coco', type=_folder, help="Data set in COCO's own layout, to compare on.  [default: the run's]")
@click.option('--split', default='val2017', help='Split of --coco.')
@click.option('--images', type=_folder, help='Image folder, instead of --coco and --split.')
@click.option('--annotations', type=_file, help='COCO annotation file; required with --images.')
@click.option('--samples', 'num_samples', type=click.IntRange(1), default=4, help='Number of images to compare on.')
@click.option(
    '--num-evaluate',
    type=click.IntRange(0),
    default=500,
    help='Number of images for the loss of AP of --half and --int8; 0: do not evaluate.',
)
@click.option('--license', metavar='TEXT', help='Licence of the weights, to be written into the file.')
@click.option(
    '--benchmark', is_flag=True, help='Measure latency and memory on this CPU, PyTorch against the file. ONNX only.'
)
@output_options
def main(
    verbose: bool,
    quiet: bool,
    run: Path | None,
    model: str | None,
    half: bool,
    int8: bool,
    coco: Path | None,
    images: Path | None,
    annotations: Path | None,
    **others: Any,
) -> None:
    """Export a detector to one file that takes uint8 images and gives boxes, scores and labels.

    RUN is a run folder of mtpd-train, one of its stage folders, or a checkpoint in one. Normalisation, padding,
    decoding and non-maximum suppression are in the file. It is written only if it finds what the detector finds in
    sample images. Evaluate it with mtpd-eval FILE.onnx. Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted.
    """
    if (run is None) == (model is None):
        raise click.UsageError('give either a run or a checkpoint of one, or --model')
    require_pairs(images, annotations)
    if images is not None and coco is not None:
        raise click.UsageError('--images and --coco exclude each other: remove one of them')
    if half and int8:
        raise click.UsageError('--half and --int8 exclude each other: remove one of them')
    for option in ('raw', 'benchmark'):
        if others['format'] == 'torch' and others[option]:
            raise click.UsageError(f'--{option} needs --format onnx')
    if int8 and others['format'] == 'torch':
        raise click.UsageError('--int8 needs --format onnx')
    if others['raw'] and (int8 or others['benchmark']):
        raise click.UsageError('--raw excludes --int8 and --benchmark')
    with reported(verbose=verbose, quiet=quiet):
        from mtpd_train.exporter.run import ExportOptions, export_detector

        export_detector(
            ExportOptions(
                run=run,
                model=model,
                precision='half' if half else 'int8' if int8 else 'float32',
                coco=coco,
                images=images,
                annotations=annotations,
                **others,
            )
        )
