"""A cluster that may have several kinds of GPUs, and a study that judges times."""

from __future__ import annotations

from typing import Any

import pytest
from examples import study_of

from gpm_tune.study.cluster.capacity import Capacity, Node

L4, A10G = ({"CPU": 8.0, "GPU": 1.0, f"accelerator_type:{kind}": 1.0} for kind in ("L4", "A10G"))
SEVERAL = Capacity([Node(L4), Node(A10G)])
TIMED: dict[str, Any] = {"objectives": [{"metric": "sliced_wasserstein"}, {"metric": "seconds"}]}
BOUNDED: dict[str, Any] = {"constraints": [{"metric": "steps_per_second", "min": 1}]}
ON_GPUS: dict[str, Any] = {"resources": {"gpu": 0.5}}


@pytest.mark.parametrize(("changes", "time"), [(TIMED, "seconds"), (BOUNDED, "steps_per_second")])
def test_times_on_several_kinds_are_warned_of(changes: dict[str, Any], time: str) -> None:
    warning = SEVERAL.unlike_gpus(study_of(**changes, **ON_GPUS))
    assert warning is not None
    first, second = warning.splitlines()
    assert first == f"{time} of trials on A10G, L4 cannot be compared"
    assert second.startswith("help: ")


@pytest.mark.parametrize(
    ("changes", "capacity"),
    [
        (ON_GPUS, SEVERAL),  # no time is judged
        (TIMED, SEVERAL),  # on CPUs
        ({**TIMED, **ON_GPUS}, Capacity([Node(L4), Node(L4)])),
        ({**TIMED, "resources": {"gpu": 0.5, "accelerator_type": "L4"}}, SEVERAL),
    ],
)
def test_what_can_be_compared_is_not(changes: dict[str, Any], capacity: Capacity) -> None:
    assert capacity.unlike_gpus(study_of(**changes)) is None
