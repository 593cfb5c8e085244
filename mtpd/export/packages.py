"""The optional packages of exports."""

import importlib.util

from mtpd.errors import UnavailableError

PACKAGES = ('onnx', 'onnxruntime', 'onnxscript')


def require_packages(*packages: str) -> None:
    """Refuses to go on without these of `PACKAGES`."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UnavailableError(
            f'ONNX files need {" and ".join(missing)}, which is not installed: pip install {" ".join(PACKAGES)}'
        )
