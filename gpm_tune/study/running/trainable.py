"""A trial on a Ray worker: the training loop, one evaluation interval a step."""

from __future__ import annotations

import gc
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch
from ray import tune

from gpm_tune import locations, plugins
from gpm_tune.data.fingerprint import described, fingerprint
from gpm_tune.errors import DivergedError, OtherDataError, UserError, first_line, origin
from gpm_tune.interrupts import heed_termination
from gpm_tune.patience import scarcity
from gpm_tune.study.cluster.nodes import NodeReport, drain, look, misfit
from gpm_tune.study.running.conductor import Word
from gpm_tune.study.running.health import is_of_machine, why_sick
from gpm_tune.study.running.spot import SpotWatch
from gpm_tune.study.running.time_limit import TimeLimit
from gpm_tune.study.storage import trial_checkpoints
from gpm_tune.study.storage.inputs import fetch_teacher
from gpm_tune.training import Experiment, Objective, Trainer
from gpm_tune.training.machine import limit_gpu_memory, return_freed_memory
from gpm_tune.training.resuming import resume

POLL_SECONDS = 0.5  # how often a trial looks whether the study was interrupted
PAUSES = (0.0, 5.0, 20.0)  # seconds before each try of a node to get what it needs
NOTICE_SECONDS = 120.0  # that a spot node has left, at most
OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory", re.IGNORECASE)

T = TypeVar("T")


@ray.remote(num_cpus=0)
class Switch:
    """Tells every trial that the study was interrupted, and the study what trials have to say at once."""

    def __init__(self) -> None:
        self._on = False
        self._words: list[Word] = []

    def turn_on(self) -> None:
        """Ask all trials to checkpoint and stop."""
        self._on = True

    def is_on(self) -> bool:
        """Whether trials should stop."""
        return self._on

    def say(self, word: Word) -> None:
        """Keep a word for the study."""
        self._words.append(word)

    def heard(self) -> list[Word]:
        """The words since this was asked before."""
        words, self._words = self._words, []
        return words


class Interruption:
    """Whether the study was interrupted, by a look at the switch now and then; once seen, it stays seen.

    The first look waits for the answer. Later ones find it at the next call: training does not wait.
    """

    def __init__(self, switch: Any) -> None:
        self._switch = switch
        self._next_look = 0.0
        self._answer: Any = None
        self._seen = False

    def __call__(self) -> bool:
        now = time.monotonic()
        if self._seen or now < self._next_look:
            return self._seen
        is_first = self._next_look == 0.0
        self._next_look = now + POLL_SECONDS
        if self._answer is None:
            self._answer = self._switch.is_on.remote()
        if is_first or ray.wait([self._answer], timeout=0)[0]:
            self._seen = bool(ray.get(self._answer))
            self._answer = None if self._seen else self._switch.is_on.remote()
        return self._seen


class TrialTrainable(tune.Trainable):  # type: ignore[misc]
    """Ray's view of a `Trainer`.

    Its config: `number`, `experiment` and `objective` as plain data, `wanted` metrics, `checkpoint` to
    continue from or None, the location of all `checkpoints`, `cache` folder, `storage` or None, `threads`,
    `device`, `time_limit`, `data`: the study's base experiment and the fingerprint of the data that the
    study is bound to, and `expected`: the report that nodes must equal and the study's base
    experiment, or None on a single machine. A result has `step`, `metrics` and a
    `picture`, or `failure` with a reason, or `interrupted`, or `refused` with the reason why this node,
    or its data, do not fit, or `leaves` with the reason why the trial must go on elsewhere, after which
    the process ends; and a `note` where the trial did not continue where it should have.
    Exceptions become failures: only a lost process is worth a retry.
    """

    def setup(self, config: dict[str, Any], switch: Any) -> None:
        self._switch = switch
        self._interrupted = Interruption(switch)
        self._asked_to_end = heed_termination()
        self._spot = None if config["expected"] is None else SpotWatch()
        self._obstacle = self._look(config)
        self._has_left = False
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take over another trial, in the same process."""
        self._trial = new_config
        self._checkpoint: str | None = new_config["checkpoint"]
        self._note: str | None = None
        file = self._session / trial_checkpoints.trial_folder(new_config["number"]) / "hang.txt"
        self._limit = TimeLimit(new_config["time_limit"], file)
        self._forget()
        torch.set_num_threads(new_config["threads"])
        return True

    @property
    def _session(self) -> Path:
        """A folder for what is left of a process that hangs: of all nodes, or if need be of this one."""
        if self._storage is None:
            return Path(self.logdir)
        session: str = self._storage.experiment_fs_path
        in_bucket = locations.is_bucket(self._trial["checkpoints"])
        return Path(self._trial["cache"], "hangs", session) if in_bucket else Path(session)

    @classmethod
    def _look(cls, config: dict[str, Any]) -> dict[str, Any] | None:
        """The result where this node, which may have joined late, cannot run the study's trials."""
        if config["expected"] is None:
            sickness = why_sick(config["device"])
            return cls._leaves(sickness, is_sick=True) if sickness else None
        report, base = config["expected"]
        for pause in PAUSES:
            time.sleep(pause)
            here = look(ray.util.get_node_ip_address(), base, storage=config["storage"])
            if not here.lacks:
                break
        refusal = misfit(NodeReport(**report), here)
        if refusal:
            return {"refused": refusal, "done": True}
        folders = (config["cache"], tempfile.gettempdir())
        sickness = here.lacks or why_sick(config["device"], folders)
        return cls._leaves(sickness, is_sick=True) if sickness else None

    @staticmethod
    def _leaves(reason: str, *, is_sick: bool = False, is_loss: bool = True) -> dict[str, Any]:
        """The result of a trial that has to go on elsewhere.

        is_sick: the node can run no other trial either. is_loss: it counts among the trial's lost processes.
        """
        return {
            "leaves": f"node {ray.util.get_node_ip_address()}: {reason}",
            "sick_node": ray.get_runtime_context().get_node_id() if is_sick else None,
            "is_loss": is_loss,
        }

    def _forget(self) -> None:
        """Free the memory of a trial that has ended, for the next one in this process."""
        self._trainer: Trainer | None = None
        gc.collect()
        return_freed_memory()
        torch.cuda.empty_cache()

    def step(self) -> dict[str, Any]:
        """Train up to the next evaluation, or until the study is interrupted."""
        if self._has_left:
            raise RuntimeError("the trial goes on elsewhere")  # ends the process, which no trial may reuse
        result = self._obstacle or self._train()
        self._has_left = "leaves" in result
        return result

    def _train(self) -> dict[str, Any]:
        failure = self._limit.verdict
        if failure is None:
            try:
                with self._limit.watch():
                    return self._interval()
            except OtherDataError as error:
                self._forget()
                return {"refused": str(error), "done": True}
            except BaseException as error:
                if not isinstance(error, Exception) and plugins.failure(error) is None:
                    raise
                if is_of_machine(error):
                    return self._leaves(f"{type(error).__name__}: {first_line(error)}")
                failure = reason_of(error, Experiment.model_validate(self._trial["experiment"]))
        self._forget()
        return {"failure": failure, "done": True}

    def _interval(self) -> dict[str, Any]:
        if self._trainer is None:
            if self._has_to_stop():
                return self._stopped()
            self._trainer = self._build()
        evaluation = self._trainer.run_interval(self._has_to_stop)
        note = {"note": self._note} if self._note else {}
        if self._trial["device"] == "cuda":
            note["gpu"] = torch.cuda.get_device_name()
        if evaluation is None:
            return {**self._stopped(), "should_checkpoint": True, **note}
        return {
            "step": evaluation.step,
            "metrics": evaluation.metrics,
            "picture": evaluation.picture,
            "all_steps": self._trainer.done,  # `done` is also true of a trial that is stopped
            "done": self._trainer.done,
            "should_checkpoint": True,
            **note,
        }

    def _has_to_stop(self) -> bool:
        return self._interrupted() or self._asked_to_end() or bool(self._spot and self._spot.notice)

    def _stopped(self) -> dict[str, Any]:
        """The result of a trial that was told to stop, here or everywhere."""
        if self._interrupted():
            return {"interrupted": True}
        if self._spot and self._spot.notice:
            if not self._spot.is_draining:
                drain(ray.get_runtime_context().get_node_id(), self._spot.notice, NOTICE_SECONDS)
            return self._leaves(self._spot.notice, is_loss=False)
        return self._leaves("its process was asked to end (SIGTERM)", is_loss=False)

    def _build(self) -> Trainer:
        if self._trial["device"] == "cuda":
            limit_gpu_memory(ray.get_runtime_context().get_assigned_resources()["GPU"])
        experiment = Experiment.model_validate(self._trial["experiment"])
        cache = Path(self._trial["cache"])
        if self._trial["storage"]:
            fetch_teacher(experiment.teacher, cache, self._trial["storage"])
        trainer = Trainer(
            experiment,
            device=self._trial["device"],
            objective=Objective.model_validate(self._trial["objective"]),
            wanted=self._trial["wanted"],
            cache=cache,
        )
        check_data(trainer, *self._trial["data"])
        if self._checkpoint:
            latest, checkpoints = self._checkpoint, self._trial["checkpoints"]
            self._note = self._patiently(lambda: _resume(trainer, latest, checkpoints)) or self._note
        return trainer

    def save(self, checkpoint_dir: str | None = None) -> Any:
        """Write a checkpoint and copy it to the storage, which may be away or hang as everything else."""
        save = super().save
        with self._limit.watch():
            saved = self._patiently(lambda: save(checkpoint_dir))
            if self._storage is not None:
                latest = trial_checkpoints.location(self._trial["checkpoints"], saved.checkpoint.path)
                self._patiently(lambda: trial_checkpoints.drop_old(latest))
            return saved

    def _patiently(self, use: Callable[[], T]) -> T:
        """Use the storage; a note says at once where it is away, or full. An interrupt ends the wait."""
        said: list[str] = []

        def note(error: Exception) -> None:
            if not said:
                said.append(self._why_away(error))
                self._note = said[0]
                self._say(f"{said[0]}; waiting for it")

        try:
            return locations.patiently(use, note, self._interrupted)
        except OSError as error:
            is_alone = self._trial["expected"] is None
            if is_alone and not self._interrupted() and scarcity(error, self._place):
                self._say(self._why_away(error), ends_study=True)
            raise

    @property
    def _place(self) -> Path:
        return Path(self._trial["checkpoints"])

    def _why_away(self, error: Exception) -> str:
        away = f"the storage was away: {type(error).__name__}: {first_line(error)}"
        return scarcity(error, self._place) or away

    def _say(self, text: str, *, ends_study: bool = False) -> None:
        ray.get(self._switch.say.remote(Word(self._trial["number"], text, ends_study)))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        assert self._trainer is not None, "a checkpoint is asked for by results of a trainer only"
        self._trainer.save(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: str) -> None:
        """Continue from there with the next step: what fails then is the trial's failure, and no loss."""
        self._checkpoint = checkpoint
        self._trainer = None


def check_data(trainer: Trainer, base: dict[str, Any], expected: str) -> None:
    """Raise OtherDataError where the study's data are not those to which its results are bound.

    base: the study's experiment. Its data, too, are looked at where a trial searches for other ones.
    """
    data = Experiment.model_validate(base).data
    is_same = trainer.experiment.data == data
    found = trainer.data_fingerprint if is_same else fingerprint(data)
    if found != expected:
        raise OtherDataError(
            f"{described(data)} have changed since the study began: their fingerprint was {expected}, on "
            f"{ray.util.get_node_ip_address()} it is now {found}. Trials on both could not be compared\n"
            "help: put the data back, and run the study again; or begin another one with --name"
        )


def _resume(trainer: Trainer, latest: str, checkpoints: str) -> str | None:
    """Continue from the best choice among a trial's checkpoints.

    Raises OSError where the storage is away: its checkpoints are not damaged then.
    """
    if not locations.exists(checkpoints):
        raise FileNotFoundError(f"{checkpoints} is not there")
    with tempfile.TemporaryDirectory() as cache:

        def folders() -> Iterator[Path]:
            for place in trial_checkpoints.candidates(latest):
                yield locations.local(place, Path(cache))

        return resume(trainer, folders())


def reason_of(error: BaseException, experiment: Experiment) -> str:
    """Why a trial failed, in a sentence."""
    if isinstance(error, DivergedError | UserError):
        return str(error)
    text = str(error)
    is_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if is_memory or (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(text)):
        return (
            f"out of memory: {text.splitlines()[0] if text else 'Python could not allocate'} Lower "
            f"training.batch_size ({experiment.training.batch_size}) or evaluation.batch_size "
            f"({experiment.evaluation.batch_size}), search smaller networks, or give a trial more of "
            "a GPU and its memory: raise resources.gpu"
        )
    return plugins.failure(error) or f"{type(error).__name__}: {text} ({origin(error)})"
