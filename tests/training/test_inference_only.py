"""Training depends on no inference-only key, bit for bit: of every model, every such key is changed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import IMAGE_MODELS, IMAGES, KERNEL_FLOW, MODELS, POINTS
from plugin_models import StraightConfig
from training_runs import teacher_of

from gpm_tune.models import model_classes
from gpm_tune.plugins import name_of
from gpm_tune.study.definition import space
from gpm_tune.training import Experiment, Trainer

STEPS = {"training.steps": 5, "training.ema": 0.9}
CHURNED = {"model.solver": {"name": "heun", "s_churn": 5.0}, "model.grid": {"name": "rho"}}
MULTISTEP = {"model.solver": {"name": "ipndm"}}
BASES: dict[str, dict[str, Any]] = {
    "discr_flow": space.put(POINTS, STEPS),
    **{name: space.put(POINTS, {**STEPS, "model": model}) for name, model in MODELS.items()},
    "edm": space.put(POINTS, {**STEPS, "model": MODELS["edm"], **CHURNED}),
    "edm of images": space.put(POINTS, {**STEPS, **IMAGES, "model": IMAGE_MODELS["edm"], **CHURNED}),
    "mmd_generator": space.put(POINTS, {**STEPS, "model": MODELS["mmd_generator"], **MULTISTEP}),
    "kernel_flow": space.put(KERNEL_FLOW, MULTISTEP),
}
# Another value of every inference-only key that any of them has.
OTHERS: dict[str, Any] = {
    "model.sampling_steps": 3,
    "model.sampling_noise.sigma_min": 0.01,
    "model.sampling_noise.sigma_max": 20.0,
    "model.sampling_noise.rho": 3.0,
    "model.grid.name": "log_snr",
    "model.grid.end": "sigma_min",
    "model.analytic_first_step": True,
    "model.solver.name": "ab",
    "model.solver.order": 2,
    "model.solver.s_churn": 9.0,
    "model.solver.s_min": 0.5,
    "model.solver.s_max": 1.0,
    "model.solver.s_noise": 1.1,
    "model.eta": 300.0,  # untrained discriminators are nearly flat
    "model.prior.mean": 0.5,
    "model.prior.std": 2.0,
    "evaluation.every": 3,
    "evaluation.nfe": [1],
    "evaluation.samples": 30,
    "evaluation.batch_size": 7,
    "evaluation.metrics": ["sliced_wasserstein"],
    "evaluation.inception_weights": "/nowhere",  # read for Inception only
    "evaluation.reference": {"nfe": 4, "value": 1.0},
}
FEATURES = "evaluation.features"  # of points there are none, of images Inception would have to be downloaded
# Keys of sampling that training depends on.
SIMULATED = ["model.sampling_steps", "model.eta", "model.prior.mean", "model.prior.std"]


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        elif prefix + key != FEATURES:
            yield prefix + key


CASES = [
    (base, path)
    for base, tree in BASES.items()
    for path in leaves(Experiment.model_validate(tree).inference_part())
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the Score GAN's teacher is kept."""
    return tmp_path_factory.mktemp("teachers")


def trained(tree: dict[str, Any], folder: Path) -> dict[str, torch.Tensor]:
    """Everything that training has changed: weights, averages, the optimisers' moments, random numbers."""
    experiment = Experiment.model_validate(tree)
    trainer = Trainer(experiment, teacher=teacher_of(experiment, folder))
    while not trainer.done:
        trainer.run_interval()
    found = {**trainer.model.state_dict(prefix="last."), "rng": trainer._rng.get_state()}
    found |= trainer.evaluated_model.state_dict(prefix="average.")
    for part, optimizer in trainer._optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            found |= {f"{part}.{index}.{key}": moment for key, moment in moments.items()}
    return found


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def of_base(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """What the training of each base comes to."""
    return {base: trained(tree, folder) for base, tree in BASES.items()}


@pytest.mark.parametrize(("base", "path"), CASES, ids=str)
def test_training_does_not_depend_on_an_inference_only_key(
    base: str, path: str, of_base: dict[str, dict[str, torch.Tensor]], folder: Path
) -> None:
    changed = space.put(BASES[base], {path: OTHERS[path]})
    one, other = (Experiment.model_validate(tree) for tree in (BASES[base], changed))
    assert one.inference_part() != other.inference_part()
    assert one.trained_part() == other.trained_part()
    assert equal(trained(changed, folder), of_base[base])


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        *((base, {"training.optimizer.lr": 1e-3}) for base in BASES if base != "kernel_flow"),
        ("kernel_flow", {"model.data_samples": 50}),
        *(("discr_flow", {path: OTHERS[path]}) for path in SIMULATED),
        ("discr_flow", {"model.entropy": 0.5}),
        ("edm", {"model.training_noise.mean": -1.0}),
        ("score_gan", {"model.noise.rho": 5.0}),
        ("edm", {"seed": 1}),
    ],
    ids=str,
)
def test_training_depends_on_keys_without_the_mark(
    base: str, changes: dict[str, Any], of_base: dict[str, dict[str, torch.Tensor]], folder: Path
) -> None:
    changed = space.put(BASES[base], changes)
    one, other = (Experiment.model_validate(tree) for tree in (BASES[base], changed))
    assert one.trained_part() != other.trained_part()
    assert not equal(trained(changed, folder), of_base[base])


def test_every_model_is_among_them() -> None:
    assert {tree["model"]["name"] for tree in BASES.values()} == {name_of(model) for model in model_classes()}


def test_a_plugins_model_marks_its_own() -> None:
    model = StraightConfig(name="straight")
    assert model.inference_only_keys == ["sampling_steps", "solver"]
    assert model.trained_part().keys() == {"name", "network"}


def test_without_a_mark_the_solver_of_a_simulation_counts() -> None:
    """A flow that is fitted to simulated particles has no inference-only keys in its model."""
    experiment = Experiment.model_validate(POINTS)
    assert experiment.inference_only_keys == ["evaluation"]
