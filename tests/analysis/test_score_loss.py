"""Figure 6: the score's loss between two generator updates, and quality against K."""

from __future__ import annotations

import io
import signal
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from examples import MODELS, TEACHER, experiment_of
from rich.console import Console

from gpm_tune.analysis.retraining import Origin, start
from gpm_tune.analysis.score_loss import (
    best_by_run,
    follow,
    kept_in,
    over_seeds,
    rates,
    reach,
    with_score_steps,
)
from gpm_tune.errors import UserError
from gpm_tune.study.running.single import train
from gpm_tune.study.storage.home import Home
from gpm_tune.training import Trainer
from gpm_tune.training.run import Runs, TrainingRun

sys.path.append(str(Path(__file__).parents[2] / "analysis"))
import score_loss

ORIGIN = Origin("small.yaml", experiment_of(model=MODELS["score_gan"]), None)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Where the teacher is trained once for all tests."""
    return Home(tmp_path_factory.mktemp("home"))


def run_in(folder: Path) -> TrainingRun:
    return Runs(str(folder), folder / "cache").named("run")


def names(run: TrainingRun) -> list[str]:
    """Of the checkpoints that a run keeps, newest first."""
    return [Path(place).name for place in run.checkpoints()]


def same_weights(one: Trainer, other: Trainer) -> bool:
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_losses_are_those_of_the_steps_after_a_generator_update(home: Home) -> None:
    """The first restart with the run's own random numbers would be the run: its loss stands for all."""
    experiment = with_score_steps(ORIGIN, 5, 4)
    assert (experiment.model.score_steps, experiment.training.steps) == (5, 20)
    losses = follow(experiment, [4, 2], home, "cpu", repeats=40, seed=0)
    assert list(losses["generator_updates"].unique()) == [2, 4]
    assert list(losses["training_step"].unique()) == [10, 20]
    assert list(losses["score_steps"]) == [0, 1, 2, 3, 4] * 2
    trainer = start(experiment, home, "cpu")
    trainer.train_until(10)
    own = [trainer.fit_flow()["denoising"].item() for _ in range(5)]
    rows = losses[losses["generator_updates"] == 2]
    spread = rows["standard_error"].to_numpy() * np.sqrt(40)
    assert (np.abs(rows["loss"].to_numpy() - own) < 5 * spread).all()


def test_the_generator_rests_and_the_state_is_kept(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = with_score_steps(ORIGIN, 3, 2)
    first = follow(experiment, [1, 2], home, "cpu", repeats=3, seed=0)
    assert "training: step 6 of 6" in capsys.readouterr().err
    again = follow(experiment, [1, 2], home, "cpu", repeats=3, seed=0)
    pd.testing.assert_frame_equal(first, again)
    assert "training:" not in capsys.readouterr().err, "both states were kept"
    assert names(kept_in(experiment, home)) == ["step_000000006", "step_000000003"]
    trainer, straight = start(experiment, home, "cpu"), start(experiment, home, "cpu")
    trainer.restore(Path(kept_in(experiment, home).checkpoint(6)))
    straight.train_until(6)
    assert same_weights(trainer, straight), "restarts have left no trace in what was trained later"
    trainer.fit_flow()
    assert torch.equal(trainer.model.generator(torch.ones(1, 4)), straight.model.generator(torch.ones(1, 4)))
    assert not same_weights(trainer, straight)


def test_training_goes_on_from_the_newest_state_that_is_not_beyond(home: Home, tmp_path: Path) -> None:
    experiment, run = with_score_steps(ORIGIN, 3, 4), run_in(tmp_path)
    straight = start(experiment, home, "cpu")
    straight.train_until(9)
    for step in (6, 12, 9):
        trainer = start(experiment, home, "cpu")
        assert reach(trainer, step, run) == Path(run.checkpoint(step))
    assert trainer.step == 9
    assert same_weights(trainer, straight)


class Terminating(io.StringIO):
    """Text, at whose first line this process gets SIGTERM."""

    def write(self, text: str) -> int:
        if not self.getvalue():
            super().write(text)
            signal.raise_signal(signal.SIGTERM)
        return super().write(text)


def test_sigterm_keeps_what_was_trained(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = with_score_steps(ORIGIN, 3, 4)
    trainer = start(experiment, home, "cpu")
    monkeypatch.setattr("gpm_tune.analysis.score_loss.KEPT_EVERY", 3)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Terminating())
        with pytest.raises(KeyboardInterrupt):
            reach(trainer, 12, run_in(tmp_path))
    assert names(run_in(tmp_path)) == ["step_000000003"]
    elsewhere = Home(tmp_path / "home")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Terminating())
        with pytest.raises(KeyboardInterrupt):
            start(experiment, elsewhere, "cpu")
    (teacher,) = elsewhere.runs.names()
    assert 0 < elsewhere.runs.named(teacher).newest(up_to=1000) < TEACHER["training"]["steps"]


def test_a_longer_run_shares_what_a_shorter_one_kept(home: Home) -> None:
    short, long, other = (
        kept_in(with_score_steps(ORIGIN, k, updates), home).location
        for k, updates in ((3, 4), (3, 400), (4, 4))
    )
    assert short == long != other


def test_learning_rates_in_words() -> None:
    assert rates(2e-4, 2e-4) == "equal learning rates, 0.0002"
    assert rates(1e-3, 2e-4) == "learning rates: score 0.001, generator 0.0002"


def test_only_a_score_gan_has_such_a_loss() -> None:
    with pytest.raises(UserError, match="a 'gan' has no score of the generated distribution"):
        with_score_steps(Origin("gan.yaml", experiment_of(model=MODELS["gan"]), None), 64, 3200)
    for run, study in ((None, None), ("run", ["study"])):
        with pytest.raises(UserError, match="either a Score GAN"):
            score_loss.main(run, Path("out"), study=study)


def test_quality_against_k(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The best value of every run; mean and standard deviation over the seeds of a K."""
    trained = []
    for k, seed in ((1, 0), (1, 1), (3, 0)):
        model = {**MODELS["score_gan"], "score_steps": k}
        experiment = experiment_of(model=model, seed=seed, training__steps=6, evaluation__every=3)
        assert train(experiment, "k", home, "cpu", Console(quiet=True))
        found = home.runs.of(experiment).evaluations(experiment.judge())
        best = min(found, key=lambda record: record.metrics["sliced_wasserstein"])
        trained.append((k, seed, best.metrics))
    runs = best_by_run(home, ["k"], "energy_distance")
    assert list(zip(runs["k"], runs["seed"], strict=True)) == [(k, seed) for k, seed, _ in trained]
    assert (runs["generator_updates"] == [6, 6, 2]).all()
    assert (runs["samples"] == 200).all()
    bests = best_by_run(home, ["k"], None)
    expected = [metrics["sliced_wasserstein"] for _, _, metrics in trained]
    assert list(bests["metric"].unique()) == ["sliced_wasserstein"]
    np.testing.assert_allclose(bests["value"], expected, rtol=1e-6)
    summary = over_seeds(bests).set_index("k")
    assert summary.loc[1, "mean"] == pytest.approx(np.mean(expected[:2]))
    assert summary.loc[1, "std"] == pytest.approx(np.std(expected[:2], ddof=1))
    assert np.isnan(summary.loc[3, "std"])
    score_loss.main(None, tmp_path / "by_k", study=["k"], home=home.root)
    assert capsys.readouterr().out.split()[-3:] == [
        str(tmp_path / f"by_k.{e}") for e in ("csv", "png", "svg")
    ]
    with pytest.raises(UserError, match="--metric fid"):
        best_by_run(home, ["k"], "fid")
