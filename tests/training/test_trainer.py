"""The training loop: exact resume, evaluation, best-so-far, and what it does with broken numbers."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import IMAGE_MODELS, IMAGES, KERNEL_FLOW, MODELS, POINTS, experiment_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from training_runs import teacher_of

from gpm_tune.errors import DivergedError, UserError
from gpm_tune.models import ParticleModel
from gpm_tune.training import Evaluation, Experiment, Objective, Trainer
from gpm_tune.training.saved import SavedModel
from gpm_tune.training.trainer import draw


class StopAt:
    """Asks training to stop at a step."""

    def __init__(self, trainer: Trainer, step: int) -> None:
        self.trainer, self.step = trainer, step

    def __call__(self) -> bool:
        return self.trainer.step >= self.step


def finish(trainer: Trainer) -> list[Evaluation]:
    evaluations = []
    while not trainer.done:
        evaluation = trainer.run_interval()
        assert evaluation is not None
        evaluations.append(evaluation)
    return evaluations


TIMES = ("seconds", "steps_per_second", "system/")


def values(metrics: dict[str, float]) -> dict[str, float]:
    """All that was measured but what it took of the machine."""
    return {name: value for name, value in metrics.items() if not name.startswith(TIMES)}


def measured(evaluation: Evaluation) -> tuple[int, dict[str, float], bytes]:
    """All of an evaluation but what it took of the machine."""
    return evaluation.step, values(evaluation.measured.as_text()), evaluation.picture


def check_exact_resume(changes: dict[str, Any], stop: int, folder: Path) -> None:
    experiment = experiment_of(**changes)
    teacher = teacher_of(experiment, folder)
    straight = Trainer(experiment, teacher=teacher)
    expected = finish(straight)
    interrupted = Trainer(experiment, teacher=teacher)
    evaluations = []
    while (evaluation := interrupted.run_interval(StopAt(interrupted, stop))) is not None:
        evaluations.append(evaluation)
        if interrupted.done:
            break
    interrupted.save(folder / "checkpoint")
    torch.manual_seed(1234)  # whatever the next process's global random state is
    resumed = Trainer(experiment, teacher=teacher)
    assert resumed.restore(folder / "checkpoint"), "the judge is the same"
    assert resumed.step == stop
    evaluations += finish(resumed)
    assert [measured(e) for e in evaluations] == [measured(e) for e in expected]
    for name, weights in straight.evaluated_model.state_dict().items():
        assert torch.equal(weights, resumed.evaluated_model.state_dict()[name])
    assert resumed.best is not None
    assert straight.best is not None
    assert resumed.best.step == straight.best.step
    assert values(resumed.best.as_text()) == values(straight.best.as_text())
    for name, weights in straight._best_weights.items():
        assert torch.equal(weights, resumed._best_weights[name])


@settings(max_examples=6)
@given(stop=st.integers(0, 12))
def test_points_resume_bit_for_bit_at_any_step(tmp_path_factory: pytest.TempPathFactory, stop: int) -> None:
    check_exact_resume({"training__ema": 0.9}, stop, tmp_path_factory.mktemp("resume"))


@pytest.mark.parametrize("stop", [3, 8, 11])
def test_images_resume_bit_for_bit_at_any_step(tmp_path: Path, stop: int) -> None:
    check_exact_resume({**IMAGES, "training__ema": 0.9}, stop, tmp_path)


@pytest.mark.parametrize("stop", [1, 5, 10])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_resumes_bit_for_bit(tmp_path: Path, name: str, stop: int) -> None:
    """In the middle of its n_D or K phase too."""
    check_exact_resume({"model": MODELS[name], "training__ema": 0.9}, stop, tmp_path)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_dropout_and_batch_statistics_resume_bit_for_bit(tmp_path: Path, name: str) -> None:
    check_exact_resume({**IMAGES, "model": IMAGE_MODELS[name], "training__ema": 0.9}, 6, tmp_path)


def test_the_average_follows_its_recursion_and_forgets_the_initial_weights() -> None:
    trainer = Trainer(experiment_of(training__ema=0.5, evaluation__every=1))
    expected: dict[str, torch.Tensor] = {}
    for step in range(12):
        trainer.run_interval()
        decay = min(0.5, (1 + step) / (10 + step)) if step else 0.0
        for name, weights in trainer.model.named_parameters():
            expected[name] = torch.lerp(weights.detach(), expected.get(name, weights.detach()), decay)
    for name, weights in trainer.evaluated_model.named_parameters():
        torch.testing.assert_close(weights, expected[name])


class WithBackbone(Trainer):
    """Whose networks begin with a part that is trained already: frozen, and in evaluation mode."""

    def _build_model(self, teacher: SavedModel | None) -> ParticleModel:
        model = super()._build_model(teacher)
        for backbone in self.backbones(model):
            backbone.requires_grad_(False).eval()
        return model

    @staticmethod
    def backbones(model: ParticleModel) -> list[nn.Linear]:
        parts = model.parts.values()
        return [next(module for module in part.modules() if isinstance(module, nn.Linear)) for part in parts]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["discr_flow", "edm", "gan"])
def test_what_is_frozen_is_neither_trained_nor_counted(name: str, precision: str) -> None:
    model = {"discr_flow": POINTS["model"], **MODELS}[name]
    experiment = experiment_of(model=model, training__precision=precision)
    trainer = WithBackbone(experiment)
    before = {key: value.clone() for key, value in trainer.model.named_parameters()}
    backbones = trainer.backbones(trainer.model)
    evaluation = trainer.run_interval()
    assert evaluation is not None
    own = {id(parameter) for backbone in backbones for parameter in backbone.parameters()}
    changed = {id(p) for key, p in trainer.model.named_parameters() if not torch.equal(p, before[key])}
    assert changed
    assert not changed & own
    for module in trainer.model.modules():
        assert module.training == (module not in backbones)
    learning = sum(p.numel() for p in trainer.model.parameters() if id(p) not in own)
    assert evaluation.measured.scalars["parameters"] == learning


def test_a_run_is_a_function_of_experiment_and_seed() -> None:
    one, two, other = (finish(Trainer(experiment_of(seed=seed))) for seed in (1, 1, 2))
    assert [measured(e) for e in one] == [measured(e) for e in two]
    assert measured(one[-1]) != measured(other[-1])


def test_evaluations_come_every_so_many_steps_and_at_the_end() -> None:
    trainer = Trainer(experiment_of(training__steps=10))
    assert [evaluation.step for evaluation in finish(trainer)] == [4, 8, 10]


def test_every_metric_is_reported_at_every_nfe_and_plainly_at_the_full_one() -> None:
    evaluation = finish(Trainer(experiment_of(evaluation__nfe=[1, 2, 64])))[-1]
    measured = evaluation.measured
    assert (list(measured.curve), measured.nfe) == ([1, 2, 4], 4), "64 is beyond the sampling steps"
    names = ["sliced_wasserstein", "energy_distance", "frechet", "modes_covered"]
    assert [list(values) for values in measured.curve.values()] == [names] * 3
    for name in names:
        assert measured.as_text()[name] == measured.as_text()[f"{name}/nfe_4"] == measured.curve[4][name]
    assert {"loss/fake", "loss/real", "seconds", "system/cores", "system/memory"} <= set(measured.scalars)
    assert evaluation.picture.startswith(b"\x89PNG")


def generator_steps(trainer: Trainer) -> list[int]:
    """The training steps after which the generator had changed."""
    changed = []
    for _ in range(12):
        before = {name: value.clone() for name, value in trainer.model.generator.named_parameters()}
        trainer.train_step()
        after = dict(trainer.model.generator.named_parameters())
        if any(not torch.equal(value, after[name]) for name, value in before.items()):
            changed.append(trainer.step)
    return changed


def test_a_generator_step_follows_every_so_many_fits_of_the_flow(tmp_path: Path) -> None:
    assert generator_steps(Trainer(experiment_of(model=MODELS["gan"]))) == [2, 4, 6, 8, 10, 12]
    score_gan = experiment_of(model=MODELS["score_gan"])
    assert generator_steps(Trainer(score_gan, teacher=teacher_of(score_gan, tmp_path))) == [3, 6, 9, 12]


def test_generator_and_flow_have_optimisers_of_their_own() -> None:
    changes = {"training__optimizer__lr": 1e-9, "training__generator_optimizer": {"lr": 0.1}}
    trainer = Trainer(experiment_of(model=MODELS["gan"], **changes))
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    for _ in range(2):
        trainer.train_step()
    moved = {name: (p - before[name]).abs().max().item() for name, p in trainer.model.named_parameters()}
    assert max(moved[name] for name in moved if name.startswith("flow.")) < 1e-7
    assert max(moved[name] for name in moved if name.startswith("generator.")) > 0.05


def test_what_is_asked_for_is_measured_and_the_first_is_the_objective() -> None:
    evaluation = {**IMAGES["evaluation"], "metrics": ["recall", "fid", "kid"]}
    trainer = Trainer(experiment_of(**{**IMAGES, "evaluation": evaluation, "model": IMAGE_MODELS["gan"]}))
    assert (trainer.objective.metric, trainer.objective.mode) == ("recall", "max")
    found = trainer.run_interval()
    assert found is not None
    assert [list(values) for values in found.measured.curve.values()] == [["recall", "fid", "kid"]]


def test_losses_are_means_over_the_steps_that_had_them() -> None:
    """A generator's loss counts in the steps in which the generator moved."""
    trainer = Trainer(experiment_of(model=MODELS["gan"]))
    trainer.train_until(4)
    assert (trainer._means["fake"].terms, trainer._means["generator"].terms) == (4, 2)
    assert {"loss/fake", "loss/real", "loss/generator"} <= set(trainer.run_interval().measured.scalars)


def test_samples_are_drawn_in_evaluation_mode() -> None:
    """Batch norm with running statistics: a sample does not depend on the others of its batch."""
    trainer = Trainer(experiment_of(**{**IMAGES, "model": IMAGE_MODELS["gan"]}))
    trainer.run_interval()
    one, many = (draw(trainer.model, n, torch.Generator().manual_seed(0))[1] for n in (2, 5))
    torch.testing.assert_close(one, many[:2], atol=1e-3, rtol=0)
    assert trainer.model.training


def test_a_flow_without_anything_to_train_is_evaluated_once(tmp_path: Path) -> None:
    trainer = Trainer(Experiment.model_validate(KERNEL_FLOW))
    assert not trainer.done
    (evaluation,) = finish(trainer)
    assert evaluation.step == 0
    curve = evaluation.measured.along_nfe("sliced_wasserstein")
    assert curve[evaluation.measured.nfe] < curve[5]
    assert not any(name.startswith("loss/") for name in evaluation.measured.scalars)
    trainer.save(tmp_path)
    again = Trainer(Experiment.model_validate(KERNEL_FLOW))
    again.restore(tmp_path)
    assert again.done


def test_a_flow_that_keeps_more_samples_than_there_are_is_refused() -> None:
    model = {**KERNEL_FLOW["model"], "data_samples": 9999}
    with pytest.raises(UserError, match=r"model.data_samples is 9999, but data 'gaussians' has 2000"):
        Trainer(Experiment.model_validate({**KERNEL_FLOW, "model": model}))


def test_the_best_is_kept_by_the_objective() -> None:
    for mode, choose in (("min", min), ("max", max)):
        objective = Objective.model_validate({"metric": "frechet", "mode": mode})
        trainer = Trainer(experiment_of(training__optimizer__lr=0.05), objective=objective)
        values = [evaluation.measured.metrics["frechet"] for evaluation in finish(trainer)]
        assert trainer.best is not None
        assert trainer.best.metrics["frechet"] == choose(values)


def test_training_makes_the_flow_better() -> None:
    """A real short run: the distance to the data falls well below where it started."""
    long = {"training__steps": 400, "evaluation__every": 100, "evaluation__samples": 1000}
    learn = {"training__optimizer__lr": 3e-3, "model__discriminator__width": 64, "training__batch_size": 64}
    init = {"model__discriminator__init": {"name": "default"}, "model__sampling_steps": 8}
    evaluations = finish(Trainer(experiment_of(**long, **learn, **init)))
    assert min(e.measured.metrics["sliced_wasserstein"] for e in evaluations) < 0.8


def test_divergence_ends_training_with_a_reason() -> None:
    trainer = Trainer(experiment_of(training__optimizer__lr=1e30, training__steps=100, evaluation__every=100))
    with pytest.raises(DivergedError, match=r"loss/\w+ was not finite at or before step 50"):
        trainer.run_interval()


def test_non_finite_samples_end_training_with_a_reason() -> None:
    trainer = Trainer(experiment_of())
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(math.nan)
    trainer.step = 4
    with pytest.raises(DivergedError, match="not finite"):
        trainer.run_interval()


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(UserError, match=r"training.batch_size is 4096, but data 'gaussians' has 2000"):
        Trainer(experiment_of(training__batch_size=4096))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_trains_and_resumes(tmp_path: Path) -> None:
    trainer = Trainer(experiment_of(**IMAGES), device="cuda")
    trainer.run_interval()
    trainer.save(tmp_path)
    resumed = Trainer(experiment_of(**IMAGES), device="cuda")
    resumed.restore(tmp_path)
    assert [e.step for e in finish(resumed)] == [8, 12]
