"""Teachers: trained once, in a run of their own, and checked against what they are to teach."""

from pathlib import Path

import pytest
import torch
from examples import MODELS, SMALL_DENOISER, SMALL_MLP, TEACHER, experiment_of
from training_runs import runs_at, teacher_of, train

from gpm_tune.errors import DivergedError, UserError
from gpm_tune.models.flows.score import DataScore
from gpm_tune.study.definition import space
from gpm_tune.training import Experiment, Trainer
from gpm_tune.training.loop import Asker, train_teacher
from gpm_tune.training.teacher import load_teacher

EDM = Experiment.model_validate(TEACHER)
SCORE_GAN = experiment_of(model=MODELS["score_gan"])


def test_a_teacher_is_trained_once_and_shared(tmp_path: Path) -> None:
    runs, seen = runs_at(tmp_path), []
    asker = Asker("tests", "tests", on_teacher=lambda _, record: seen.append(record.step))
    first = train_teacher(SCORE_GAN, runs, asker, "cpu")
    assert seen == [4, 8, 12]
    files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    assert train_teacher(SCORE_GAN, runs, asker, "cpu") == first
    assert seen == [4, 8, 12], "only what is trained is told"
    assert {file: file.stat().st_mtime_ns for file in files} == files, "there is nothing left to do"
    assert runs.names() == [EDM.run_name]


@pytest.mark.parametrize(("steps", "count"), [(4, 1), (6, 2), (12, 2), (20, 1)])
def test_a_teacher_does_not_depend_on_who_has_trained_it_before(
    tmp_path: Path, steps: int, count: int
) -> None:
    """Another judge, or length, keeps other weights: then it is trained once more, in a run of its own."""
    alone, runs = teacher_of(SCORE_GAN, tmp_path / "alone"), runs_at(tmp_path / "shared")
    before = {**TEACHER, "evaluation": {**TEACHER["evaluation"], "every": 3}}
    train(Experiment.model_validate(space.put(before, {"training.steps": steps})), runs)
    found = [train_teacher(SCORE_GAN, runs, Asker("tests", "tests"), "cpu") for _ in range(2)]
    assert alone is not None
    for saved in found:
        assert saved is not None
        assert saved.step == alone.step
        one, two = (each.load().state_dict() for each in (saved, alone))
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert len(runs.names()) == count


def test_an_interrupted_teacher_continues(tmp_path: Path) -> None:
    runs, seen = runs_at(tmp_path), []
    told = {"on_teacher": lambda _, record: seen.append(record.step)}
    stopped = Asker("tests", "tests", should_stop=lambda: bool(seen), **told)
    assert train_teacher(SCORE_GAN, runs, stopped, "cpu") is None
    assert seen == [4]
    assert train_teacher(SCORE_GAN, runs, Asker("tests", "tests", **told), "cpu")
    assert seen == [4, 8, 12]


def test_a_teacher_that_diverges_is_said_to_be_the_teacher(tmp_path: Path) -> None:
    training = {"steps": 100, "batch_size": 16, "optimizer": {"lr": 1e30}}
    wild = {**TEACHER, "training": training, "evaluation": {"every": 100, "samples": 100}}
    student = experiment_of(model={**MODELS["score_gan"], "teacher": {"experiment": wild}})
    with pytest.raises(DivergedError, match=r"the teacher: loss/\w+ was not finite at or before step"):
        teacher_of(student, tmp_path)


def test_the_teacher_is_the_edms_denoiser_and_stays_as_it_is(tmp_path: Path) -> None:
    saved = teacher_of(SCORE_GAN, tmp_path)
    assert saved is not None
    teacher = load_teacher(SCORE_GAN, saved, torch.device("cpu"), EDM.fingerprints["data"])
    assert teacher is not None
    flow = saved.load().flow
    assert isinstance(flow, DataScore)
    x, sigma = torch.randn(5, 2), torch.rand(5) + 0.1
    before = teacher(x, sigma)
    torch.testing.assert_close(before, flow.network(x, sigma))
    trainer = Trainer(SCORE_GAN, teacher=saved)
    trainer.run_interval()
    assert torch.equal(teacher(x, sigma), before)
    assert not any("teacher" in name for name in trainer.model.state_dict()), "it is not saved again"


@pytest.mark.parametrize("acts", [False, True])
def test_the_denoisers_dropout_acts_in_what_the_generator_follows_where_that_is_asked_for(
    acts: bool, tmp_path: Path
) -> None:
    """The noise is the same each time: what differs is the dropout's, of one denoiser and of the other."""
    dropping = {"denoiser": {**SMALL_DENOISER, "network": {**SMALL_MLP, "dropout": 0.5}}}
    edm = Experiment.model_validate({**TEACHER, "model": {**MODELS["edm"], **dropping}})
    model = {**MODELS["score_gan"], "teacher": {"experiment": edm.model_dump(mode="json")}}
    model |= {"generated": dropping["denoiser"], "score_dropout": acts}
    teacher = teacher_of(experiment_of(model=model), tmp_path)
    for alpha, beta in ((1.0, 0.0), (0.0, 1.0)):
        experiment = experiment_of(model={**model, "alpha": alpha, "beta": beta})
        flow = Trainer(experiment, teacher=teacher).model.flow
        x = torch.randn(100, 2)
        one, other = (flow.direction(x, None, torch.Generator().manual_seed(0)) for _ in range(2))
        assert torch.equal(one, other) is not acts
        assert flow.training, "the generated denoiser is fitted with its dropout in either case"


def test_a_checkpoint_serves_as_teacher(tmp_path: Path) -> None:
    trainer = Trainer(EDM)
    trainer.run_interval()
    trainer.save(tmp_path / "edm")
    given = {**MODELS["score_gan"], "teacher": {"checkpoint": str(tmp_path / "edm")}}
    assert Trainer(experiment_of(model=given)).run_interval() is not None


def test_missing_and_misfit_teachers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has not been trained yet"):
        Trainer(SCORE_GAN)
    nowhere = {**MODELS["score_gan"], "teacher": {"checkpoint": str(tmp_path / "nowhere")}}
    with pytest.raises(UserError, match="no whole checkpoint is here"):
        Trainer(experiment_of(model=nowhere))
    trainer = Trainer(experiment_of())
    trainer.run_interval()
    trainer.save(tmp_path / "flow")
    wrong = {**MODELS["score_gan"], "teacher": {"checkpoint": str(tmp_path / "flow")}}
    with pytest.raises(UserError, match=r"a teacher is an 'edm'.*this is a 'discr_flow'"):
        Trainer(experiment_of(model=wrong))
    images = {**wrong, "teacher": {"checkpoint": str(_edm_of_images(tmp_path / "images"))}}
    with pytest.raises(UserError, match=r"samples of shape \(1, 16, 16\).*this experiment's have \(2,\)"):
        Trainer(experiment_of(model=images))


def _edm_of_images(folder: Path) -> Path:
    experiment = experiment_of(data={"name": "digits"}, model=MODELS["edm"], evaluation={"features": "small"})
    trainer = Trainer(experiment)
    trainer.save(folder)
    return folder
