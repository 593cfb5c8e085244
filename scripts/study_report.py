#!/usr/bin/env python3
"""Prints the tables of the study and draws them, from the result lines that scripts/study_run.py keeps.

scripts/study_report.py             prints all tables
scripts/study_report.py --update    also writes them into docs/evidence.md, and the plots that it shows
"""

import argparse
import re
from pathlib import Path

from study.noise import noise_table
from study.order import order_table
from study.plan import QUESTIONS
from study.plots import save_plot
from study.running import RESULTS, ROOT, Results, read_results
from study.tables import table

PAGE = ROOT / 'docs' / 'evidence.md'


def all_tables(results: Results) -> dict[str, str]:
    """Name -> table, as Markdown."""
    tables = {name: table(question, results) for name, question in QUESTIONS.items()}
    return tables | {'order': order_table(results), 'noise': noise_table()}


def with_tables(page: str, results: Results) -> str:
    """The page with the table between each pair of `<!-- table NAME -->` and `<!-- end -->` made again."""
    tables = all_tables(results)

    def replace(match: re.Match[str]) -> str:
        return f'<!-- table {match[1]} -->\n{tables[match[1]]}\n<!-- end -->'

    return re.sub(r'<!-- table (\w+) -->.*?<!-- end -->', replace, page, flags=re.DOTALL)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--results', type=Path, default=RESULTS, help='result lines (%(default)s)')
    parser.add_argument('--update', action='store_true', help='writes docs/evidence.md and its plots')
    options = parser.parse_args()
    results = read_results(options.results)
    print('\n\n'.join(all_tables(results).values()))
    if options.update:
        page = with_tables(PAGE.read_text(), results)
        PAGE.write_text(page)
        for name in re.findall(r'\(evidence/(\w+)\.png\)', page):
            save_plot(QUESTIONS[name], results, RESULTS.parent / f'{name}.png')


if __name__ == '__main__':
    main()
