"""`mtpd-report`: the command line. Imports nothing heavy, so that --help is instant."""

from collections.abc import Sequence
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from mtpd.command_line import CONTEXT, LocalPath, output_options
from mtpd.system.console import reported

PAGE = 'page'

EXAMPLES = """
\b
Examples:
  mtpd-report runs/progressive
  mtpd-report runs/progressive --out progressive.html --images 12
  mtpd-report compare runs/alone runs/direct runs/progressive
  mtpd-report tensorboard runs/progressive
  eval "$(_MTPD_REPORT_COMPLETE=bash_source mtpd-report)"   # completion; also zsh_source, fish_source
"""

PAGE_EXAMPLES = """
\b
Examples:
  mtpd-report runs/progressive
  mtpd-report page runs/progressive --out progressive.html --images 12
"""

COMPARE_EXAMPLES = """
\b
Examples:
  mtpd-report compare runs/alone runs/direct runs/progressive
  mtpd-report compare runs/* --json
  mtpd-report compare runs/alone runs/direct --html compare.html
"""

TENSORBOARD_EXAMPLES = """
\b
Examples:
  mtpd-report tensorboard runs/progressive && tensorboard --logdir runs/progressive/tensorboard
"""

_folder = LocalPath(file_okay=False)
_html = LocalPath(dir_okay=False)
_run = click.argument('run', type=_folder, metavar='RUN')


class _PageByDefault(click.Group):
    """`mtpd-report RUN` is short for `mtpd-report page RUN`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, *CONTEXT['help_option_names']}:
            args = [PAGE, *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # Of a folder whose name starts as a command's, the shell offers that command.
        return super().shell_complete(ctx, incomplete) or [CompletionItem(incomplete, type='dir')]


@click.group(cls=_PageByDefault, epilog=EXAMPLES, context_settings=CONTEXT, subcommand_metavar='[COMMAND] RUN...')
def main() -> None:
    """Show runs of mtpd-train, finished or not: as an HTML page, as a comparison, or in TensorBoard.

    The default COMMAND is page. Run it in the directory where mtpd-train ran: paths of data and caches are those of the
    stage files. Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted.
    """


@main.command(PAGE, epilog=PAGE_EXAMPLES)
@_run
@click.option('--out', type=_html, metavar='FILE.html', help='Output file.  [default: RUN/report.html]')
@click.option(
    '--images', type=click.IntRange(0, 100), default=4, help='Number of images with predictions and feature maps.'
)
@click.option('--min-score', type=click.FloatRange(0, 1), default=0.4, help='Minimum score of the detections shown.')
@click.option('--device', type=click.Choice(['auto', 'cpu', 'cuda']), default='auto')
@output_options
def page(verbose: bool, quiet: bool, run: Path, out: Path | None, images: int, min_score: float, device: str) -> None:
    """Write one HTML page about RUN.

    The page is self-contained. Curves, AP by class and size, speed and memory come from RUN/metrics.jsonl.
    Predictions and feature maps need the weights, the images and the caches; if they are missing, the page
    states why the section is empty.
    """
    with reported(verbose=verbose, quiet=quiet):
        from mtpd_train.report.page import write_page

        write_page(run, out=out, num_images=images, min_score=min_score, device=device)


@main.command(epilog=COMPARE_EXAMPLES)
@click.argument('runs', nargs=-1, required=True, type=_folder, metavar='RUN...')
@click.option('--json', 'as_json', is_flag=True, help='Print a JSON list with one object per run.')
@click.option('--html', type=_html, metavar='FILE.html', help='Also write the table and the AP curves as an HTML page.')
@output_options
def compare(verbose: bool, quiet: bool, runs: Sequence[Path], as_json: bool, html: Path | None) -> None:
    """Compare RUNs in a table.

    Shows teacher, losses, length, AP, speed and memory of each stage.
    """
    with reported(verbose=verbose, quiet=quiet):
        from mtpd_train.report.page import compare_runs

        compare_runs(runs, as_json=as_json, html=html)


@main.command(epilog=TENSORBOARD_EXAMPLES)
@_run
@click.option('--out', type=_folder, metavar='DIR', help='Folder for the event files.  [default: RUN/tensorboard]')
@output_options
def tensorboard(verbose: bool, quiet: bool, run: Path, out: Path | None) -> None:
    """Export RUN to TensorBoard.

    Replaces the event files of an earlier export. Needs the package tensorboard: pip install tensorboard.
    """
    with reported(verbose=verbose, quiet=quiet):
        from mtpd_train.report.tensorboard import export

        export(run, out=out)
