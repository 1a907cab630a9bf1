"""Teachers: trained once, found again by their content, and checked against what they are to teach."""

from pathlib import Path

import pytest
import torch
from examples import MODELS, SMALL_DENOISER, SMALL_MLP, TEACHER, experiment_of

from gpm_tune.errors import UserError
from gpm_tune.models.flows.score import DataScore
from gpm_tune.training import Evaluation, Experiment, Trainer, checkpoint
from gpm_tune.training.pretraining import train_teacher
from gpm_tune.training.saved import load_model
from gpm_tune.training.teacher import load_teacher, teacher_folder

EDM = Experiment.model_validate(TEACHER)
SCORE_GAN = experiment_of(model=MODELS["score_gan"])


def test_a_teacher_is_trained_once_and_shared(tmp_path: Path) -> None:
    seen: list[Evaluation] = []
    assert train_teacher(EDM, tmp_path, "cpu", on_evaluation=seen.append)
    assert [evaluation.step for evaluation in seen] == [4, 8, 12]
    assert train_teacher(EDM, tmp_path, "cpu", on_evaluation=seen.append)
    assert len(seen) == 3, "the second time there is nothing left to do"
    other = experiment_of(model=MODELS["edm"], seed=1)
    assert teacher_folder(other, tmp_path) != teacher_folder(EDM, tmp_path)


def test_an_interrupted_teacher_continues(tmp_path: Path) -> None:
    steps: list[int] = []
    assert not train_teacher(
        EDM,
        tmp_path,
        "cpu",
        on_evaluation=lambda e: steps.append(e.step),
        should_stop=lambda: bool(steps),
    )
    assert steps == [4]
    assert train_teacher(EDM, tmp_path, "cpu", on_evaluation=lambda e: steps.append(e.step))
    assert steps == [4, 8, 12]


def test_the_teacher_is_the_edms_denoiser_and_stays_as_it_is(tmp_path: Path) -> None:
    train_teacher(EDM, tmp_path, "cpu")
    teacher = load_teacher(SCORE_GAN, tmp_path, torch.device("cpu"))
    assert teacher is not None
    folder = checkpoint.latest(teacher_folder(EDM, tmp_path))
    assert folder is not None
    flow = load_model(folder)[1].flow
    assert isinstance(flow, DataScore)
    x, sigma = torch.randn(5, 2), torch.rand(5) + 0.1
    before = teacher(x, sigma)
    torch.testing.assert_close(before, flow.network(x, sigma))
    trainer = Trainer(SCORE_GAN, cache=tmp_path)
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
    train_teacher(edm, tmp_path, "cpu")
    for alpha, beta in ((1.0, 0.0), (0.0, 1.0)):
        experiment = experiment_of(model={**model, "alpha": alpha, "beta": beta})
        flow = Trainer(experiment, cache=tmp_path).model.flow
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
        Trainer(SCORE_GAN, cache=tmp_path)
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
