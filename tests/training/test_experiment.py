"""The experiment schema: defaults are the paper's, impossible combinations are refused."""

import re
from pathlib import Path

import pytest
from contents import write_pictures
from examples import IMAGES, MODELS, POINTS, TEACHER, experiment_of
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gpm_tune.documents import Document
from gpm_tune.errors import UserError
from gpm_tune.models.score_gan import TeacherConfig
from gpm_tune.training import Experiment, Objective, Trainer
from gpm_tune.training.experiment import LONGEST_LABEL, folder_safe
from gpm_tune.training.objectives import TIMES

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


def test_a_teacher_is_validated_once_and_is_that_of_the_model_at_hand() -> None:
    experiment = experiment_of(model=MODELS["score_gan"])
    assert experiment.teacher is not None
    assert experiment.teacher is experiment.teacher
    assert experiment.model_copy(update={"seed": 1}).teacher == experiment.teacher
    assert experiment.model_copy(update={"model": experiment.teacher.model}).teacher is None
    again = Experiment.model_validate_json(experiment.model_dump_json())
    assert again == experiment
    assert "teacher" not in experiment.model_dump()


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


EDM = experiment_of(model=MODELS["edm"])


@pytest.mark.parametrize(
    ("changes", "same_training", "same_measure"),
    [
        ({"training__steps": 99}, True, True),
        ({"model__sampling_steps": 9}, True, False),
        ({"model__solver": {"name": "euler"}}, True, False),
        ({"evaluation__every": 5}, True, False),
        ({"evaluation__batch_size": 50}, True, False),
        ({"training__batch_size": 8}, False, True),
        ({"model__training_noise__std": 1.0}, False, True),
        ({"data__std": 0.4}, False, True),
        ({"seed": 1}, False, True),
    ],
    ids=str,
)
def test_digests_tell_trainings_and_measurements_apart(
    changes: dict[str, object], same_training: bool, same_measure: bool
) -> None:
    changed = experiment_of(model=MODELS["edm"], **changes)
    assert (changed.training_digest == EDM.training_digest) is same_training
    assert (changed.judge() == EDM.judge()) is same_measure
    assert (changed.run_name == EDM.run_name) is same_training


def test_digests_have_their_lengths_and_outlive_a_round_trip() -> None:
    assert re.fullmatch("[0-9a-f]{12}", EDM.training_digest)
    assert re.fullmatch("[0-9a-f]{8}", EDM.judge())
    again = Experiment.model_validate_json(EDM.model_dump_json())
    reversed_keys = Experiment.model_validate(dict(reversed(EDM.model_dump(mode="json").items())))
    for other in (again, reversed_keys):
        assert (other.training_digest, other.judge()) == (EDM.training_digest, EDM.judge())


def test_equal_digests_are_of_equal_evaluations() -> None:
    """A longer training is the same one, continued: what was measured on the way is the same."""
    longer = experiment_of(model=MODELS["edm"], training__steps=2 * EDM.training.steps)
    found = []
    for experiment in (EDM, longer):
        evaluation = Trainer(experiment).run_interval()
        assert evaluation is not None
        measured = evaluation.measured.as_text().items()
        found.append({k: v for k, v in measured if k not in TIMES and not k.startswith("system/")})
    assert found[0] == found[1]
    assert "frechet" in found[0]


@pytest.mark.parametrize("key", ["training.steps", "evaluation.samples", "model.sampling_steps", "seed"])
def test_of_a_teachers_experiment_everything_counts(key: str) -> None:
    """Which of its weights are followed depends on its evaluations, and on how many there are."""
    assert TeacherConfig(experiment=TEACHER).trained_part()["experiment"] == TEACHER
    one, other = (
        experiment_of(**{"model": MODELS["score_gan"], f"model.teacher.experiment.{key}": value})
        for value in (100, 101)
    )
    assert one.training_digest != other.training_digest


def test_other_pictures_in_a_folder_are_another_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPM_TUNE_DATA", str(tmp_path / "cache"))
    names = []
    for content in (1, 2):
        data = write_pictures(tmp_path, content)
        names.append(experiment_of(**{**IMAGES, "data": data.model_dump(mode="json")}).run_name)
    assert names[0] != names[1]
    assert {re.sub("[0-9a-f]{12}$", "", name) for name in names} == {"discr_flow-folder_pictures-"}


@given(st.text())
def test_a_label_is_made_safe_for_names_of_folders(label: str) -> None:
    safe = folder_safe(label)
    assert re.fullmatch("[A-Za-z0-9_.-]*", safe)
    assert len(safe) == min(len(label), LONGEST_LABEL)
    assert folder_safe(safe) == safe


def test_usual_labels_are_as_they_are() -> None:
    assert EDM.run_name == f"edm-gaussians-{EDM.training_digest}"
    assert folder_safe("my-pictures_v1.2") == "my-pictures_v1.2"
