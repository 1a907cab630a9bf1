"""Fixtures of the tests of tracking."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@pytest.fixture(scope="module")
def answering() -> Iterator[str]:
    """The address of a server that answers /CODE with that code, and nothing else."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            _, code, *rest = self.path.split("/")
            self.send_response(int(code))
            self.end_headers()
            self.wfile.write(b"Invalid Host header" if rest[0] == "host" else b"no")

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
