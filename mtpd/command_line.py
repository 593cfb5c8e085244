"""What the command lines of several programs share. Imports nothing heavy, so that --help is instant."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from mtpd.system.files import is_url

# Settings of every command.
CONTEXT: dict[str, Any] = {'help_option_names': ['-h', '--help'], 'max_content_width': 110, 'show_default': True}
Command = TypeVar('Command', bound=Callable[..., Any])


class LocalPath(click.Path):
    """A path on this machine: a URL would become the path of a folder `s3:`."""

    def __init__(self, **options: bool) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and is_url(value):
            self.fail(f'{value!r} is a URL; give a path on this machine', param, ctx)
        return super().convert(value, param, ctx)


class CachePath(LocalPath):
    """A folder, or the URL of a place in an object store, which stays a string."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if isinstance(value, str) and '://' in value else super().convert(value, param, ctx)


def output_options(command: Command) -> Command:
    """Verbosity options, as `mtpd.system.console.reported` takes them."""
    verbose = click.option('-v', '--verbose', is_flag=True, help='Show tracebacks.')
    quiet = click.option('-q', '--quiet', is_flag=True, help='Show results, warnings and errors only; no progress.')
    # The help lists options in the reverse of the order in which they are applied.
    return quiet(verbose(command))


def examples(*commands: str) -> str:
    """The end of a help: commands to copy, line by line."""
    return '\n'.join(['\b', 'Examples:', *(f'  {command}' for command in commands)])


def parse_scale(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """The callback of --scale: WIDTHxHEIGHT, px."""
    if value is None:
        return None
    parts = value.lower().split('x')
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(f'{value!r}: expected two whole numbers of pixels, for instance 1333x800')
    return int(parts[0]), int(parts[1])


def require_pairs(images: Path | None, annotations: Path | None) -> None:
    """Refuses an image folder without its annotation file, and the other way round."""
    if (images is None) != (annotations is None):
        raise click.UsageError('--images and --annotations must be given together')


def complete_model(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What a shell offers where a model is named: aliases of the zoo, else files."""
    from mtpd.detectors.of_mmdet.zoo import ALIASES  # Not at the top: it would slow down --help.

    aliases = [CompletionItem(name) for name in ALIASES if name.startswith(incomplete)]
    return aliases or [CompletionItem(incomplete, type='file')]
