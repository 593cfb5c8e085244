"""Where adapters stand and what they start as."""

import pytest
import torch

from mtpd.losses.adapter import build_adapter


def test_none_between_equal_channels() -> None:
    assert build_adapter(16, 16) is None


def test_identity_when_asked_for_between_equal_channels() -> None:
    adapter = build_adapter(16, 16, adapter='always')
    assert adapter is not None
    values = torch.randn(2, 16, 3, 5)
    torch.testing.assert_close(adapter(values), values)


@pytest.mark.parametrize('channels', [(64, 256), (256, 64)])
def test_random_start_keeps_the_variance(channels: tuple[int, int]) -> None:
    torch.manual_seed(0)
    adapter = build_adapter(*channels)
    assert adapter is not None
    assert adapter(torch.randn(4, channels[0], 20, 20)).var().item() == pytest.approx(1, rel=0.1)
