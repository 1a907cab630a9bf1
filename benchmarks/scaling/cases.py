"""What is measured: how many trials at a time, and on what."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.overhead import TRIVIAL, study_of
from gpm_tune.study.definition.specification import StudyConfig

EVALUATIONS = 4  # of a trial


@dataclass(frozen=True)
class Case:
    """What is run: how many trials at a time, in how many processes, at how many evaluations a second."""

    at_a_time: int
    processes: int = 8
    rate: float = 8.0  # 0: as fast as it goes
    nodes: int = 1  # of Ray, that share the trials
    server: bool = False  # track through an MLflow server
    bucket: bool = False  # keep checkpoints in a bucket of S3, as moto plays it
    evaluations: int = 800  # at least, while all trials run

    @property
    def trials(self) -> int:
        """In all: those that start, those that end, and between them what is measured."""
        return 2 * self.at_a_time + self.evaluations // EVALUATIONS

    @property
    def pause(self) -> float:
        """Seconds from one evaluation of a trial to the next."""
        return self.at_a_time / self.rate if self.rate else 0.0

    @property
    def study(self) -> StudyConfig:
        """A study whose trials measure and save as trivial ones do."""
        experiment = {**TRIVIAL, "training": {**TRIVIAL["training"], "steps": EVALUATIONS}}
        return study_of(
            "scaling", experiment, self.trials, resources={"cpu": 1, "concurrent": self.at_a_time}
        )


CASES = {
    "1": Case(1, processes=1),
    "8": Case(8),
    "64": Case(64),
    "256": Case(256),
    "64, as fast as it goes": Case(64, rate=0),
    "256, as fast as it goes": Case(256, rate=0),
    "64, MLflow server": Case(64, server=True),
    "64, bucket": Case(64, rate=4, bucket=True, evaluations=400),
    "16 in 2 processes": Case(16, processes=2),
    "16 in 16 processes": Case(16, processes=16),
    "64 on 32 nodes": Case(64, nodes=32),
}
