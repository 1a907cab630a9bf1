"""From `training` down, the program runs without ray, optuna and mlflow, and trains without pyarrow."""

import subprocess
import sys

from examples import experiment_of

SCRIPT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"ray", "optuna", "mlflow", "pyarrow"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
from gpm_tune.training import Experiment, Trainer, loop

trainer = Trainer(Experiment.model_validate_json(sys.argv[1]))
print(sorted(trainer.run_interval().measured.metrics))
"""


def test_the_core_trains_with_the_study_libraries_blocked() -> None:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, experiment_of(training__steps=4).model_dump_json()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "sliced_wasserstein" in result.stdout
