"""What a program that only reads caches has to load."""

import subprocess
import sys

CHECK = """
import sys, mtpd.cache, mtpd.detectors, mtpd.losses, mtpd.ordering
sys.exit(', '.join({'torchvision', 'mmdet', 'mmengine'} & sys.modules.keys()) or 0)
"""


def test_torchvision_and_mmdet_are_left_out() -> None:
    """Each takes longer to import than torch itself."""
    subprocess.run([sys.executable, '-c', CHECK], check=True)
