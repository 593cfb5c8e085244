"""The machine and the libraries, as programs record them."""

import platform
from importlib.metadata import version

import pytest
import torch

from mtpd.errors import InputError
from mtpd.system.environment import choose_device, describe_device, versions


def test_cpu_is_always_there() -> None:
    assert choose_device('cpu') == torch.device('cpu')
    assert describe_device(torch.device('cpu')) == platform.machine()


def test_auto_takes_a_gpu_where_there_is_one() -> None:
    if torch.cuda.is_available():
        assert choose_device('auto').type == choose_device('cuda').type == 'cuda'
        assert describe_device(torch.device('cuda')) == torch.cuda.get_device_name()
    else:
        assert choose_device('auto') == torch.device('cpu')
        with pytest.raises(InputError, match='--device cpu'):
            choose_device('cuda')


def test_versions() -> None:
    found = versions(['torch', 'no-such-package'])
    assert found == {
        'torch': version('torch'),
        'no-such-package': 'not installed under this name',
        'python': platform.python_version(),
    }
