"""Threads import nothing: of a module that two threads import at once, either may see the half."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

PROGRAM = """
import sys, threading
from importlib.abc import MetaPathFinder

from pathlib import Path

asked = set()

class Witness(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread() is not threading.main_thread():
            asked.add(name)

sys.meta_path.insert(0, Witness())
folder = Path(sys.argv[1])
"""
PUBLISHES = """
from gpm_tune.study.tracking.publisher import Publisher
from gpm_tune.study.tracking.views import Point, Version, View
from gpm_tune.uris import URI
views = {
    "run": View(
        key="run", name="run", parent=None, started=1, ended=2, status="FINISHED", params={"a": 1},
        tags={"b": "c"}, points=[Point("fid", 1.0, 1, 1)], files={"checkpoint/x.txt": lambda: b"1"},
        versions=[Version("model", {"a": "b"})],
    ),
    "trial": View("trial", "trial", "run", 1, None, "RUNNING", {}, {}, [], {}),
}
store = URI(f"sqlite:///{folder}/mlflow.db")
with Publisher(store, "study", views.get, str(folder / "artifacts")) as publisher:
    publisher.touch(*views)
    assert publisher.close() == 0
"""
DECODES = """
from gpm_tune.data.images import decode_all
decode_all(sorted(folder.glob("*.tif")), 1, 8, folder / "pictures.npy")
"""
MIRRORS = """
import time
from gpm_tune.study.storage import mirror
from gpm_tune.study.storage.home import STUDY_FILES, Home
home = Home(folder / "home", storage=str(folder / "storage"))
home.open_runs()
home.study("small").mkdir(parents=True)
for name in STUDY_FILES:
    (home.study("small") / name).touch()
mirror.PUSH_EVERY = 0.01
with mirror.Mirror(home, "small"):
    while not list(folder.glob("storage/**/optuna.db")):
        time.sleep(0.1)
"""
ENDING = """
print(*sorted(name for name in asked if name in sys.modules))  # others are not installed
"""


@pytest.mark.parametrize("work", [PUBLISHES, DECODES, MIRRORS], ids=["publishes", "decodes", "mirrors"])
def test_what_threads_use_was_imported_before_they_began(work: str, tmp_path: Path) -> None:
    for number, mode in enumerate(("RGB", "LAB", "CMYK")):
        Image.new(mode, (9, 9)).save(tmp_path / f"{number}.tif")
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM + work + ENDING, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []
