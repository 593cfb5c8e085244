"""The tables of `mtpd-eval`."""

from mtpd.evaluation import METRICS, Evaluation
from mtpd_train.evaluator.run import class_table, metrics_table

FOUND = {
    'box': Evaluation({name: index / 100 for index, name in enumerate(METRICS)}, {'cat': -1.0, 'dog': 0.0, 'cow': 0.5}),
    'mask': Evaluation(dict.fromkeys(METRICS, -1.0), {'cat': -1.0, 'dog': 0.25, 'cow': 0.125}),
}


def test_metrics() -> None:
    """Nothing found is 0.0, nothing to find is a dash."""
    headings, box, mask = (line.split() for line in metrics_table(FOUND))
    assert headings == [*METRICS]
    assert box == ['box', *(f'{index}.0' for index in range(len(METRICS)))]
    assert mask == ['mask', *['-'] * len(METRICS)]


def test_classes_are_sorted_by_their_boxes() -> None:
    rows = [line.split() for line in class_table(FOUND)]
    assert rows[1:] == [['cow', '50.0', '12.5'], ['dog', '0.0', '25.0'], ['cat', '-', '-']]
