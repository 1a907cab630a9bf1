"""The four models on the paper's 2-D Gaussians, with its hyperparameters but fewer steps, reach its quality.

benchmarks/gaussians.py measures the paper's steps, over seeds.
"""

from pathlib import Path

import pytest
from examples import shipped_experiment
from training_runs import teacher_of

from gpm_tune.training import Evaluation, Trainer

# Steps here (of the paper's), and the sliced Wasserstein distance that the authors' implementation
# reaches with the paper's, at its worst seed.
RUNS = {
    "gan": (1900, 1900, 0.40),
    "edm": (2000, 10_000, 0.22),
    "score_gan": (12_600, 31_500, 0.30),
    "discr_flow": (400, 4000, 0.27),
}
TEACHER_STEPS = 4000


# A GAN's seed may miss a mode, about one in ten with the paper's hyperparameters: some are tried.
SEEDS = {"gan": 3}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", RUNS)
def test_all_modes_are_covered_at_the_reference_distance(name: str, tmp_path: Path) -> None:
    _, paper, target = RUNS[name]
    assert shipped_experiment(f"{name}_gaussians.yaml").training.steps == paper
    found = []
    for seed in range(SEEDS.get(name, 1)):
        best = train(name, seed, tmp_path).metrics
        found.append((best["modes_covered"], best["sliced_wasserstein"]))
        if found[-1][0] == 1 and found[-1][1] <= target:
            return
    pytest.fail(f"modes covered and distance, by seed: {found}; expected 1 and at most {target}")


def train(name: str, seed: int, folder: Path) -> Evaluation:
    """The best evaluation of a seed."""
    steps, _, _ = RUNS[name]
    # Processors with bfloat16 would train another way, and one seed of it says nothing.
    precision = {"training.precision": "float32"}
    changes = {"training.steps": steps, "evaluation.every": steps // 4, "seed": seed, **precision}
    if name == "score_gan":
        changes |= {
            "model.teacher.experiment.training.steps": TEACHER_STEPS,
            "model.teacher.experiment.evaluation.every": TEACHER_STEPS // 2,
            "model.teacher.experiment.training.precision": "float32",
        }
    experiment = shipped_experiment(f"{name}_gaussians.yaml", changes)
    trainer = Trainer(experiment, teacher=teacher_of(experiment, folder))
    while not trainer.done:
        trainer.run_interval()
    assert trainer.best is not None
    return trainer.best
