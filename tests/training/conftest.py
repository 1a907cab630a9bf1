"""Trained models that the tests of what is made of checkpoints share."""

import pytest
from examples import IMAGE_MODELS, IMAGES, KERNEL_FLOW, MODELS, experiment_of

from gpm_tune.training import Experiment, Trainer
from gpm_tune.training.saved import SavedModel


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SavedModel]:
    """A trained model of each kind; not to be changed."""
    root = tmp_path_factory.mktemp("runs")
    experiments = {
        "discr_flow": experiment_of(model__sampling_steps=6),
        "edm": experiment_of(model={**MODELS["edm"], "sampling_steps": 8}),
        "gan": experiment_of(model=MODELS["gan"]),
        "kernel": Experiment.model_validate(KERNEL_FLOW),
        "images": experiment_of(**{**IMAGES, "model": IMAGE_MODELS["edm"]}),
    }
    for name, experiment in experiments.items():
        trainer = Trainer(experiment)
        trainer.run_interval()
        trainer.save(root / name)
    return {name: SavedModel.at(root / name) for name in experiments}
