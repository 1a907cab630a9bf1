"""The experiment schema: defaults are the paper's, impossible combinations are refused."""

import pytest
from examples import MODELS, POINTS, TEACHER, experiment_of
from pydantic import ValidationError

from gpm_tune.documents import Document
from gpm_tune.errors import UserError
from gpm_tune.training import Experiment, Objective

MNIST = {"data": {"name": "mnist"}, "model": {"name": "discr_flow"}, "training": {"steps": 200_000}}


def test_defaults_are_the_papers_for_mnist() -> None:
    model = Experiment.model_validate(MNIST).model
    assert (model.loss, model.sampling_steps, model.eta) == ("ipm", 64, 2.0)
    assert model.gradient_penalty is not None
    assert (model.gradient_penalty.weight, model.gradient_penalty.center) == (0.04, 0.0)
    assert model.time_embedding.size == 128
    assert model.discriminator.model_dump() == {
        "name": "dcgan",
        "width": 64,
        "norm": "none",
        "first_bias": True,
        "init": {"name": "orthogonal", "gain": 1.41},
    }


def test_an_experiment_survives_the_round_trip_through_json() -> None:
    experiment = experiment_of()
    assert Experiment.model_validate_json(experiment.model_dump_json()) == experiment


def test_a_dcgan_on_points_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"'dcgan' takes images.*for points choose 'mlp'"):
        experiment_of(model__discriminator={"name": "dcgan"})


def test_features_for_points_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"evaluation.features is for images"):
        experiment_of(evaluation__features="small")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("training__steps", -1, "greater than or equal to 0"),
        ("training__steps", 0, "training.steps must be at least 1 to train model 'discr_flow'"),
        ("training__generator_optimizer", {}, "model 'discr_flow' has no generator"),
        ("model", {"name": "kernel_flow"}, "training.steps must be 0: model 'kernel_flow' without"),
        ("training__ema", 1.0, "less than 1"),
        ("model__eta", -1, "greater than 0"),
        ("model__loss", "wgan", "'ipm', 'vanilla' or 'hinge'"),
        ("model__discriminator__name", "dcgen", "'mlp', 'dcgan', 'resnet', 'fastgan'"),
        ("data__name", "minst", "'gaussians', 'digits', 'mnist', 'celeba'"),
        ("seed", -1, "greater than or equal to 0"),
    ],
)
def test_values_out_of_range_are_refused(path: str, value: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        experiment_of(**{path: value})


def test_errors_inside_unions_point_at_the_key() -> None:
    data = {**POINTS, "model": {**POINTS["model"], "discriminator": {"name": "mlp", "widht": 3}}}
    lines = {("model",): 5, ("model", "discriminator"): 8, ("model", "discriminator", "widht"): 9}
    with pytest.raises(UserError) as error:
        Document("study.yaml", data, lines).parse(Experiment)
    assert str(error.value).startswith(
        "study.yaml:9: model.discriminator.widht: unknown key 'widht'; did you mean 'width'?"
    )
    del data["model"]["discriminator"]["name"]
    with pytest.raises(UserError, match=r"model.discriminator.name: the key is missing; valid: dcgan"):
        Document("study.yaml", data, lines).parse(Experiment)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({}, "exactly one of checkpoint, run, experiment"),
        ({"checkpoint": "a", "run": "b"}, "exactly one of checkpoint, run, experiment"),
        (
            {"experiment": POINTS},
            "a teacher is an 'edm'.*this is a 'discr_flow'",
        ),
        (
            {"experiment": {**TEACHER, "data": {"name": "digits"}}},
            r"samples of shape \(1, 16, 16\) \(data 'digits'\), this experiment's have \(2,\)",
        ),
        ({"experiment": {**TEACHER, "training": {"steps": 0}}}, "training.steps must be at least 1"),
    ],
)
def test_teachers_that_do_not_fit_are_refused(teacher: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        experiment_of(model={**MODELS["score_gan"], "teacher": teacher})


def test_missing_keys_are_named() -> None:
    data = {"data": {"name": "digits"}, "model": {"name": "discr_flow"}, "training": {}}
    with pytest.raises(UserError, match=r"study.yaml:3: training.steps: the key is missing"):
        Document("study.yaml", data, {("training",): 3}).parse(Experiment)


def test_an_objective_knows_what_is_better() -> None:
    fid, coverage = Objective(metric="fid", mode="min"), Objective(metric="modes_covered", mode="max")
    assert fid.better(1.0, fid.worst)
    assert fid.better(1.0, 2.0)
    assert not fid.better(2.0, 2.0)
    assert coverage.better(0.0, coverage.worst)
    assert coverage.better(1.0, 0.8)
