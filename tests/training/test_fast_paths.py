"""What makes training fast computes what the straightforward way does."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import IMAGE_MODELS, IMAGES, MODELS, experiment_of
from torch import Tensor, nn
from training_runs import teacher_of

from gpm_tune.models import ParticleModel, to_device
from gpm_tune.training import Experiment, Trainer, checkpoint

GLIBC = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc is glibc's")
PENALISED = {**IMAGE_MODELS["gan"], "loss": "ipm", "gradient_penalty": {"weight": 1.0, "center": 1.0}}
ON_IMAGES = {**IMAGE_MODELS, "discr_flow": IMAGES["model"], "gan with a penalty": PENALISED}
PRECISIONS = ("float32", "bfloat16")


def on_images(name: str, **training: Any) -> Experiment:
    training = {"steps": 12, "batch_size": 16, **training}
    return Experiment.model_validate({**IMAGES, "model": ON_IMAGES[name], "training": training})


def gradients(model: ParticleModel, real: Tensor, network: nn.Module) -> list[Tensor]:
    """Of the flow's loss, with the randomness of one seed."""
    torch.manual_seed(0)
    terms = model.fit(real, torch.Generator().manual_seed(0))
    return list(torch.autograd.grad(torch.stack(list(terms.values())).sum(), list(network.parameters())))


@pytest.mark.parametrize("name", ON_IMAGES)
def test_the_memory_format_changes_no_gradient(name: str) -> None:
    experiment = on_images(name)
    plain = experiment.model.build(experiment.data.shape).double()
    placed = to_device(copy.deepcopy(plain), "cpu")
    convolutions = [module for module in placed.modules() if isinstance(module, nn.Conv2d)]
    assert any(not m.weight.is_contiguous() for m in convolutions), "weights are in another format"
    real = torch.rand(6, *experiment.data.shape, dtype=torch.float64) * 2 - 1
    for module in (*plain.modules(), *placed.modules()):
        if hasattr(module, "p"):
            module.p = 0.0  # dropped features would be others
    expected, found = (gradients(model, real, model.flow.network) for model in (plain, placed))
    for one, two in zip(expected, found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


def test_the_optimiser_steps_as_adam_does() -> None:
    trainer = Trainer(on_images("gan", steps=5))
    parameters = [p.detach().clone().requires_grad_() for p in trainer.model.flow.parameters()]
    options = trainer.experiment.training.optimizer
    adam = torch.optim.Adam(parameters, lr=options.lr, betas=options.betas)
    fused = trainer._optimizers["flow"]
    for step in range(5):
        rng = torch.Generator().manual_seed(step)
        for mine, theirs in zip(trainer.model.flow.parameters(), parameters, strict=True):
            mine.grad = torch.empty_like(mine).copy_(torch.randn(mine.shape, generator=rng))
            theirs.grad = mine.grad.clone()
        fused.step()
        adam.step()
    for mine, theirs in zip(trainer.model.flow.parameters(), parameters, strict=True):
        torch.testing.assert_close(mine.detach(), theirs.detach(), rtol=1e-5, atol=1e-8)


def in_both(name: str) -> list[Experiment]:
    """An experiment on points, or one on images, in float32 and in bfloat16."""
    if name in ON_IMAGES:
        return [on_images(name, precision=precision) for precision in PRECISIONS]
    return [experiment_of(model=MODELS[name], training__precision=precision) for precision in PRECISIONS]


@pytest.mark.parametrize("name", sorted({*MODELS, *ON_IMAGES}))
def test_bfloat16_steps_go_the_way_of_float32_steps(name: str, tmp_path: Path) -> None:
    """With the same draws, losses and gradients differ by rounding to 8 bits only."""
    trainers = []
    for experiment in in_both(name):
        trainers.append(Trainer(experiment, teacher=teacher_of(experiment, tmp_path)))
        for _ in range(3):  # the third is a generator's turn
            trainers[-1].train_step()
    full, low = trainers
    for part in full._optimizers:
        one, two = (
            torch.cat([p.grad.flatten() for p in getattr(t.model, part).parameters() if p.grad is not None])
            for t in trainers
        )
        assert torch.nn.functional.cosine_similarity(one, two, dim=0) > 0.93
        assert two.norm() == pytest.approx(one.norm().item(), rel=0.1)
        assert not torch.equal(one, two), "nothing was computed in bfloat16"
    assert {p.dtype for p in low.model.parameters()} == {torch.float32}
    for term, mean in full._means.items():
        assert low._means[term].total.dtype is torch.float32
        assert low._means[term].total.item() == pytest.approx(mean.total.item(), rel=0.03, abs=0.01)


def test_moments_of_another_memory_format_are_continued(tmp_path: Path) -> None:
    """A fused optimiser takes weights and moments element by element as they lie in memory."""
    trainer = Trainer(on_images("gan"))
    trainer.train_until(2)
    trainer.save(tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    for optimizer in state["optimizers"].values():
        for moments in optimizer["state"].values():
            moments.update({name: tensor.contiguous() for name, tensor in moments.items()})
    torch.save(state, tmp_path / "state.pt")
    record = json.loads((tmp_path / "checkpoint.json").read_text())
    record["files"]["state.pt"] = checkpoint._fingerprint(tmp_path / "state.pt").model_dump()
    (tmp_path / "checkpoint.json").write_text(json.dumps(record))
    again = Trainer(on_images("gan"))
    again.restore(tmp_path)
    for continued in (trainer, again):
        continued.train_until(4)
    for one, two in zip(trainer.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("known", [{"avx512_bf16": True}, {"amx_bf16": True}, {"avx512_bf16": False}, {}])
def test_bfloat16_is_chosen_where_the_processor_has_it(
    known: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    trainer = Trainer(on_images("gan"))
    seen: list[torch.dtype] = []
    trainer.model.flow.network.register_forward_hook(lambda _module, _inputs, y: seen.append(y.dtype))
    trainer.train_step()
    assert set(seen) == {torch.bfloat16 if any(known.values()) else torch.float32}


def test_evaluations_stay_in_float32() -> None:
    trainer = Trainer(on_images("gan", precision="bfloat16"))
    seen: list[torch.dtype] = []
    trainer.model.generator.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    trainer.train_step()
    trained = set(seen)
    seen.clear()
    trainer._evaluate()
    assert trained == {torch.bfloat16}
    assert set(seen) == {torch.float32}


FAULTS = """
import resource, sys, torch
from gpm_tune.training.machine import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for i in range(30):
    torch.ones(10_000_000)
    if i == 9:  # the first ones still grow the heap
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


RETURNED = """
import psutil, torch
from gpm_tune.training.machine import keep_freed_memory, return_freed_memory
keep_freed_memory()
tensors = [torch.ones(1_000_000) for _ in range(100)]
held = psutil.Process().memory_info().rss
del tensors
kept = psutil.Process().memory_info().rss
return_freed_memory()
print(held - kept, held - psutil.Process().memory_info().rss)
"""


@GLIBC
def test_kept_memory_is_returned_when_asked() -> None:
    command = [sys.executable, "-c", RETURNED]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    by_itself, when_asked = map(int, output.split())
    assert by_itself < 50e6
    assert when_asked > 350e6


@GLIBC
def test_kept_memory_is_reused_without_new_pages() -> None:
    def faults(memory: str) -> int:
        command = [sys.executable, "-c", FAULTS, memory]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert faults("kept") < faults("returned") / 10
