#!/usr/bin/env python3
"""Reading a cache by URL from a web server on this machine, against reading it from its folder.

    scripts/bench_remote_read.py                    # synthetic maps, lean, a minute; needs nginx and two cores
    scripts/bench_remote_read.py --codec int8 --threads 1 4 16

The server has a core of its own, as if it were another machine, and the reader has one other core, for the folder as
for the URL. Every round reads all images from the folder, with one thread, and then by URL with several numbers of
threads, which is the number of requests in flight. Rates are medians of the rounds. Last line: `remote/local R`, the
median of the ratios in each round, for the number of threads that is fastest.
"""

import os
import random
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

import torch
from bench_cache_read import synthetic_cache

import mtpd.cache
from measuring import described_parser, interleaved, median_ratio
from mtpd.cache import CacheReader
from mtpd.cache.format.arrays import ZSTD_LEVELS

PORT = 18931
FREED_BYTES = 31 * 2**20
CONFIGURATION = """
daemon off; pid {folder}/pid; error_log {folder}/log; worker_processes 1;
events {{ worker_connections 1024; }}
http {{
    access_log off; sendfile on; tcp_nodelay on; keepalive_requests 1000000;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{ listen 127.0.0.1:{port}; root {folder}/served; }}
}}
"""


@contextmanager
def served(folder: Path, core: int) -> Iterator[str]:
    """URL of `folder`/served, for as long as the server runs."""
    (folder / 'nginx.conf').write_text(CONFIGURATION.format(folder=folder, port=PORT))
    command = [shutil.which('nginx') or '/usr/sbin/nginx', '-c', str(folder / 'nginx.conf'), '-e', str(folder / 'log')]
    url = f'http://127.0.0.1:{PORT}'
    with subprocess.Popen(command, preexec_fn=partial(os.sched_setaffinity, 0, {core})) as server:
        try:
            while True:
                try:
                    urllib.request.urlopen(f'{url}/manifest.json').close()
                    break
                except urllib.error.URLError:
                    if server.poll() is not None:
                        raise SystemExit(f'nginx ended: {(folder / "log").read_text()}') from None
                    time.sleep(0.05)
            yield url
        finally:
            server.terminate()


def rate(cache: CacheReader, num_threads: int, *, num_passes: int) -> float:
    """Images/s of all images in random order."""
    image_ids = list(cache.image_ids) * num_passes
    random.Random(0).shuffle(image_ids)
    start = time.perf_counter()
    with ThreadPoolExecutor(num_threads) as pool:
        for _ in pool.map(cache.read_encoded, image_ids):
            pass
    return len(image_ids) / (time.perf_counter() - start)


def main() -> None:
    parser = described_parser(__doc__)
    add = parser.add_argument
    add('--codec', default='lean', choices=ZSTD_LEVELS, help='codec of the cache (default %(default)s)')
    add('--scale', metavar='WxH', default='1333x800', help='scale of its images of 640x480 px (default %(default)s)')
    add('--images', type=int, default=48, help='images of the cache (default %(default)s)')
    add('--threads', type=int, nargs='+', default=[1, 4, 8, 16], help='threads by URL (default 1 4 8 16)')
    add('--rounds', type=int, default=9, help='measured rounds (default %(default)s)')
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2 or not (shutil.which('nginx') or Path('/usr/sbin/nginx').is_file()):
        raise SystemExit('bench_remote_read.py needs two cores and nginx; install nginx')
    torch.set_num_threads(1)
    # As a trainer does in its first step: from then on the C library keeps what is freed, up to twice as much, and the
    # kernel need not clear the memory of each map.
    torch.ones(FREED_BYTES, dtype=torch.int8)
    with tempfile.TemporaryDirectory() as name:
        width, height = map(int, options.scale.split('x'))
        synthetic_cache(Path(name, 'served'), options.codec, num_images=options.images, scale=(width, height))
        # nginx reads as another user.
        Path(name).chmod(0o755)
        with served(Path(name), cores[0]) as url:
            os.sched_setaffinity(0, {cores[1]})
            local, remote = mtpd.cache.open(Path(name, 'served')), mtpd.cache.open(url)
            ways = {'folder, 1 thread': partial(rate, local, 1, num_passes=4)}
            for number in options.threads:
                ways[f'URL, {number} threads'] = partial(rate, remote, number, num_passes=4)
            rounds = interleaved(ways, options.rounds)
    print('place | images/s | against the folder')
    ratios = {}
    for place in ways:
        ratios[place] = median_ratio((one[place] for one in rounds), (one['folder, 1 thread'] for one in rounds))
        print(f'{place} | {median(one[place] for one in rounds):.0f} | {ratios[place]:.3f}')
    print(f'remote/local {max(value for place, value in ratios.items() if place.startswith("URL")):.3f}')


if __name__ == '__main__':
    main()
