"""The study of distillation: what it plans, its statistics, and that its page holds the figures of its result lines."""

import re
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'scripts'))
from study.order import step_costs
from study.plan import LOSSES, QUESTIONS, Chain, Stage, chain_name
from study.plots import save_plot
from study.running import Setting, beside, read_results, run_folder, stage_file
from study.tables import Estimate, difference, table
from study_report import PAGE, with_tables

from mtpd_train.settings.stage_file import load_stages

SETTING = Setting(Path('/work'), 'cpu', 1)
CHAINS: list[Chain] = [chain for question in QUESTIONS.values() for chain in question.rows.values()]
STAGES: list[Stage] = list({stage.name: stage for chain in CHAINS for stage in chain}.values())


def test_chains_with_one_name_are_one_chain() -> None:
    assert len({chain_name(chain) for chain in CHAINS}) == len(set(CHAINS))


def test_every_chain_has_files_of_its_own() -> None:
    files = {beside(run_folder(chain, 0, SETTING), '.yaml') for chain in CHAINS}
    assert len(files) == len(set(CHAINS))


@pytest.mark.parametrize('stage', STAGES)
def test_stage_files_are_understood(stage: Stage, tmp_path: Path) -> None:
    file = tmp_path / 'stage.yaml'
    file.write_text(yaml.safe_dump(stage_file(stage, seed=3, number=1, before=None, setting=SETTING)))
    (settings,) = load_stages([file])
    assert settings.optim.epochs == stage.epochs
    losses = [entry['loss'] for entry in LOSSES[stage.loss]] if stage.teacher else []
    assert [one.loss for one in settings.distill] == losses * (2 if stage.fade else 1)
    assert isinstance(settings.cache, tuple) == (stage.other is not None)


def test_questions_compare_equally_many_epochs() -> None:
    for name, question in QUESTIONS.items():
        lengths = {sum(stage.epochs for stage in chain) for chain in question.rows.values()}
        assert name.endswith('convergence') or len(lengths) == 1, name


def test_differences_are_paired_by_seed() -> None:
    first, second = (Stage('strong'),), (Stage(),)
    results = {(chain_name(first), seed): 50.0 + 10 * seed + 2 for seed in range(3)}
    results |= {(chain_name(second), seed): 50.0 + 10 * seed for seed in range(1, 4)}
    assert difference(results, first, second) == Estimate(2.0, 0.0, 2)


@pytest.mark.parametrize(
    ('values', 'counts'),
    [([2.0, 2.1, 1.9], True), ([-2.0, -2.1, -1.9], True), ([5.0, -5.0, 2.0], False), ([5.0, 5.1], False)],
)
def test_a_difference_counts_beyond_two_standard_errors(values: list[float], counts: bool) -> None:
    estimate = Estimate.of(values)
    assert estimate is not None
    assert estimate.counts is counts


def test_table_says_what_is_not_trained(tmp_path: Path) -> None:
    question = QUESTIONS['direct']
    chains = list(question.rows.values())
    results = {
        (chain_name(chain), seed): 50.0 + 3 * number for number, chain in enumerate(chains[:3]) for seed in range(3)
    }
    text = table(question, results)
    assert '**+3.0 ± 0.0**' in text
    assert text.count('not trained yet') == len(chains) - 3
    save_plot(question, results, tmp_path / 'plot.png')
    assert (tmp_path / 'plot.png').read_bytes().startswith(b'\x89PNG')


def test_costs_of_a_sequence_are_those_of_its_steps() -> None:
    costs = {('student', 'weak'): 0.3, ('weak', 'strong'): 0.2}
    assert step_costs((Stage('weak'), Stage('strong'), Stage('strong')), costs) == [0.3, 0.2, 0.0]


def test_the_page_holds_the_figures_of_the_result_lines() -> None:
    page = PAGE.read_text()
    assert with_tables(page, read_results()) == page, 'run scripts/study_report.py --update'
    assert set(re.findall(r'<!-- table (\w+) -->', page)) == {*QUESTIONS, 'order', 'noise'}
