"""Whether what a checkpoint holds fits the model and the optimisers into which it is to be loaded.

All of it is checked before any of it is loaded: a model is continued as a whole, or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")


class MisfitError(ValueError):
    """What does not fit, in words."""


def check_weights(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Raise MisfitError unless tensors are finite, and have the names, shapes and kinds of the expected ones.

    what: names them in the error.
    """
    if found.keys() != expected.keys():
        names = sorted(found.keys() ^ expected.keys())
        raise MisfitError(f"{what} has other tensors than the model, such as {names[0]}")
    for name, tensor in expected.items():
        _check_tensor(found[name], tensor, f"{what}/{name}")


def check_optimizers(found: Any, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
    """Raise MisfitError unless states of optimisers are those of the same parameters."""
    for name, optimizer in optimizers.items():
        saved, own = _of(found, name, "optimizers"), optimizer.state_dict()
        if [group["params"] for group in _of(saved, "param_groups", name)] != [
            group["params"] for group in own["param_groups"]
        ]:
            raise MisfitError(f"the optimiser of the {name} has other parameters")
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, moments in _of(saved, "state", name).items():
            if index not in range(len(parameters)) or set(moments) != {"step", *MOMENTS}:
                raise MisfitError(f"the optimiser of the {name} has another state")
            _check_tensor(moments["step"], torch.tensor(0.0), f"{name}/{index}/step")
            for moment in MOMENTS:
                _check_tensor(moments[moment], parameters[index], f"{name}/{index}/{moment}")


def check_means(found: Any) -> None:
    """Raise MisfitError unless these are running sums of losses, and how many terms each has."""
    for name, (total, terms) in found.items():
        _check_tensor(total, torch.tensor(0.0), f"means/{name}")
        if not isinstance(terms, int) or terms < 1:
            raise MisfitError(f"means/{name} is of {terms} terms")


def check_rng(found: Any, own: torch.Generator) -> None:
    """Raise MisfitError unless this is the state of a random number generator."""
    if not isinstance(found, Tensor) or found.dtype != torch.uint8:
        raise MisfitError("rng is no state of random numbers")
    if found.numel() == own.get_state().numel():
        torch.Generator(own.device).set_state(found.cpu())


def _of(tree: Any, key: str, where: str) -> Any:
    if not isinstance(tree, Mapping) or key not in tree:
        raise MisfitError(f"{where} lacks {key}")
    return tree[key]


def _check_tensor(found: Any, expected: Tensor, what: str) -> None:
    if not isinstance(found, Tensor) or found.shape != expected.shape or found.dtype != expected.dtype:
        raise MisfitError(f"{what} is {_shown(found)}, not {_shown(expected)}")
    if found.is_floating_point() and not torch.isfinite(found).all():
        raise MisfitError(f"{what} has numbers that are not finite")


def _shown(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    kind = str(value.dtype).removeprefix("torch.")
    return f"a {kind} of shape {tuple(value.shape)}"
