"""The wheel: what it claims, that nothing is left out, and that it works away from the checkout."""

import email
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDERS = {'mtpd': 'mtpd', 'extract': 'mtpd_extract', 'train': 'mtpd_train'}
PROGRAMS = {
    'mtpd-cache': 'mtpd_extract.cache_tools',
    'mtpd-eval': 'mtpd_train.evaluator',
    'mtpd-extract': 'mtpd_extract',
    'mtpd-report': 'mtpd_train.report',
    'mtpd-train': 'mtpd_train',
}
HEAVY = ('cv2', 'mmcv', 'mmdet', 'mmengine', 'numpy', 'torch', 'torchvision', 'zarr')


@pytest.fixture(scope='module')
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, as a build inside the checkout would pick up what an earlier one left in build/."""
    source = tmp_path_factory.mktemp('source')
    for name in ('pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(REPOSITORY / name, source)
    for folder in FOLDERS:
        shutil.copytree(REPOSITORY / folder, source / folder, ignore=shutil.ignore_patterns('__pycache__'))
    build = "import setuptools.build_meta as backend; backend.build_wheel('dist')"
    subprocess.run([sys.executable, '-c', build], cwd=source, check=True, capture_output=True, text=True)
    (path,) = (source / 'dist').glob('*.whl')
    return path


@pytest.fixture(scope='module')
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel installed; it borrows the other packages of this one."""
    folder = tmp_path_factory.mktemp('environment')
    venv.create(folder, with_pip=False)
    python = folder / 'bin' / 'python'
    pip = [sys.executable, '-m', 'pip', '--python', str(python), '--disable-pip-version-check']
    install = [*pip, 'install', '--quiet', '--no-index', '--no-deps', str(wheel)]
    subprocess.run(install, check=True, capture_output=True, text=True)
    (site,) = folder.glob('lib/python*/site-packages')
    # A folder named in a .pth file is searched, but .pth files in it, such as the editable install's, are not read.
    (site / 'borrowed.pth').write_text(sysconfig.get_paths()['purelib'] + '\n')
    return folder


def run(command: list[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(('PYTHON', 'COV'))}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=120, check=False)


def test_wheel__contents(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    packages = {name for name in names if not name.split('/')[0].endswith('.dist-info')}
    expected = {
        '/'.join((package, *path.relative_to(REPOSITORY / folder).parts))
        for folder, package in FOLDERS.items()
        for path in (REPOSITORY / folder).rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }
    assert {f'{package}/py.typed' for package in FOLDERS.values()} <= expected
    assert packages == expected, 'is a new folder missing in [tool.setuptools] packages?'


def test_wheel__claims(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (information,) = {name.split('/')[0] for name in archive.namelist() if '.dist-info/' in name}
    assert archive.read(f'{information}/top_level.txt').decode().split() == ['mtpd', 'mtpd_extract', 'mtpd_train']
    metadata = email.message_from_bytes(archive.read(f'{information}/METADATA'))
    assert metadata['License-Expression'] == 'Apache-2.0'
    assert f'{information}/licenses/LICENSE' in archive.namelist()
    project = tomllib.loads((REPOSITORY / 'pyproject.toml').read_text())['project']
    required = [line for line in metadata.get_all('Requires-Dist', []) if 'extra ==' not in line]
    assert len(required) == len(project['dependencies'])


def test_installed__used_instead_of_the_checkout(environment: Path, tmp_path: Path) -> None:
    code = 'import mtpd, mtpd_extract, mtpd_train; print(mtpd.__file__, mtpd_extract.__file__, mtpd_train.__file__)'
    result = run([environment / 'bin' / 'python', '-c', code], tmp_path)
    assert result.returncode == 0, result.stderr
    assert all(path.startswith(str(environment)) for path in result.stdout.split())


@pytest.mark.parametrize('program', PROGRAMS)
def test_installed__help(program: str, environment: Path, tmp_path: Path) -> None:
    result = run([environment / 'bin' / program, '--help'], tmp_path)
    assert (result.returncode, result.stderr) == (0, '')
    assert 'Usage' in result.stdout
    assert 'Examples' in result.stdout


@pytest.mark.parametrize('program', PROGRAMS)
def test_installed__usage_error(program: str, environment: Path, tmp_path: Path) -> None:
    result = run([environment / 'bin' / program, '--no-such-option'], tmp_path)
    assert result.returncode == 2
    assert '--no-such-option' in result.stderr


@pytest.mark.parametrize('package', PROGRAMS.values())
def test_installed__help_imports_nothing_heavy(package: str, environment: Path, tmp_path: Path) -> None:
    code = (
        f'import sys; from {package}.cli import main\n'
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f'print("heavy:", *[name for name in {HEAVY} if name in sys.modules])'
    )
    result = run([environment / 'bin' / 'python', '-c', code], tmp_path)
    assert result.stdout.splitlines()[-1] == 'heavy:', result.stderr


def test_installed__library_works(environment: Path, tmp_path: Path) -> None:
    """Every module of the wheel can be imported from there, and a set can be made."""
    code = (
        'import importlib, pkgutil, mtpd, mtpd_extract, mtpd_train\n'
        'for package in (mtpd, mtpd_extract, mtpd_train):\n'
        '    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):\n'
        '        importlib.import_module(module.name)\n'
        'from pathlib import Path\n'
        'from mtpd.data.synthetic import SyntheticSpec, make_synthetic_set\n'
        'print(make_synthetic_set(Path("set"), SyntheticSpec(num_train=2, num_val=1)))'
    )
    result = run([environment / 'bin' / 'python', '-c', code], tmp_path)
    assert (result.returncode, result.stdout) == (0, 'True\n'), result.stderr
