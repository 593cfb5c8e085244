"""A web server of a folder, on loopback, that can fail in the ways of real ones."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

# A connection that is cut in the middle of a body, an answer after a while, a body that is shorter than its header
# says, the bytes of another place, changed bytes, and a server that is too busy.
Fault = Literal['cut', 'slow', 'short', 'shifted', 'changed', 'busy']
PASSING: tuple[Fault, ...] = ('cut', 'slow', 'short', 'busy')


class WebServer:
    """Answers GET and HEAD, with ranges; `faults` are drawn for the share `rate` of the requests of each kind."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.faults: tuple[Fault, ...] = ()
        self.rate = 0.0
        self.num_requests = 0
        self.random = random.Random(0)
        self._server = ThreadingHTTPServer(('127.0.0.1', 0), self._handler())
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self._server.server_port}'

    @contextmanager
    def running(self) -> Iterator['WebServer']:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'
            wbufsize = -1  # one packet an answer: else each waits for an acknowledgement

            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def _answer(self, *, with_body: bool) -> None:
                web.num_requests += 1
                fault = web.random.choice(web.faults) if web.faults and web.random.random() < web.rate else None
                path = web.root / self.path.lstrip('/')
                if fault == 'busy' or not path.is_file():
                    self.send_response(503 if fault == 'busy' else 404)
                    self.send_header('Content-Length', '0')
                    self.end_headers()
                    return
                if fault == 'slow':
                    time.sleep(0.2)
                content, size = path.read_bytes(), path.stat().st_size
                span, wanted = range(size), self.headers.get('Range')
                if wanted is not None:
                    first, last = wanted.removeprefix('bytes=').split('-')
                    span = range(int(first), min(int(last or size), size - 1) + 1)
                body = content[span.start : span.stop]
                if fault == 'shifted':
                    body = (content[span.stop :] + content)[: len(body)]
                if fault == 'changed' and body:
                    body = bytes([body[0] ^ 1]) + body[1:]
                if fault == 'short':
                    body = body[: len(body) // 2]
                self.send_response(200 if wanted is None else 206)
                self.send_header('Content-Length', str(len(body)))
                self.send_header('Last-Modified', 'Sun, 01 Jan 2023 00:00:00 GMT')
                self.send_header('ETag', '"1"')
                if wanted is not None:
                    self.send_header('Content-Range', f'bytes {span.start}-{span.stop - 1}/{size}')
                self.end_headers()
                if with_body:
                    self.wfile.write(body[: len(body) // 2] if fault == 'cut' else body)
                if fault == 'cut':
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        return Handler
