"""Checkpoints of every kind that people have, damaged ones, and hostile ones."""

import gzip
import io
import math
import os
import pickle
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor, nn

from mtpd.detectors.checkpoint import load_checkpoint, load_into
from mtpd.errors import InputError, UnavailableError

TENSORS = {'weight': torch.arange(6.0).view(2, 3), 'bias': torch.ones(2)}


class Hostile:
    """Pickles as a call that makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def assert_whole(state: dict[str, Tensor]) -> None:
    assert list(state) == ['weight', 'bias']
    assert all(torch.equal(state[name], TENSORS[name].to(state[name].dtype)) for name in TENSORS)


def saved(tmp_path: Path, content: Any, *, legacy: bool = False) -> Path:
    path = tmp_path / 'checkpoint.pth'
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize(
    'content',
    [
        TENSORS,
        {'state_dict': TENSORS, 'meta': {'epoch': 12, 'time': 'now', 'CLASSES': ('a', 'b')}},
        {'model': TENSORS, 'optimizer': {'param_groups': [{'lr': 0.1}]}, 'epoch': 3},
        {'state_dict': {f'module.{name}': value for name, value in TENSORS.items()}},
        {'state_dict': OrderedDict(TENSORS), 'meta': {'ap': np.float64(0.4), 'n': np.int64(3), 'b': np.bool_(True)}},
    ],
)
def test_plain_layouts(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: Any, legacy: bool) -> None:
    state, meta = load_checkpoint(saved(tmp_path, content, legacy=legacy))
    assert meta == content.get('meta', {})
    assert_whole(state)
    assert not caplog.records


OTHERS = {name: value + 1 for name, value in TENSORS.items()}
COUNTERS = {'steps': torch.tensor(3), 'n_averaged': torch.tensor(3)}


def prefixed(prefix: str, tensors: dict[str, Tensor] = TENSORS) -> dict[str, Tensor]:
    return {f'{prefix}{name}': value for name, value in tensors.items()}


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        ({'model': {'state_dict': TENSORS}, 'epoch': 3}, 'model.state_dict'),
        ({'state_dict': {'model': TENSORS}}, 'state_dict.model'),
        ({'net': TENSORS, 'acc': 0.3, 'optimizer': {'state': {0: {'exp_avg': torch.ones(2)}}}}, 'net'),
        ({'my_detector': TENSORS, 'iteration': torch.tensor(5)}, 'my_detector'),
        ({'model': None, 'ema': {'module': TENSORS, 'updates': 7}}, 'averaged weights ema'),
        ({'ema_state_dict': prefixed('module.') | COUNTERS}, 'averaged weights ema_state_dict'),
        ({'model': TENSORS, 'ema': {'module': OTHERS}}, 'loaded model, not the averaged weights ema'),
        ({'state_dict': TENSORS, 'ema_state_dict': prefixed('module.', OTHERS)}, 'not the averaged weights ema_state'),
        ({'state_dict': TENSORS | prefixed('ema_', OTHERS)}, 'not the 2 averages (named ema_...)'),
        ({'state_dict': prefixed('model.'), 'pytorch-lightning_version': '2.1'}, 'removed model. from'),
        ({'state_dict': prefixed('model.') | prefixed('ema_model.', OTHERS)}, 'not the averaged weights ema_model'),
        (prefixed('_orig_mod.'), '_orig_mod.'),
        (prefixed('module._orig_mod.'), '_orig_mod.'),
        (prefixed('_orig_mod.module.module.'), '_orig_mod.'),
        ({'state_dict': {**TENSORS, 'note': 'text beside tensors'}}, 'ignored 1 entries that are not tensors (note)'),
        ({name: value.double() for name, value in TENSORS.items()}, '2 tensors are float64'),
        ({name: value.bfloat16() for name, value in TENSORS.items()}, '2 tensors are bfloat16'),
    ],
)
def test_layouts_with_a_choice_are_loaded_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: Any, said: str
) -> None:
    path = saved(tmp_path, content)
    state, _ = load_checkpoint(path)
    assert_whole({name: value for name, value in state.items() if not name.startswith('ema_')})
    assert any(said in record.getMessage() and str(path) in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ('content', 'candidates'),
    [
        ({'student': TENSORS, 'teacher': OTHERS}, ('student', 'teacher')),
        ({'state_dict': prefixed('student.') | prefixed('teacher.', OTHERS)}, ('student', 'teacher')),
        ({'checkpoint': {'model': TENSORS, 'net': OTHERS}}, ('checkpoint.model', 'checkpoint.net')),
        ({'generator': TENSORS, 'discriminator': OTHERS}, ('generator', 'discriminator')),
    ],
)
def test_several_networks_are_named_and_none_is_taken(
    tmp_path: Path, content: Any, candidates: tuple[str, str]
) -> None:
    with pytest.raises(InputError, match=r'checkpoint\.pth: .*' + ', '.join(candidates)):
        load_checkpoint(saved(tmp_path, content))


def test_names_that_the_network_has_are_no_wrappers(tmp_path: Path) -> None:
    network = nn.ModuleDict({'student': nn.Linear(3, 2), 'teacher': nn.Linear(3, 2)})
    path = saved(tmp_path, {'state_dict': network.state_dict()})
    assert load_checkpoint(path, network=network)[0].keys() == network.state_dict().keys()


@pytest.mark.parametrize(
    ('make', 'said'),
    [
        (lambda: torch.ones(2, device='meta'), 'meta'),
        (lambda: torch.ones(2).to_sparse(), 'sparse'),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), 'quantised'),
        (lambda: torch.ones(2, dtype=torch.complex64), 'complex'),
    ],
)
@pytest.mark.filterwarnings('ignore:.*quantize')
def test_tensors_without_plain_values(tmp_path: Path, make: Callable[[], Tensor], said: str) -> None:
    with pytest.raises(InputError, match=rf'checkpoint\.pth: .*{said}.*\(bias\)'):
        load_checkpoint(saved(tmp_path, {'state_dict': TENSORS | {'bias': make()}}))


def test_weights_that_are_not_finite_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_checkpoint(saved(tmp_path, TENSORS | {'bias': torch.tensor([1.0, math.nan])}))
    assert 'not finite (bias)' in caplog.text


def test_safetensors_by_content(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / 'a.pth')
    assert torch.equal(load_checkpoint(tmp_path / 'a.pth')[0]['weight'], TENSORS['weight'])
    for size in (-9, 40):
        (tmp_path / 'b.safetensors').write_bytes((tmp_path / 'a.pth').read_bytes()[:size])
        with pytest.raises(InputError, match=r'b\.safetensors: is damaged'):
            load_checkpoint(tmp_path / 'b.safetensors')


def test_versions_of_modules_are_kept(tmp_path: Path) -> None:
    """mmdet tells old layouts from new ones by them."""
    model = nn.Sequential(nn.BatchNorm2d(2))
    state: Any = load_checkpoint(saved(tmp_path, {'state_dict': model.state_dict()}))[0]
    assert state._metadata['0'] == {'version': 2}
    wrapped = OrderedDict((f'module.{name}', value) for name, value in model.state_dict().items())
    vars(wrapped)['_metadata'] = {'module': {'version': 1}, 'module.0': {'version': 2}}
    state, _ = load_checkpoint(saved(tmp_path, wrapped))
    assert state._metadata['0'] == {'version': 2}


@pytest.mark.parametrize('legacy', [False, True])
def test_nothing_in_a_file_is_run_unless_it_is_trusted(tmp_path: Path, legacy: bool) -> None:
    folder = tmp_path / 'made'
    path = saved(tmp_path, {'state_dict': TENSORS, 'meta': Hostile(folder)}, legacy=legacy)
    with pytest.raises(InputError, match='add --trust-checkpoint') as caught:
        load_checkpoint(path)
    assert '\n' not in str(caught.value)
    assert not folder.exists()
    assert list(load_checkpoint(path, allow_pickle=True)[0]) == ['weight', 'bias']
    assert folder.is_dir()


def test_a_whole_pickled_model(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    path = saved(tmp_path, model)
    with pytest.raises(InputError, match='add --trust-checkpoint'):
        load_checkpoint(path)
    assert torch.equal(load_checkpoint(path, allow_pickle=True)[0]['weight'], model.weight)


def test_objects_of_other_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class of a package that is not installed, of a module that a package lacks, and of a module that lacks it."""
    for module, name, error in [
        ('absent_package.models', 'absent_package', UnavailableError),
        ('safetensors.absent', 'safetensors.absent', InputError),
        ('safetensors.numpy', 'Gone of the module safetensors.numpy', InputError),
        ('__main__', r'Gone of the module (pytest\.)?__main__', InputError),
    ]:
        with monkeypatch.context() as patch:
            gone = type('Gone', (), {'__module__': module})
            for part in (module, module.partition('.')[0]):
                if part not in sys.modules:
                    patch.setitem(sys.modules, part, ModuleType(part))
            patch.setattr(sys.modules[module], 'Gone', gone, raising=False)
            path = saved(tmp_path, {'model': gone(), 'state_dict': TENSORS})
        with pytest.raises(InputError, match=rf'{module}\.Gone.*--trust-checkpoint'):
            load_checkpoint(path)
        with pytest.raises(error, match=rf'checkpoint\.pth: .*{name}') as caught:
            load_checkpoint(path, allow_pickle=True)
        assert 'damaged' not in str(caught.value)


def archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as file:
        for name in names:
            file.writestr(name, b'content')
    return buffer.getvalue()


def tar(*names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as file:
        for name in names:
            file.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, weight=np.ones(2))
    return buffer.getvalue()


def whole(**options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save({'state_dict': TENSORS}, buffer, **options)
    return buffer.getvalue()


LEGACY = whole(_use_new_zipfile_serialization=False)


@pytest.mark.parametrize('allow_pickle', [False, True])
@pytest.mark.parametrize(
    ('content', 'said'),
    [
        (b'', 'is empty'),
        (bytes(20_000), 'zero bytes'),
        (b'\n <!DOCTYPE html><html>Sign in</html>', 'web page'),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', 'web page or XML'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n', 'Git LFS'),
        (b'{"metadata": {}, "weight_map": {}}', 'JSON'),
        (b'404: Not Found\nmore', "text file that begins with '404: Not Found'"),
        (pickle.dumps({'model': {'weight': np.ones(2)}, '__author__': 'a'}, protocol=2), 'pickle of another framework'),
        (pickle.dumps({'weight': np.ones(2)}), 'pickle of another framework'),
        (pickle.dumps({'weight': 1}, protocol=0), 'pickle of another framework'),
        (archive('net/data.pkl', 'net/constants.pkl', 'net/code/a.py'), 'TorchScript'),
        (archive('net/archive_format', 'net/models/model.json'), 'torch.export'),
        (archive('config.json', 'model.weights.h5'), 'Keras'),
        (archive('a.pth', 'b\x1b.txt'), r'zip archive of files \(a.pth, b\?.txt\)'),
        (npz(), 'npz'),
        (tar('best.pth'), r'tar archive of files \(best.pth\)'),
        (gzip.compress(whole()), 'gzip'),
        (b'\x89HDF\r\n\x1a\n' + bytes(90), 'HDF5'),
        (b'\x08\x07\x12\x07pytorch', 'ONNX'),
        (b'\x08\x01\x12\x90\x01', 'SavedModel'),
        (bytes(40) + b'\x57\xfb\x80\x8b\x24\x75\x47\xdb', 'TensorFlow'),
        (b'\x80', 'begins with the bytes 80'),
        (bytes(range(200, 256)), 'begins with the bytes c8 c9'),
        (whole()[:400], 'damaged or truncated'),
        (whole()[:-50], 'damaged or truncated'),
        (LEGACY[:-20], 'is damaged'),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path: Path, allow_pickle: bool, content: bytes, said: str) -> None:
    path = tmp_path / 'bad.safetensors.pth'
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf'bad\.safetensors\.pth: .*{said}') as caught:
        load_checkpoint(path, allow_pickle=allow_pickle)
    assert str(caught.value).isprintable()
    assert ('damaged' in str(caught.value)) == ('damaged' in said)


def test_the_oldest_format_of_pytorch_is_a_tar(tmp_path: Path) -> None:
    path = tmp_path / 'old.pth'
    path.write_bytes(tar('sys_info', 'pickle', 'storages', 'tensors'))
    with pytest.raises(InputError, match=r'old\.pth: .*tar archive.*--trust-checkpoint'):
        load_checkpoint(path)


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / 'model.bin').touch()
    with pytest.raises(InputError, match=r'is a folder \(model\.bin\); give the weights file'):
        load_checkpoint(tmp_path)


def test_a_flipped_bit_in_the_weights(tmp_path: Path) -> None:
    """PyTorch would load it."""
    path = tmp_path / 'flipped.pth'
    values = TENSORS['weight'].numpy().tobytes()
    path.write_bytes(whole().replace(values, values[:-1] + b'\xff'))
    assert not torch.equal(torch.load(path, weights_only=True)['state_dict']['weight'], TENSORS['weight'])
    with pytest.raises(InputError, match=r'flipped\.pth: is damaged: .*/data/0 is wrong'):
        load_checkpoint(path)


def test_checksums_that_were_turned_off(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path, TENSORS)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_whole(load_checkpoint(path)[0])


WHOLE = [whole(), LEGACY, save(TENSORS)]


@settings(max_examples=150, deadline=None)
@given(
    content=st.sampled_from(WHOLE),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=9)), max_size=4),
    length=st.floats(0, 1),
)
# A name in a record's header that is not UTF-8.
@example(content=WHOLE[0], changes=[(0.0234375, b'\x80')], length=1.0)
def test_damaged_bytes_are_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory,
    content: bytes,
    changes: list[tuple[float, bytes]],
    length: float,
) -> None:
    damaged = bytearray(content)
    for place, piece in changes:
        at = int(place * len(damaged))
        damaged[at : at + len(piece)] = piece
    path = tmp_path_factory.getbasetemp() / 'damaged.pth'
    path.write_bytes(damaged[: int(length * len(damaged))] if length < 0.9 else damaged)
    refusal = ''
    try:
        load_checkpoint(path)
    except InputError as error:
        refusal = str(error)
    assert '\n' not in refusal
    assert not refusal or 'damaged.pth' in refusal


def test_files_without_tensors_or_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match='holds no tensors by name'):
        load_checkpoint(saved(tmp_path, {'state_dict': {}, 'meta': {'a': 1}}))
    with pytest.raises(InputError, match='holds no tensors by name'):
        load_checkpoint(saved(tmp_path, torch.ones(2)))
    with pytest.raises(InputError, match=r'gone\.pth: there is no such file'):
        load_checkpoint(tmp_path / 'gone.pth')


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value + 1 for name, value in model.state_dict().items()}


def test_loading_sets_every_tensor(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    state = state_of(model)
    del state['1.num_batches_tracked']
    state |= {'ema_0_weight': torch.zeros(1), 'data_preprocessor.mean': torch.zeros(3)}
    with caplog.at_level('DEBUG'):
        load_into(model, saved(tmp_path, state), name='teacher')
    assert "loaded 7 tensors, ignored ['ema_0_weight', 'data_preprocessor.mean']" in caplog.text
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items() if name in state)


def test_a_tensor_of_two_names_is_needed_once(tmp_path: Path) -> None:
    first = nn.Linear(3, 2)
    model = nn.Sequential(first, first)
    state = {name: value for name, value in state_of(model).items() if name.startswith('1.')}
    load_into(model, saved(tmp_path, state), name='teacher')
    assert torch.equal(first.weight, state['1.weight'])
    del state['1.bias']
    with pytest.raises(InputError, match=r'2 tensors are missing \(0\.bias, 1\.bias\)'):
        load_into(model, saved(tmp_path, state), name='teacher')


@pytest.mark.parametrize(('name', 'dtype'), [('0.weight', torch.int8), ('0.bias', torch.bool)])
def test_whole_numbers_are_no_weights(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    model = network()
    state = state_of(model)
    state[name] = state[name].to(dtype)
    with pytest.raises(InputError, match=rf'teacher: .*{name} {str(dtype)[6:]} for float32'):
        load_into(model, saved(tmp_path, state), name='teacher')
    load_into(model, saved(tmp_path, state_of(model) | {'1.num_batches_tracked': torch.tensor(3.0)}), name='teacher')


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    model = network()
    state = state_of(model)
    del state['0.weight'], state['1.bias']
    state['2.weight'] = torch.zeros(1)
    expected = r'teacher: 2 tensors are missing \(0\.weight, 1\.bias\); 1 tensors are unexpected \(2\.weight\)'
    with pytest.raises(InputError, match=expected):
        load_into(model, saved(tmp_path, state), name='teacher')
    state = state_of(model)
    state['0.weight'] = torch.zeros(4, 3)
    with pytest.raises(InputError, match=r'1 tensors of another shape \(0\.weight \(4, 3\) for \(2, 3\)\)'):
        load_into(model, saved(tmp_path, state), name='teacher')
    many = {f'{i}.weight': torch.zeros(1) for i in range(2, 30)}
    with pytest.raises(InputError, match=r'28 tensors are unexpected \(2\.weight, 3\.weight, 4\.weight, \.\.\.\)'):
        load_into(model, saved(tmp_path, state_of(model) | many), name='teacher')
