#!/usr/bin/env python3
"""Prints the tables of the study and draws them, from the result lines that scripts/study_run.py keeps.

scripts/study_report.py             prints all tables
scripts/study_report.py --update    also writes them into docs/evidence.md, and the plots that it shows
"""

import argparse
import re
from pathlib import Path

from study.order import order_table
from study.plan import QUESTIONS
from study.plots import save_plot
from study.running import RESULTS, ROOT, Results, read_results
from study.tables import table

PAGE = ROOT / 'docs' / 'evidence.md'


def with_tables(page: str, results: Results) -> str:
    """The page with the table between each pair of `<!-- table NAME -->` and `<!-- end -->` made again."""

    def replace(match: re.Match[str]) -> str:
        text = order_table(results) if match[1] == 'order' else table(QUESTIONS[match[1]], results)
        return f'<!-- table {match[1]} -->\n{text}\n<!-- end -->'

    return re.sub(r'<!-- table (\w+) -->.*?<!-- end -->', replace, page, flags=re.DOTALL)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--results', type=Path, default=RESULTS, help='result lines (%(default)s)')
    parser.add_argument('--update', action='store_true', help='writes docs/evidence.md and its plots')
    options = parser.parse_args()
    results = read_results(options.results)
    print('\n\n'.join([*(table(question, results) for question in QUESTIONS.values()), order_table(results)]))
    if options.update:
        page = with_tables(PAGE.read_text(), results)
        PAGE.write_text(page)
        for name in re.findall(r'\(evidence/(\w+)\.png\)', page):
            save_plot(QUESTIONS[name], results, RESULTS.parent / f'{name}.png')


if __name__ == '__main__':
    main()
