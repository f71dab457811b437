"""A proxy before an S3 server that counts what any client asks of it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_PIECE = 1 << 18
_HOP = {"connection", "keep-alive", "transfer-encoding"}


@contextmanager
def counting_requests(address: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield an endpoint that passes everything on to `address`, and the counts."""
    counts: Counter[str] = Counter()
    lock = threading.Lock()

    class Proxy(_Proxy):
        def note(self) -> None:
            with lock:
                counts[self.command] += 1

    Proxy.server_address = address
    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", counts
        finally:
            server.shutdown()
            thread.join()


class _Proxy(BaseHTTPRequestHandler):
    """One client's connection; the signature holds, since Host is passed on."""

    protocol_version = "HTTP/1.1"
    server_address: str

    def note(self) -> None:
        raise NotImplementedError

    def do_GET(self) -> None:
        self.note()
        with closing(HTTPConnection(self.server_address, timeout=600)) as upstream:
            self._pass_on(upstream)

    def _pass_on(self, upstream: HTTPConnection) -> None:
        upstream.putrequest(
            self.command, self.path, skip_host=True, skip_accept_encoding=True
        )
        for name, value in self.headers.items():
            if name.lower() not in {"expect", *_HOP}:
                upstream.putheader(name, value)
        upstream.endheaders()
        left = int(self.headers.get("Content-Length") or 0)
        while left > 0:
            piece = self.rfile.read(min(left, _PIECE))
            if not piece:
                break
            upstream.send(piece)
            left -= len(piece)
        self._answer(upstream.getresponse())

    def _answer(self, answer: HTTPResponse) -> None:
        self.send_response_only(answer.status)
        length = answer.getheader("Content-Length")
        body = None if length else answer.read()
        for name, value in answer.getheaders():
            if name.lower() not in {"content-length", *_HOP}:
                self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(body or b"")))
        self.end_headers()
        if body is not None:
            self.wfile.write(body)
        while piece := answer.read(_PIECE):
            self.wfile.write(piece)

    # The names are the base class's.
    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Say nothing."""
