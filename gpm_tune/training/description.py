"""What an experiment needs: parameters, FLOPs and memory, without reading data or computing anything.

Models are built and run on PyTorch's `meta` device, where tensors have shapes and no values.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from gpm_tune.models import ParticleModel
from gpm_tune.models.flow import FlowInputs, Terms, evaluating
from gpm_tune.training.experiment import Experiment

META = torch.device("meta")
STATES_OF_ADAM = 2
PROBES = 1024  # samples over which the cost of a random stop is averaged


@dataclass(frozen=True)
class Description:
    """Sizes and costs of an experiment's model; memory in bytes.

    FLOPs are those of matrix products, convolutions and attention, a multiply-add counted as two.
    """

    networks: dict[str, int]  # name -> trainable parameters; a frozen teacher's are its own
    nfe: int
    flops_per_step: float
    flops_per_sample: float
    memory_of_weights: int  # with gradients and Adam's states, and the teacher's weights
    memory_of_step: int  # what a training step keeps for its backward passes, at the batch size
    inference_only: list[str]  # paths of the keys that its training does not depend on

    @property
    def memory(self) -> int:
        """What training takes at least."""
        return self.memory_of_weights + self.memory_of_step

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "networks": {name: {"parameters": count} for name, count in self.networks.items()},
            "nfe": self.nfe,
            "flops": {"training_step": self.flops_per_step, "sample": self.flops_per_sample},
            "memory": {"weights": self.memory_of_weights, "training_step": self.memory_of_step},
            "inference_only": self.inference_only,
        }


def build_empty(experiment: Experiment) -> tuple[ParticleModel, nn.Module | None]:
    """The model and its teacher's network, without values."""
    with META:
        teacher = untrained_teacher(experiment)
        return experiment.model.build(experiment.data.shape, FlowInputs(teacher=teacher)), teacher


def known_costs(experiment: Experiment) -> dict[str, float]:
    """The costs that are known before any training: parameters that are trained, and full NFE."""
    model, _ = build_empty(experiment)
    return {"parameters": trained_parameters(model), "nfe": _count_sampling(model)[0]}


def describe(experiment: Experiment) -> Description:
    """What an experiment needs. Raises UserError where its folder of pictures is not there."""
    experiment.check_data()
    return count_costs(experiment)


def count_costs(experiment: Experiment) -> Description:
    """Build the model without values, and count."""
    model, teacher = build_empty(experiment)
    parts = {model.flow.role: model.flow.network}
    parts |= {name: part for name, part in model.parts.items() if part is not model.flow}
    if teacher is not None:
        parts["teacher"] = teacher
    networks = {name: parameters(part) for name, part in parts.items()}
    trained = trained_parameters(model)
    batch_size, shape = experiment.training.batch_size, experiment.data.shape
    nfe, sample_flops = _count_sampling(model)
    fit, kept_by_fit = _count_descent(
        model, lambda: model.fit(torch.empty(PROBES, *shape, device=META), torch.Generator().manual_seed(0))
    )
    follow, kept_by_follow = _count_descent(model, lambda: model.generator_loss(PROBES, torch.Generator()))
    return Description(
        networks={name: count for name, count in networks.items() if count},
        nfe=nfe,
        flops_per_step=float(fit + 1 / model.flow_steps * follow) / PROBES * batch_size,
        flops_per_sample=sample_flops,
        memory_of_weights=4 * (sum(networks.values()) + trained * (1 + STATES_OF_ADAM)),
        memory_of_step=round(max(kept_by_fit, kept_by_follow) / PROBES * batch_size),
        inference_only=experiment.inference_only_keys,
    )


def parameters(network: nn.Module) -> int:
    """How many a network has."""
    return sum(parameter.numel() for parameter in network.parameters())


def trained_parameters(model: nn.Module) -> int:
    """How many a model has that are not frozen."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def untrained_teacher(experiment: Experiment) -> nn.Module | None:
    """A network like the teacher's, where that is known without opening a checkpoint."""
    teacher = experiment.teacher
    if teacher is None:
        return None
    return teacher.model.build(teacher.data.shape).flow.network.requires_grad_(False)


class _Flops(TorchDispatchMode):
    """Adds up the FLOPs of what runs within, by PyTorch's formulas.

    FlopCounterMode also attributes them to modules, by hooks that forbid the gradients of inputs that
    our flows are made of.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def _count_descent(model: ParticleModel, loss: Callable[[], Terms]) -> tuple[int, int]:
    """FLOPs of a loss and its gradients, and the bytes that its graph keeps at a time."""
    saved = _Saved(model)
    with _Flops() as counter, torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack):
        if terms := loss():
            torch.stack(list(terms.values())).sum().backward()
    return counter.total, saved.peak


def _count_sampling(model: ParticleModel) -> tuple[int, float]:
    """Full NFE, and FLOPs of one sample."""
    with evaluating(model), _Flops() as counter:
        nfe = model.sample(PROBES, torch.Generator())[-1].nfe
    return nfe, counter.total / PROBES


class _Saved:
    """Bytes that graphs keep for their backward passes, each storage once, parameters excluded."""

    def __init__(self, model: ParticleModel) -> None:
        self.peak = 0
        self._now = 0
        self._users: Counter[int] = Counter()
        self._own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def pack(self, tensor: Tensor) -> Tensor:
        """Called when a graph saves a tensor; what it keeps is gone with the graph."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        kept = tensor.detach()
        if key not in self._own:
            self._now += size if self._users[key] == 0 else 0
            self._users[key] += 1
            self.peak = max(self.peak, self._now)
            weakref.finalize(kept, self._release, key, size)
        return kept

    def _release(self, key: int, size: int) -> None:
        self._users[key] -= 1
        self._now -= size if self._users[key] == 0 else 0

    @staticmethod
    def unpack(kept: Tensor) -> Tensor:
        """Called when a backward pass uses it."""
        return kept
