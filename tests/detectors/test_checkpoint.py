"""Checkpoints of every kind that people have, damaged ones, and hostile ones."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mtpd.detectors.checkpoint import load_checkpoint, load_into
from mtpd.errors import InputError

TENSORS = {'weight': torch.arange(6.0).view(2, 3), 'bias': torch.ones(2)}


class Hostile:
    """Pickles as a call that makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


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
        {'state_dict': {**TENSORS, 'note': 'text beside tensors'}},
    ],
)
def test_layouts(tmp_path: Path, content: Any, legacy: bool) -> None:
    state = load_checkpoint(saved(tmp_path, content, legacy=legacy))
    assert list(state) == ['weight', 'bias']
    assert all(torch.equal(state[name], TENSORS[name]) for name in TENSORS)


def test_safetensors(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / 'a.safetensors')
    assert torch.equal(load_checkpoint(tmp_path / 'a.safetensors')['weight'], TENSORS['weight'])
    (tmp_path / 'b.safetensors').write_bytes((tmp_path / 'a.safetensors').read_bytes()[:-9])
    with pytest.raises(InputError, match=r'b\.safetensors: is damaged'):
        load_checkpoint(tmp_path / 'b.safetensors')


def test_versions_of_modules_are_kept(tmp_path: Path) -> None:
    """mmdet tells old layouts from new ones by them."""
    model = nn.Sequential(nn.BatchNorm2d(2))
    state: Any = load_checkpoint(saved(tmp_path, {'state_dict': model.state_dict()}))
    assert state._metadata['0'] == {'version': 2}
    wrapped = OrderedDict((f'module.{name}', value) for name, value in model.state_dict().items())
    vars(wrapped)['_metadata'] = {'module': {'version': 1}, 'module.0': {'version': 2}}
    state = load_checkpoint(saved(tmp_path, wrapped))
    assert state._metadata['0'] == {'version': 2}


@pytest.mark.parametrize('legacy', [False, True])
def test_nothing_in_a_file_is_run_unless_it_is_trusted(tmp_path: Path, legacy: bool) -> None:
    folder = tmp_path / 'made'
    path = saved(tmp_path, {'state_dict': TENSORS, 'meta': Hostile(folder)}, legacy=legacy)
    with pytest.raises(InputError, match='add --trust-checkpoint') as caught:
        load_checkpoint(path)
    assert '\n' not in str(caught.value)
    assert not folder.exists()
    assert list(load_checkpoint(path, allow_pickle=True)) == ['weight', 'bias']
    assert folder.is_dir()


def test_a_whole_pickled_model(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    path = saved(tmp_path, model)
    with pytest.raises(InputError, match='add --trust-checkpoint'):
        load_checkpoint(path)
    assert torch.equal(load_checkpoint(path, allow_pickle=True)['weight'], model.weight)


@pytest.mark.parametrize('allow_pickle', [False, True])
def test_files_that_are_no_checkpoints(tmp_path: Path, allow_pickle: bool) -> None:
    whole = saved(tmp_path, {'state_dict': TENSORS}).read_bytes()
    legacy = saved(tmp_path, {'state_dict': TENSORS}, legacy=True).read_bytes()
    path = tmp_path / 'bad.pth'
    for content in [b'', b'<html>404</html>', pickle.dumps(3), b'\x80', whole[:400], whole[:-50], legacy[:-20]]:
        path.write_bytes(content)
        with pytest.raises(InputError, match=r'bad\.pth: is damaged or no checkpoint') as caught:
            load_checkpoint(path, allow_pickle=allow_pickle)
        assert '\n' not in str(caught.value)


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


def test_loading_sets_every_tensor() -> None:
    model = network()
    state = state_of(model)
    del state['1.num_batches_tracked']
    state |= {'ema_0_weight': torch.zeros(1), 'data_preprocessor.mean': torch.zeros(3)}
    report = load_into(model, state, name='teacher')
    assert report.ignored == ('ema_0_weight', 'data_preprocessor.mean')
    assert report.num_loaded == 7
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items() if name in state)


def test_a_tensor_of_two_names_is_needed_once() -> None:
    first = nn.Linear(3, 2)
    model = nn.Sequential(first, first)
    state = {name: value for name, value in state_of(model).items() if name.startswith('1.')}
    load_into(model, state, name='teacher')
    assert torch.equal(first.weight, state['1.weight'])
    del state['1.bias']
    with pytest.raises(InputError, match=r'2 tensors are missing \(0\.bias, 1\.bias\)'):
        load_into(model, state, name='teacher')


def test_what_does_not_fit_is_named() -> None:
    model = network()
    state = state_of(model)
    del state['0.weight'], state['1.bias']
    state['2.weight'] = torch.zeros(1)
    expected = r'teacher: 2 tensors are missing \(0\.weight, 1\.bias\); 1 tensors are left over \(2\.weight\)'
    with pytest.raises(InputError, match=expected):
        load_into(model, state, name='teacher')
    state = state_of(model)
    state['0.weight'] = torch.zeros(4, 3)
    with pytest.raises(InputError, match=r'1 tensors of another shape \(0\.weight \(4, 3\) for \(2, 3\)\)'):
        load_into(model, state, name='teacher')
    many = {f'{i}.weight': torch.zeros(1) for i in range(2, 30)}
    with pytest.raises(InputError, match=r'28 tensors are left over \(2\.weight, 3\.weight, 4\.weight, \.\.\.\)'):
        load_into(model, state_of(model) | many, name='teacher')
