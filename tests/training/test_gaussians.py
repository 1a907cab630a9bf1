"""The four models on the paper's 2-D Gaussians reach its quality: the GAN as it is there, others in small.

benchmarks/gaussians.py measures the paper's networks and steps, over seeds.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from examples import shipped_experiment
from training_runs import teacher_of

from gpm_tune.training import Evaluation, Trainer

PAPERS_STEPS = {"gan": 1900, "edm": 10_000, "score_gan": 31_500, "discr_flow": 4000}
# Narrower networks learn the same in fewer steps, at higher rates; EDM_ is of the teacher, too.
EDM: dict[str, Any] = {
    "training.steps": 1200,
    "training.optimizer.lr": 1e-3,
    "model.denoiser.network.width": 128,
}
SMALL: dict[str, dict[str, Any]] = {
    "gan": {},
    "edm": EDM,
    "score_gan": {
        "training.steps": 3000,
        "training.optimizer.lr": 1e-3,
        "training.generator_optimizer.lr": 1e-3,
        "model.score_steps": 4,
        "model.generated.network.width": 128,
        "model.generator.width": 128,
        **{f"model.teacher.experiment.{path}": value for path, value in EDM.items()},
        "model.teacher.experiment.evaluation.every": 1200,
        "model.teacher.experiment.training.precision": "float32",
    },
    "discr_flow": {
        "data.modes": 3,
        "training.steps": 240,
        "training.optimizer.lr": 5e-4,
        "model.discriminator.width": 128,
    },
}
# Sliced Wasserstein distances. The GAN's is what the authors' implementation reaches at its worst seed; the
# others have reached, at the worse of two seeds, 0.16 (EDM), 0.36 (Score GAN) and 0.46 (Discriminator Flow).
TARGETS = {"gan": 0.40, "edm": 0.22, "score_gan": 0.50, "discr_flow": 0.55}


# A GAN's seed may miss a mode, about one in ten with the paper's hyperparameters: some are tried.
SEEDS = {"gan": 3}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SMALL)
def test_all_modes_are_covered_at_the_reference_distance(name: str, tmp_path: Path) -> None:
    assert shipped_experiment(f"{name}_gaussians.yaml").training.steps == PAPERS_STEPS[name]
    found = []
    for seed in range(SEEDS.get(name, 1)):
        for evaluation in train(name, seed, tmp_path):
            metrics = evaluation.metrics
            found.append((seed, evaluation.step, metrics["modes_covered"], metrics["sliced_wasserstein"]))
            if metrics["modes_covered"] == 1 and metrics["sliced_wasserstein"] <= TARGETS[name]:
                return
    pytest.fail(f"seed, step, modes covered, distance: {found}; expected 1 and at most {TARGETS[name]}")


def train(name: str, seed: int, folder: Path) -> Iterator[Evaluation]:
    """The evaluations of a seed, as they come."""
    steps = SMALL[name].get("training.steps", PAPERS_STEPS[name])
    # Processors with bfloat16 would train another way, and one seed of it says nothing.
    changes = {"evaluation.every": steps // 4, "seed": seed, "training.precision": "float32"}
    experiment = shipped_experiment(f"{name}_gaussians.yaml", {**SMALL[name], **changes})
    trainer = Trainer(experiment, teacher=teacher_of(experiment, folder))
    while not trainer.done:
        evaluation = trainer.run_interval()
        assert evaluation is not None
        yield evaluation
