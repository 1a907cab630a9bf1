"""What is switched for a while: afterwards every parameter and module is as its owner left it."""

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gpm_tune.models.flow import evaluating, no_parameter_grad

MODULES = 5


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Sequential(nn.Linear(3, 1)))


def states(net: nn.Module) -> tuple[list[bool], list[bool]]:
    return [p.requires_grad for p in net.parameters()], [m.training for m in net.modules()]


@given(
    learns=st.lists(st.booleans(), min_size=6, max_size=6),
    trains=st.lists(st.booleans(), min_size=MODULES, max_size=MODULES),
    cast=st.booleans(),
    fails=st.booleans(),
)
def test_states_are_put_back_exactly(learns: list[bool], trains: list[bool], cast: bool, fails: bool) -> None:
    net = network()
    for parameter, learn in zip(net.parameters(), learns, strict=True):
        parameter.requires_grad_(learn)
    for module, mode in zip(net.modules(), trains, strict=True):
        module.training = mode
    before = states(net)
    precision: AbstractContextManager[object] = (
        torch.autocast("cpu", torch.bfloat16) if cast else nullcontext()
    )
    for context in (no_parameter_grad, evaluating):
        with pytest.raises(KeyError) if fails else nullcontext(), precision, context(net):
            if context is evaluating:
                assert not any(module.training for module in net.modules())
                assert not torch.is_grad_enabled()
            elif not cast:
                assert not any(parameter.requires_grad for parameter in net.parameters())
            if fails:
                raise KeyError
        assert states(net) == before
