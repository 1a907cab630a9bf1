"""What is published can be installed and run; `make release` does it from nothing, dependencies included."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from gpm_tune import __version__

ROOT = Path(__file__).parents[2]


def run(*words: str | Path, **options: object) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=280, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel, and the source distribution from which it was built."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


@pytest.mark.slow
def test_the_wheel_has_what_the_program_reads(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.name.startswith(f"gpm_tune-{__version__}-")
    names = set(zipfile.ZipFile(wheel).namelist())
    source = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "gpm_tune").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    studies = {f"gpm_tune/search_spaces/{path.name}" for path in (ROOT / "search_spaces").iterdir()}
    assert names >= source | studies
    assert not [name for name in names if name.startswith(("tests", "analysis", "benchmarks", "docs"))]


@pytest.mark.slow
def test_the_source_distribution_has_what_its_tests_need(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        top = {Path(name).parts[1] for name in tar.getnames() if len(Path(name).parts) > 1}
    folders = {"analysis", "benchmarks", "docs", "documentation", "gpm_tune", "search_spaces", "tests"}
    assert top >= folders | {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "Makefile"}


@pytest.mark.slow
def test_an_installed_wheel_runs_a_study(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "lib", wheel)
    program = "import gpm_tune; print(gpm_tune.__file__)"
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path / "lib"),
        "PATH": f"{tmp_path / 'lib' / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    assert str(tmp_path) in run(sys.executable, "-c", program, env=environment, cwd=tmp_path)
    said = run("bash", ROOT / "tests" / "release" / "smoke.sh", env=environment, cwd=tmp_path)
    assert "1 complete" in said
    assert "torch.Size([3, 2])" in said
