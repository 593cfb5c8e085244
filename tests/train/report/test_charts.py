"""Charts are well-formed SVG that holds its texts, whatever they are, and nothing from elsewhere."""

import math
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mtpd_train.report.charts import MAX_POINTS, Line, ap_line, bar_chart, line_chart, loss_lines, run_charts, thinned
from mtpd_train.report.run_log import read_run, summarise

WriteRun = Callable[..., Path]
HOSTILE = '<script>alert("$\\frac")</script>'


def texts(svg: bytes) -> set[str]:
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        assert not element.tag.endswith('script')
        for name, value in element.attrib.items():
            assert not name.endswith('href') or value.startswith('#')
    return {''.join(element.itertext()).strip() for element in root.iter() if element.tag.endswith('text')}


def test_names_are_text() -> None:
    points = [(1.0, 2.0), (2.0, 3.0)]
    svg = line_chart([Line(HOSTILE, points), Line('other', points)], y_label='loss', borders={'stage 1': 0})
    assert {HOSTILE, 'other', 'loss', 'stage 1'} <= texts(svg)
    assert b'<script' not in svg


@pytest.mark.parametrize(
    ('name', 'shown'),
    [
        ('_hidden', '\u200b_hidden'),
        ('a\0b\x1b', 'a\ufffdb\ufffd'),
        ('a\ud800', 'a\ufffd'),
        ('漢字', '漢字'),
        ('a\nb', 'a\ufffdb'),
    ],
)
def test_names_of_any_kind(name: str, shown: str) -> None:
    points = [(1.0, 2.0), (2.0, 3.0)]
    assert shown in texts(line_chart([Line(name, points), Line('other', points)], y_label='loss'))
    assert shown in texts(bar_chart({name: [1.0]}, names=['a'], y_label='AP'))


def test_equal_charts_are_equal_files() -> None:
    charts = [line_chart([Line('a', [(0.0, 1.0), (1.0, 0.5)])], y_label='y', is_log=True) for _ in range(2)]
    assert charts[0] == charts[1]


def test_what_cannot_be_drawn_is_a_gap() -> None:
    points = [(0.0, math.nan), (1.0, 0.0), (2.0, -1.0), (3.0, math.inf), (4.0, 2.0)]
    for is_log in (False, True):
        texts(line_chart([Line('a', points)], y_label='y', is_log=is_log))
    texts(line_chart([Line('a', [(0.0, math.nan)]), Line('b', [])], y_label='y', is_log=True))


def test_bars() -> None:
    svg = bar_chart({'stage 1': [10.0, None], HOSTILE: [12.5, 30.0]}, names=['small', 'medium'], y_label='AP')
    assert {'stage 1', HOSTILE, 'small', 'medium', '12.5', '30.0'} <= texts(svg)
    assert svg.rindex(b'>12.5<') < svg.rindex(b'>30.0<')  # bars of a name are drawn together
    assert svg.rindex(b'>small<') < svg.rindex(b'>medium<')


def test_thinned() -> None:
    points = [(float(x), 2.0 * x) for x in range(10 * MAX_POINTS + 3)]
    thin = thinned(points)
    assert len(thin) <= MAX_POINTS
    assert thin[0] == pytest.approx((5.0, 10.0))
    assert thin[-1][0] > points[-12][0]
    assert thinned(points[:7]) == points[:7]
    assert thinned([]) == []


def test_charts_of_a_run(write_run: WriteRun, tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / 'run'))
    charts = run_charts(run, summarise(run))
    assert list(charts) == ['ap', 'loss', 'lr', 'speed', 'wait', 'size_box']
    ap, loss, size = (charts[name] for name in ('ap', 'loss', 'size_box'))
    assert {'box AP', 'box AP50', 'stage 1', 'stage 2'} <= texts(ap)
    assert {'loss_cls', 'distill/mgd/p3', 'total'} <= texts(loss)
    assert {'small', 'medium', '20.0'} <= texts(size)
    assert 'large' not in texts(size)  # there are none
    assert size.rindex(b'>5.0<') < size.rindex(b'>20.0<')  # those of small objects come first, and are lower
    assert '0.5' in texts(loss)
    assert '0.4' not in texts(loss)  # as it would be on a scale that is not logarithmic
    assert not any(text.startswith('0.') for text in texts(charts['wait']))  # 10 and 20, in percent


def test_lines_of_a_run(write_run: WriteRun, tmp_path: Path) -> None:
    """Steps count over all stages; where a stage begins, a line of losses is broken."""
    run = read_run(write_run(tmp_path / 'run'))
    assert [stage.first_step for stage in run.stages] == [0, 20]
    for metric, expected in (('box/AP', [15, 10, 25, 20]), ('box/AP50', [30, 20, 50, 40])):
        points = ap_line(run, metric, name='AP').points
        assert [(x, round(y, 9)) for x, y in points] == list(zip((10, 20, 30, 40), expected, strict=True))
    losses = {line.name: line.points for line in loss_lines(run)}
    assert [x for x, _ in losses['loss_cls']] == [5, 10, 15, 20, 20, 25, 30, 35, 40]
    assert [y for _, y in losses['loss_cls']] == pytest.approx(
        [1 / 5, 1 / 10, 1 / 15, 1 / 20, math.nan, 1 / 5, 1 / 10, 1 / 15, 1 / 20], nan_ok=True
    )


def test_many_losses_are_summed_over_levels(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run(tmp_path / 'run')
    log = folder / 'metrics.jsonl'
    more = ', '.join(f'"distill/mgd/p{level}": 0.1' for level in range(5, 12))
    log.write_text(log.read_text().replace('"distill/mgd/p3"', f'{more}, "distill/mgd/p3"'))
    losses = {line.name: line.points for line in loss_lines(read_run(folder))}
    assert list(losses) == ['loss_cls', 'distill/mgd', 'total']
    assert losses['distill/mgd'][0] == pytest.approx((5, 0.5 + 0.25 + 7 * 0.1))


def test_nothing_to_draw(write_run: WriteRun, tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / 'run', begun=0, finished=0))
    assert run_charts(run, summarise(run)) == {}
