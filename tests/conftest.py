"""Fixtures that several folders of tests share."""

import logging
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from mtpd.data.synthetic import SyntheticSpec, make_synthetic_set

REPOSITORY = Path(__file__).resolve().parent.parent

# No example has a deadline: on a busy machine any of them may take long.
hypothesis.settings.register_profile('suite', deadline=None)
hypothesis.settings.load_profile('suite')

# With more threads forked processes would wait for those that they do not have, and sums would depend on their number.
torch.set_num_threads(1)


@pytest.fixture(scope='session')
def real_dir() -> Path:
    """The folder of real images, teachers and golden evaluations; the test is skipped where there is none."""
    folder = Path(os.environ.get('MTPD_REAL_DATA', REPOSITORY.parent / 'shared' / 'real'))
    if not (folder / 'coco_mini').is_dir():
        pytest.skip(f'no real data at {folder}; MTPD_REAL_DATA names another folder')
    return folder


@pytest.fixture(scope='session')
def tiny_two_stage() -> Path:
    """The mmdet config of a tiny Faster R-CNN for the synthetic set."""
    return REPOSITORY / 'configs' / 'demo' / 'faster_rcnn_tiny.py'


@pytest.fixture(scope='session')
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`random_weights(config, num_classes=6)` is a checkpoint for the detector of an mmdet config."""

    def make(config: Path | str, *, num_classes: int = 6) -> Path:
        import torch

        from mtpd.detectors.of_mmdet.models import build_detector, load_config

        torch.manual_seed(1)
        path = tmp_path_factory.mktemp('weights') / 'random.pth'
        model = build_detector(load_config(str(config)), num_classes=num_classes)
        torch.save({'state_dict': model.state_dict()}, path)
        return path

    return make


@pytest.fixture(scope='session')
def synthetic_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO-format set of 24 + 8 shapes images of three sizes, the last of each split without annotations."""
    folder = tmp_path_factory.mktemp('synthetic') / 'coco'
    sizes = ((128, 128), (96, 128), (128, 80))
    make_synthetic_set(folder, SyntheticSpec(num_train=24, num_val=8, sizes=sizes))
    return folder


@pytest.fixture(scope='session')
def s3_server() -> Iterator[str]:
    """URL of a real S3 server on loopback."""
    server = pytest.importorskip('moto.server').ThreadedMotoServer('127.0.0.1', 0, verbose=False)
    logging.getLogger('werkzeug').setLevel(logging.ERROR)  # a line for each request takes longer than the request
    server.start()
    host, port = server.get_host_and_port()
    yield f'http://{host}:{port}'
    server.stop()


@pytest.fixture(scope='module')
def bucket(s3_server: str) -> Iterator[str]:
    """URL of a new bucket, which this process and those that it starts may write to."""
    pytest.importorskip('obstore')
    boto3 = pytest.importorskip('boto3')
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            'AWS_ACCESS_KEY_ID': 'key',
            'AWS_SECRET_ACCESS_KEY': 'secret',
            'AWS_REGION': 'us-east-1',
            'AWS_ENDPOINT_URL': s3_server,
            'AWS_ALLOW_HTTP': 'true',
        }.items():
            patch.setenv(name, value)
        name = f'caches-{secrets.token_hex(4)}'
        boto3.client('s3', endpoint_url=s3_server, region_name='us-east-1').create_bucket(Bucket=name)
        yield f's3://{name}'
