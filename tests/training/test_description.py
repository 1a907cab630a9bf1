"""What experiments need: the paper's parameter counts, FLOPs by hand, and memory."""

import pytest
from examples import KERNEL_FLOW, MODELS, experiment_of

from gpm_tune.documents import Document
from gpm_tune.study.definition.specification import find_file, load_experiment
from gpm_tune.training import Experiment
from gpm_tune.training.description import Description, describe


def described(name: str) -> Description:
    from pathlib import Path

    return describe(load_experiment(Document.load(find_file(Path(name)))))


@pytest.mark.parametrize(
    ("study", "networks"),
    [
        ("discr_flow_gaussians.yaml", {"discriminator": 855_553}),
        ("discr_flow.yaml", {"discriminator": 3_355_010}),
        ("gan_gaussians.yaml", {"discriminator": 790_017, "generator": 855_042}),
        ("gan.yaml", {"discriminator": 2_763_072, "generator": 3_803_584}),
        ("edm_gaussians.yaml", {"denoiser": 856_066}),
        ("edm.yaml", {"denoiser": 332_481}),
        (
            "score_gan.yaml",
            {"generated_denoiser": 7_036_737, "generator": 3_803_584, "teacher": 332_481},
        ),
    ],
)
def test_the_papers_parameter_counts(study: str, networks: dict[str, int]) -> None:
    assert described(study).networks == networks


def test_flops_of_an_mlp_by_hand() -> None:
    """Forward 2·weights per sample; training three times that but for the input's gradient."""
    experiment = experiment_of(model={**MODELS["edm"], "solver": {"name": "euler"}}, training__batch_size=10)
    found = describe(experiment)
    forward = 2 * (10 * 16 + 16 * 16 + 16 * 2)
    assert found.flops_per_sample == 4 * forward
    assert found.flops_per_step == 10 * (3 * forward - 2 * 10 * 16)


def test_a_discriminator_flow_pays_for_half_its_path() -> None:
    """The mean of a random stop in {0, …, N-1} is (N-1)/2 steps."""
    short, long = (describe(experiment_of(model__sampling_steps=n)).flops_per_step for n in (1, 41))
    sample = describe(experiment_of(model__sampling_steps=40)).flops_per_sample / 40
    assert (long - short) / (20 * 16 * sample) == pytest.approx(1.0, rel=0.05)


def test_generator_steps_count_in_their_proportion() -> None:
    one, four = (
        describe(experiment_of(model={**MODELS["gan"], "discriminator_steps": n})).flops_per_step
        for n in (1, 4)
    )
    assert one > four


def test_memory_counts_weights_gradients_adam_and_the_teacher() -> None:
    gan = describe(experiment_of(model=MODELS["gan"]))
    assert gan.memory_of_weights == 4 * 4 * sum(gan.networks.values())
    score_gan = describe(experiment_of(model=MODELS["score_gan"]))
    trained = sum(n for name, n in score_gan.networks.items() if name != "teacher")
    assert score_gan.memory_of_weights == 4 * (4 * trained + score_gan.networks["teacher"])


def test_memory_of_a_step_grows_with_the_batch_and_not_with_the_path() -> None:
    short, long, wide = (
        describe(experiment_of(model__sampling_steps=n, training__batch_size=size)).memory_of_step
        for n, size in ((4, 16), (40, 16), (4, 32))
    )
    assert long == pytest.approx(short, rel=0.1), "each step's graph is freed before the next"
    assert wide == pytest.approx(2 * short, rel=0.01)


def test_a_flow_without_networks_has_none() -> None:
    found = describe(Experiment.model_validate(KERNEL_FLOW))
    assert found.networks == {}
    assert found.nfe == 10
    assert found.plain()["networks"] == {}
