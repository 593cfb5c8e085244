"""Where the kernels run: compiled on a GPU; else in Triton's interpreter, whose variable concerns the whole process.

Without a GPU these files are left to a process of its own, which `test_interpreter.py` starts.
"""

import os

import pytest
import torch

ON_GPU = torch.cuda.is_available()

collect_ignore = [] if ON_GPU or os.environ.get('TRITON_INTERPRET') == '1' else ['test_fused.py', 'test_operator.py']


@pytest.fixture(scope='session')
def device() -> torch.device:
    """Where the tensors are to be."""
    return torch.device('cuda' if ON_GPU else 'cpu')
