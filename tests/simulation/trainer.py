"""In place of `training.trainer.Trainer`: the same steps without the mathematics.

Weights are a number that each step makes another one of, by what is trained; what is measured of them is a
number, too. So a run that is continued elsewhere, or twice, shows in the values whether it went on
from where it was. A few trainings diverge.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from gpm_tune.data.fingerprint import fingerprint
from gpm_tune.errors import DivergedError, UserError
from gpm_tune.training import Experiment, Objective, checkpoint
from gpm_tune.training.objectives import Measured
from gpm_tune.training.saved import SavedModel
from gpm_tune.training.trainer import Evaluation
from simulation.world import World


class Trainer:
    """See `training.trainer.Trainer`."""

    world: ClassVar[World]

    def __init__(
        self,
        experiment: Experiment,
        *,
        device: object = "cpu",
        objective: Objective | None = None,
        cache: Path | None = None,
        teacher: SavedModel | None = None,
    ) -> None:
        del device, cache
        self.experiment = experiment
        self.objective = objective or experiment.default_objective
        self.judge = experiment.judge(self.objective)
        self.data_fingerprint = fingerprint(experiment.data)
        self.step = self.evaluated_step = 0
        self.best: checkpoint.Best | None = None
        self._key = experiment.training_key
        self._weights = _number(
            "initial", self._key, read_weights(teacher.folder, teacher.weights) if teacher else None
        )
        self._best_weights = ""

    @property
    def done(self) -> bool:
        return self.best is not None and self.evaluated_step >= self.experiment.training.steps

    def run_interval(self, should_stop: Callable[[], bool] = lambda: False) -> Evaluation | None:
        every, steps = self.experiment.evaluation.every, self.experiment.training.steps
        end = min(self.evaluated_step - self.evaluated_step % every + every, steps)
        while self.step < end and not should_stop():
            self.world.sleep(1 + 5 * self.world.random.random())
            self._weights = _number(self._weights, self._key, self.step)
            if _share(self._weights) < 0.005:
                raise DivergedError(f"loss was not finite at or before step {self.step}")
            self.step += 1
        return self._evaluate() if self.step == end else None

    def _evaluate(self) -> Evaluation:
        found = measured(self.experiment, self._weights, self.step)
        self.evaluated_step = self.step
        before = self.objective.value_of(self.best) if self.best else self.objective.worst
        if self.objective.better(self.objective.value_of(found), before):
            self.best = checkpoint.Best(step=self.step, curve=found.curve, scalars=found.scalars)
            self._best_weights = self._weights
        return Evaluation(self.step, found, b"a picture")

    def judge_anew(self) -> Iterator[Evaluation]:
        kept, step, evaluated_step, last = self.best, self.step, self.evaluated_step, self._weights
        assert kept is not None, "a judge has kept them"
        found = {kept.step: self._best_weights} | ({step: last} if step == evaluated_step else {})
        self.best = None
        for self.step, self._weights in found.items():
            yield self._evaluate()
        self.step, self.evaluated_step, self._weights = step, evaluated_step, last

    def save(self, folder: Path) -> None:
        weights = json.dumps({"last": self._weights, "best": self._best_weights}).encode()
        record: dict[str, Any] = {
            "format": checkpoint.FORMAT,
            "files": {name: {"size": len(weights), "crc32": 0} for name in checkpoint.VOUCHED},
            "experiment": self.experiment.model_dump(mode="json"),
            "data": self.data_fingerprint,
            "step": self.step,
            "evaluated_step": self.evaluated_step,
            "seconds": float(self.step),
            "is_end": self.done,
            "judge": self.judge,
            "best": self.best and self.best.model_dump(mode="json"),
        }
        for name in checkpoint.VOUCHED:
            (folder / name).write_bytes(weights)
        (folder / "checkpoint.json").write_text(json.dumps(record))

    def restore(self, folder: Path) -> bool:
        record = checkpoint.read_record(folder)
        content = json.loads((folder / checkpoint.VOUCHED[0]).read_bytes())
        if content != json.loads((folder / checkpoint.VOUCHED[1]).read_bytes()):
            raise checkpoint.damaged(folder, "its files are not of one checkpoint")
        self._weights, self._best_weights = content["last"], content["best"]
        self.step, self.evaluated_step, self.best = record.step, record.evaluated_step, record.best
        return record.judge == self.judge


def read_weights(folder: Path, which: str = "best") -> str:
    """The best, or the last, weights of a checkpoint. Raises UserError where it is not whole."""
    checkpoint.read_record(folder)
    try:
        found: str = json.loads((folder / checkpoint.VOUCHED[0]).read_bytes())[which]
    except OSError as error:
        raise UserError(f"{folder}: {error}") from error
    return found


def load(model: SavedModel, _device: object = "cpu") -> str:
    """In place of `SavedModel.load`."""
    return read_weights(model.folder)


def measured(experiment: Experiment, weights: str, step: int) -> Measured:
    """What an evaluation gives."""
    how = json.dumps(experiment.inference_part(), sort_keys=True)
    full = {n: (1 + _share(_number(weights, how, n))) / (2 + step) for n in experiment.metrics}
    curve = {2: {name: value + 0.1 for name, value in full.items()}, 4: full}
    return Measured(curve=curve, scalars={"seconds": float(step), "parameters": 10.0})


def trained(experiment: Experiment, step: int, teacher: str | None = None) -> str:
    """The weights of a training that nothing has disturbed."""
    key = experiment.training_key
    weights = _number("initial", key, teacher)
    for before in range(step):
        weights = _number(weights, key, before)
    return weights


def _number(*parts: object) -> str:
    return hashlib.md5(repr(parts).encode(), usedforsecurity=False).hexdigest()


def _share(number: str) -> float:
    return int(number[:8], 16) / 2**32
