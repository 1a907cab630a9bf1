"""Inception's weights: downloaded by one of several processes, to where they outlive a container."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gpm_tune.metrics import features
from gpm_tune.metrics.features import INCEPTION_FILE, download_inception, inception_file

CONTENT = b"weights" * 100_000
PROGRAM = """
import sys
import torch_fidelity.feature_extractor_inceptionv3 as theirs
from gpm_tune.metrics import features

theirs.URL_INCEPTION_V3, features.INCEPTION_FILE = sys.argv[1:3]
file = features.inception_file(None)
features.download_inception(file)
print(file, file.stat().st_size)
"""


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A web server with the weights: its address, and what was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_address[1]}/weights.pth", asked
        found.shutdown()


def test_of_three_processes_one_downloads_into_the_data_folder(
    tmp_path: Path, server: tuple[str, list[str]]
) -> None:
    url, asked = server
    name = f"weights-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"
    environment = {
        **os.environ,
        "GPM_TUNE_DATA": str(tmp_path / "data"),
        "TORCH_HOME": str(tmp_path / "torch"),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, url, name], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    said = {process.communicate(timeout=120)[0] for process in processes}
    assert said == {f"{tmp_path / 'data' / 'weights' / name} {len(CONTENT)}\n"}
    assert len(asked) == 1


def test_what_is_not_inceptions_weights_is_not_kept(
    tmp_path: Path, server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.URL_INCEPTION_V3", server[0])
    with pytest.raises(RuntimeError, match="hash"):
        download_inception(tmp_path / INCEPTION_FILE)
    assert not (tmp_path / INCEPTION_FILE).exists()


def test_what_torch_has_downloaded_before_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPM_TUNE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert inception_file(None) == tmp_path / "data" / "weights" / features.INCEPTION_FILE
    file = tmp_path / "hub" / "checkpoints" / features.INCEPTION_FILE
    file.parent.mkdir(parents=True)
    file.touch()
    assert inception_file(None) == file
    assert inception_file(tmp_path / "mine.pth") == tmp_path / "mine.pth"
