"""What the driver and a trial's process tell each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpm_tune.study.accounts.trial_manager import TrialSpec
from gpm_tune.study.cluster.nodes import NodeReport
from gpm_tune.training import Experiment, Objective
from gpm_tune.training.objectives import Measured
from gpm_tune.training.run import Runs


@dataclass(frozen=True)
class Terms:
    """What holds for all trials of a study."""

    study: str
    user: str  # of training runs: the study
    base: Experiment
    data_fingerprint: str  # to which the study's results are bound
    objective: Objective
    runs: Runs
    storage: str | None
    threads: int
    device: str
    time_limit: float | None  # seconds
    hangs: Path  # of each machine, for what is left of processes that hang
    expected: NodeReport | None  # what nodes must have of software and data; None on a single machine


@dataclass(frozen=True)
class Order:
    """A trial, handed to a process."""

    trial: TrialSpec
    nonce: str  # of the leases that this process takes
    predecessors: Sequence[str] = ()  # those of its processes that were lost


@dataclass(frozen=True)
class Departure:
    """Why a trial must go on elsewhere; its process ends."""

    reason: str
    sick_node: str | None  # a node that can run no other trial either
    is_loss: bool  # whether it counts among the trial's lost processes


@dataclass(frozen=True)
class TrialResult:
    """What a trial's process has done since it told something before."""

    run: str | None = None  # the trial's training run
    step: int | None = None  # of an evaluation
    measured: Measured | None = None  # there
    is_end: bool = False  # all steps are trained and measured
    is_interrupted: bool = False
    failure: str | None = None
    refused: str | None = None  # why this node, or its data, do not fit
    departure: Departure | None = None
    note: str | None = None
    gpu: str | None = None
