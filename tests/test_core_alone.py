"""From `training` down, the program runs without ray, optuna and mlflow."""

import subprocess
import sys

SCRIPT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"ray", "optuna", "mlflow"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
from examples import experiment_of
from gpm_tune.training import Trainer

trainer = Trainer(experiment_of(training__steps=4))
print(sorted(trainer.run_interval().metrics))
"""


def test_the_core_trains_with_the_study_libraries_blocked() -> None:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        cwd=__file__.rpartition("/")[0],
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "sliced_wasserstein" in result.stdout
