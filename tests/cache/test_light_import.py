"""What a program that only reads caches has to load."""

import subprocess
import sys


def test_torchvision_and_mmdet_are_left_out() -> None:
    """Each takes longer to import than torch itself."""
    check = "import sys, mtpd.cache; sys.exit(', '.join({'torchvision', 'mmdet', 'mmengine'} & sys.modules.keys()) or 0)"
    subprocess.run([sys.executable, '-c', check], check=True)
