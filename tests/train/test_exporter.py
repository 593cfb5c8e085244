"""`mtpd-export` and `mtpd-eval FILE.onnx`, end to end."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result

from mtpd.data.images import read_image
from mtpd.errors import InputError
from mtpd.export.exported import open_onnx, open_torch
from mtpd_train.evaluator.cli import main as eval_main
from mtpd_train.exporter.cli import main as export_main
from mtpd_train.report.cli import main as report_main

EXAMPLE = Path(__file__).resolve().parents[2] / 'examples' / 'detect.py'


def invoke(command: Any, *arguments: object) -> Result:
    return CliRunner().invoke(command, list(map(str, arguments)))


def done(command: Any, *arguments: object) -> str:
    result = invoke(command, *arguments)
    assert result.exit_code == 0, result.output
    return result.output


def failed(command: Any, *arguments: object, code: int = 1) -> str:
    """The one line that says why."""
    result = invoke(command, *arguments)
    assert result.exit_code == code, result.output
    (line,) = [one for one in result.output.splitlines() if one.startswith('Error')]
    return line


def exported_metrics(run: object, out: Path, *options: object) -> dict[str, float]:
    done(eval_main, run, '--json', out, '-q', *options)
    metrics: dict[str, float] = json.loads(out.read_text())['metrics']
    return metrics


@pytest.fixture(scope='module')
def student(
    tmp_path_factory: pytest.TempPathFactory, train: Callable[..., Any], write_stage: Callable[..., Path]
) -> Path:
    """The run of a student that was trained long enough to find something."""
    folder = tmp_path_factory.mktemp('exporter')
    train(write_stage(folder / 'stage.yaml', optim={'epochs': 30}), '--out', folder / 'run')
    return folder / 'run'


@pytest.fixture(scope='module')
def file(student: Path) -> Path:
    """Its ONNX file."""
    out = student.parent / 'student.onnx'
    output = done(export_main, student, '--out', out, '--license', 'CC0-1.0')
    assert 'detections agree: scores within' in output
    return out


def test_the_file_has_the_ap_of_the_run(student: Path, file: Path, tmp_path: Path) -> None:
    wanted = exported_metrics(student, tmp_path / 'run.json')
    data = json.loads((student / 'run.json').read_text())['stages']['1']['data']['coco']
    found = exported_metrics(file, tmp_path / 'file.json', '--coco', data)
    assert wanted['box/AP50'] > 0.02
    assert found == pytest.approx(wanted, abs=5e-4)


def test_metadata_says_what_the_file_is(student: Path, file: Path) -> None:
    record = open_onnx(file, name='file').record
    assert (record.license, record.precision, record.size, record.opset) == ('CC0-1.0', 'float32', None, 20)
    assert record.classes == torch.load(student / 'student.pth')['meta']['dataset_meta']['classes']
    assert record.detector == 'RetinaNet'
    model = onnx.load(file)
    onnx.checker.check_model(model)
    content = file.read_bytes()
    # No paths of this machine.
    for place in (Path.home(), Path(sys.prefix), student):
        assert str(place).encode() not in content


def test_outputs_are_sorted_and_filled_up(file: Path) -> None:
    session = onnxruntime.InferenceSession(file)
    images, sizes = np.zeros((2, 64, 96, 3), np.uint8), np.array([[64, 96], [40, 50]])
    boxes, scores, labels = session.run(None, {'images': images, 'sizes': sizes})
    assert boxes.shape == (2, 50, 4)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert (labels[scores == 0] == -1).all()
    assert not boxes[scores == 0].any()
    assert boxes[1, :, 2].max() <= 50
    assert boxes[1, :, 3].max() <= 40


def test_the_example_needs_no_torch(student: Path, file: Path, tmp_path: Path) -> None:
    data = Path(json.loads((student / 'run.json').read_text())['stages']['1']['data']['coco'])
    image = min((data / 'val2017').iterdir())
    program = (
        'import sys, runpy; sys.modules["torch"] = None; sys.argv = sys.argv[1:]; '
        'runpy.run_path(sys.argv[0], run_name="__main__")'
    )
    arguments = [str(EXAMPLE), str(file), str(image), '--out', str(tmp_path / 'found.png'), '--min-score', '0.05']
    output = subprocess.run(
        [sys.executable, '-c', program, *arguments], capture_output=True, text=True, check=True, timeout=120
    ).stdout.splitlines()
    results = tmp_path / 'results.json'
    done(eval_main, file, '--coco', data, '--results', results, '-q')
    annotations = json.loads((data / 'annotations' / 'instances_val2017.json').read_text())
    (image_id,) = [one['id'] for one in annotations['images'] if one['file_name'] == image.name]
    names = {one['id']: one['name'] for one in annotations['categories']}
    wanted = [one for one in json.loads(results.read_text()) if one['image_id'] == image_id and one['score'] >= 0.05]
    assert len(output) == len(wanted) > 0
    best = max(wanted, key=lambda one: one['score'])
    assert output[0].startswith(f'{names[best["category_id"]]} {best["score"]:.2f}'[:-1])
    drawn, plain = read_image(tmp_path / 'found.png'), read_image(image)
    assert drawn.shape == plain.shape
    assert not np.array_equal(drawn, plain)


def test_the_report_shows_the_export(student: Path, file: Path, tmp_path: Path) -> None:
    done(report_main, student, '--images', 0, '--out', tmp_path / 'page.html')
    page = (tmp_path / 'page.html').read_text()
    assert 'student.onnx' in page
    assert 'id="exports"' in page


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (b'not a model', 'cannot load it'),
        (b'', 'cannot load it'),
        ('no record', 'has no description by mtpd; give a file that mtpd-export has written'),
        ('{"version": 2}', 'its description cannot be read: version'),
        ('["a list"]', 'its description cannot be read'),
        ('raw', 'has the raw outputs of the heads, no boxes; export it without --raw'),
    ],
)
def test_wrong_files_are_refused_by_one_line(content: bytes | str, words: str, file: Path, tmp_path: Path) -> None:
    path = tmp_path / 'wrong.onnx'
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        model = onnx.load(file)
        entries = {one.key: one.value for one in model.metadata_props}
        if content == 'raw':
            content = json.dumps(json.loads(entries['mtpd']) | {'raw': {}})
        del model.metadata_props[:]
        if content != 'no record':
            model.metadata_props.add(key='mtpd', value=content)
        onnx.save(model, path)
    assert words in failed(eval_main, path, '--coco', tmp_path)


def test_other_classes_are_refused(file: Path, tmp_path: Path, synthetic_set: Path) -> None:
    annotations = json.loads((synthetic_set / 'annotations' / 'instances_val2017.json').read_text())
    annotations['categories'].append({'id': 99, 'name': 'other'})
    (tmp_path / 'a.json').write_text(json.dumps(annotations))
    line = failed(eval_main, file, '--images', synthetic_set / 'val2017', '--annotations', tmp_path / 'a.json')
    assert 'has 6 classes, but the annotations have 7 categories' in line


@pytest.mark.parametrize(
    ('option', 'words'),
    [
        (['--scale', '64x64'], '--scale: .*has its own weights and size'),
        (['--checkpoint', 'x.pth'], '--checkpoint: .*has its own weights and size'),
    ],
)
def test_options_of_other_detectors_are_refused(option: Sequence[str], words: str, file: Path) -> None:
    assert re.search(words, failed(eval_main, file, *option))


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--format', 'torch', '--int8'], '--int8 needs --format onnx'),
        (['--half', '--int8'], '--half and --int8 exclude each other'),
        (['--raw', '--benchmark'], '--raw excludes --int8 and --benchmark'),
        (['--model', 'r101'], 'give either a run or a checkpoint of one, or --model'),
    ],
)
def test_usage(options: Sequence[str], words: str, tmp_path: Path) -> None:
    assert words in failed(export_main, tmp_path, '--out', tmp_path / 'x', *options, code=2)


def test_a_size_that_the_network_cannot_take_is_refused(student: Path, tmp_path: Path) -> None:
    line = failed(export_main, student, '--out', tmp_path / 'x.onnx', '--size', '100x96')
    assert 'multiples of 32 px; give 128x96' in line
    assert not (tmp_path / 'x.onnx').exists()


def test_a_file_that_differs_is_not_written(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtpd.detectors.of_mmdet import one_stage

    right = one_stage.decode_deltas
    monkeypatch.setitem(one_stage.DECODERS, 'RetinaHead', lambda *arguments: right(*arguments) + 0.2)
    line = failed(export_main, student, '--out', tmp_path / 'x.onnx')
    assert 'not written: the exported graph differs' in line
    assert 'boxes differ by 0.2' in line
    assert not (tmp_path / 'x.onnx').exists()


def test_without_the_extra(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'onnxscript' else find(name))
    line = failed(export_main, student, '--out', tmp_path / 'x.onnx')
    assert 'ONNX files need onnxscript, which is not installed: pip install onnx onnxruntime onnxscript' in line


@pytest.mark.slow
@pytest.mark.parametrize('option', ['--half', '--int8'])
def test_smaller_precision(option: str, student: Path, file: Path, tmp_path: Path) -> None:
    out = tmp_path / 'small.onnx'
    output = done(export_main, student, '--out', out, option)
    assert out.stat().st_size < 0.75 * file.stat().st_size
    (line,) = [one for one in output.splitlines() if one.startswith('box/AP')]
    assert abs(float(line.split('change ')[1].split()[0])) < 3
    assert open_onnx(out, name='').record.precision == option.removeprefix('--')


@pytest.mark.slow
def test_a_fixed_size(student: Path, file: Path, tmp_path: Path, synthetic_set: Path) -> None:
    out = tmp_path / 'fixed.onnx'
    done(export_main, student, '--out', out, '--size', '128x128', '--batch', 1)
    inputs = {one.name: one.shape for one in onnxruntime.InferenceSession(out).get_inputs()}
    assert inputs == {'images': [1, 128, 128, 3], 'sizes': [1, 2]}
    assert exported_metrics(out, tmp_path / 'x.json', '--coco', synthetic_set)['box/AP50'] > 0.02


@pytest.mark.slow
def test_a_file_for_torch(student: Path, file: Path, tmp_path: Path) -> None:
    out = tmp_path / 'student.pt2'
    done(export_main, student, '--out', out, '--format', 'torch')
    program = (
        'import sys, torch, torchvision; module = torch.export.load(sys.argv[1]).module(); '
        'found = module(torch.zeros(2, 64, 96, 3, dtype=torch.uint8), torch.tensor([[64, 96], [40, 50]])); '
        'print([tuple(one.shape) for one in found], "mtpd" in sys.modules)'
    )
    output = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', program, out], capture_output=True, text=True, check=True, timeout=120
    ).stdout
    assert output.strip() == '[(2, 50, 4), (2, 50), (2, 50)] False'
    assert open_torch(out.read_bytes(), name='').record.opset is None


@pytest.mark.slow
def test_raw_outputs(student: Path, tmp_path: Path) -> None:
    """Decoded by what the JSON says, the best place has the box that the detector finds."""
    out = tmp_path / 'raw.onnx'
    done(export_main, student, '--out', out, '--raw', '--size', '128x128', '--batch', 1)
    record = json.loads((tmp_path / 'raw.onnx.json').read_text())
    assert record['raw']['boxes'] == 'deltas of anchors: dx, dy, dw, dh'
    assert [level['stride'] for level in record['raw']['levels']] == [4, 8, 16, 32]
    session = onnxruntime.InferenceSession(out)
    (given,) = session.get_inputs()
    assert given.shape == [1, 3, 128, 128]
    names = [one.name for one in session.get_outputs()]
    assert names == list(record['outputs'])
    assert names[0] == 'class_p2'
    with pytest.raises(InputError, match='raw outputs'):
        open_onnx(out, name='file')


@pytest.mark.slow
def test_benchmark(student: Path, tmp_path: Path) -> None:
    output = done(export_main, student, '--out', tmp_path / 'x.onnx', '--benchmark')
    lines = output.splitlines()
    assert 'million parameters' in output
    assert lines[-1].startswith('ONNX Runtime takes 1 / ')
    assert len(os.sched_getaffinity(0)) == 1 or sum(one.startswith('PyTorch ') for one in lines) == 2
    last = json.loads((student / 'exports.jsonl').read_text().splitlines()[-1])
    assert {one['runtime'] for one in last['benchmark']['runs']} == {'PyTorch', 'ONNX Runtime'}


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.filterwarnings('default')
def test_a_real_teacher(real_dir: Path, tmp_path: Path) -> None:
    """YOLOX-nano of COCO on real images: the same boxes, and the same AP."""
    config, weights = (real_dir / 'teachers' / f'yolox_nano_mmdet.{suffix}' for suffix in ('py', 'pth'))
    source = ['--model', config, '--checkpoint', weights]
    coco = ['--coco', real_dir / 'coco_mini']
    output = done(export_main, *source, *coco, '--out', tmp_path / 'x.onnx', '--samples', 20)
    assert 'detections agree' in output
    wanted = tmp_path / 'wanted.json'
    done(eval_main, *source, *coco, '--json', wanted, '-q')
    found = exported_metrics(tmp_path / 'x.onnx', tmp_path / 'x.json', *coco)
    assert found == pytest.approx(json.loads(wanted.read_text())['metrics'], abs=5e-4)
