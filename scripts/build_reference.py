"""Writes the generated pages of the documentation: the commands, from click, and the stage file, from its settings.

python scripts/build_reference.py             writes docs/reference/commands.md and docs/reference/stage-file.md
python scripts/build_reference.py --check     writes nothing; exit code 1 when a page is out of date
"""

import argparse
import sys
from pathlib import Path

from reference.commands import commands_page
from reference.stage_file import stage_file_page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    ROOT / 'docs' / 'reference' / 'commands.md': commands_page,
    ROOT / 'docs' / 'reference' / 'stage-file.md': stage_file_page,
}


def outdated() -> list[Path]:
    """The pages that are not what the programs say."""
    return [path for path, page in PAGES.items() if not path.is_file() or path.read_text() != page()]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='compare the pages, write nothing')
    options = parser.parse_args()
    for path in outdated():
        print(f'{path.relative_to(ROOT)}: ' + ('out of date' if options.check else 'written'))
        if options.check:
            sys.exit('run: python scripts/build_reference.py')
        path.write_text(PAGES[path]())


if __name__ == '__main__':
    main()
