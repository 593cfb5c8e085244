"""`mtpd-train`: the command line. Imports nothing heavy, so that --help is instant."""

import os
from pathlib import Path

import click

from mtpd.command_line import CONTEXT, LocalPath, output_options
from mtpd.system.console import reported

EXAMPLES = """
\b
Examples:
  mtpd-train stage1.yaml stage2.yaml --out runs/progressive
  mtpd-train stage1.yaml --out runs/try --set optim.lr=0.005 --set data.workers=8 --dry-run
  mtpd-train stage1.yaml stage2.yaml --out runs/progressive --resume
  torchrun --nproc-per-node 4 --no-python mtpd-train stage1.yaml stage2.yaml --out runs/progressive
  mtpd-train stage1.yaml --print-config > all_settings.yaml
  eval "$(_MTPD_TRAIN_COMPLETE=bash_source mtpd-train)"   # completion; also zsh_source, fish_source
"""


def _print_schema(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        from mtpd_train.settings.stage_file import schema_text

        click.echo(schema_text(), nl=False)
        context.exit()


@click.command(epilog=EXAMPLES, context_settings=CONTEXT)
@click.argument('stages', nargs=-1, required=True, metavar='STAGE.yaml...', type=LocalPath())
@click.option('--out', type=LocalPath(file_okay=False), metavar='RUN', help='Run folder.')
@click.option(
    '--set', 'overrides', multiple=True, metavar='KEY.PATH=VALUE', help='Override a setting in every stage; repeatable.'
)
@click.option('--resume', is_flag=True, help='Resume the run in RUN from its last save.')
@click.option(
    '--dry-run', 'is_dry_run', is_flag=True, help='Check all stages, teachers and data, print the plan; do not train.'
)
@click.option(
    '--trial-steps',
    'num_trial_steps',
    type=click.IntRange(0),
    default=3,
    metavar='N',
    help='With --dry-run: training steps per stage to measure time and memory; 0: none.',
)
@click.option(
    '--print-config', is_flag=True, help='Print every stage with all settings and their descriptions, then exit.'
)
@click.option(
    '--print-schema',
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_schema,
    help='Print the JSON schema of stage files, for editors, then exit.',
)
@click.option('--device', type=click.Choice(['auto', 'cpu', 'cuda']), default='auto')
@output_options
def main(
    verbose: bool,
    quiet: bool,
    stages: tuple[Path, ...],
    out: Path | None,
    overrides: tuple[str, ...],
    resume: bool,
    is_dry_run: bool,
    num_trial_steps: int,
    print_config: bool,
    device: str,
) -> None:
    """Train a student in stages, each learning from one teacher or from none.

    A stage reads its teacher's cache (`cache:`), or runs the teacher in the loop (`teacher:`).

    Stage k starts from the student of stage k-1. Writes student.pth, for the student's own library, metrics.jsonl and
    run.json.
    Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted.
    """
    if out is None and not print_config:
        raise click.UsageError("Missing option '--out'.")
    with reported(verbose=verbose, quiet=quiet):
        # Silences a warning of DistributedDataParallel about its own options; torch reads this on import.
        os.environ.setdefault('TORCH_CPP_LOG_LEVEL', 'ERROR')
        from mtpd_train.run import print_stages, run

        if print_config:
            print_stages(stages, overrides=overrides)
        elif out is not None:
            run(
                stages,
                out=out,
                overrides=overrides,
                resume=resume,
                is_dry_run=is_dry_run,
                num_trial_steps=num_trial_steps,
                device_name=device,
            )
