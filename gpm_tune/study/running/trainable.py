"""A trial on a Ray worker: its training, one evaluation a step."""

from __future__ import annotations

import gc
import re
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch
from ray import tune

from gpm_tune import locations, plugins
from gpm_tune.data.fingerprint import described, fingerprint
from gpm_tune.errors import DivergedError, OtherDataError, UserError, first_line, origin
from gpm_tune.interrupts import heed_termination
from gpm_tune.lease import LeaseLostError
from gpm_tune.patience import scarcity
from gpm_tune.study.cluster.nodes import drain, incompatibility, look
from gpm_tune.study.running.controller import Word
from gpm_tune.study.running.health import is_of_machine, why_sick
from gpm_tune.study.running.messages import Departure, Order, Terms, TrialResult
from gpm_tune.study.running.spot import SpotWatch
from gpm_tune.study.running.time_limit import TimeLimit
from gpm_tune.training import Experiment, Trainer
from gpm_tune.training.loop import Asker, Training
from gpm_tune.training.machine import limit_gpu_memory, return_freed_memory
from gpm_tune.training.objectives import shown
from gpm_tune.training.run import EvaluationRecord

POLL_SECONDS = 0.5  # how often a trial looks whether the study was interrupted
PAUSES = (0.0, 5.0, 20.0)  # seconds before each try of a node to get what it needs
NOTICE_SECONDS = 120.0  # that a spot node has left, at most
OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory", re.IGNORECASE)

T = TypeVar("T")


@ray.remote(num_cpus=0)
class StopSignal:
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
    """Whether the study was interrupted, by a look at the stop signal now and then; once seen, it stays seen.

    The first look waits for the answer. Later ones find it at the next call: training does not wait.
    """

    def __init__(self, stop_signal: Any) -> None:
        self._stop_signal = stop_signal
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
            self._answer = self._stop_signal.is_on.remote()
        if is_first or ray.wait([self._answer], timeout=0)[0]:
            self._seen = bool(ray.get(self._answer))
            self._answer = None if self._seen else self._stop_signal.is_on.remote()
        return self._seen


class TrialTrainable(tune.Trainable):  # type: ignore[misc]
    """Ray's view of a `Training`: a step is one evaluation of it.

    Its config has an `order`. A result has an `outcome`. Exceptions become failures: only a lost process is
    worth a retry. Ray moves no files: the training writes its run.
    """

    def setup(self, config: dict[str, Any], stop_signal: Any, terms: Terms) -> None:
        self._stop_signal = stop_signal
        self._terms = terms
        self._interrupted = Interruption(stop_signal)
        self._asked_to_end = heed_termination()
        self._spot = None if terms.expected is None else SpotWatch()
        self._obstacle = self._look()
        self._has_left = False
        self._evaluations: Generator[EvaluationRecord] | None = None
        torch.set_num_threads(terms.threads)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take over another trial, in the same process."""
        self._forget()
        self._order: Order = new_config["order"]
        self._known_step = self._order.trial.known_step  # of the last evaluation that was told of
        self._note: str | None = None
        file = self._terms.hangs / f"trial_{self._order.trial.number:04d}.txt"
        self._limit = TimeLimit(self._terms.time_limit, file)
        return True

    def cleanup(self) -> None:
        """Release what is held."""
        self._forget()

    def _look(self) -> TrialResult | None:
        """The outcome where this node, which may have joined late, cannot run the study's trials."""
        terms = self._terms
        if terms.expected is None:
            sickness = why_sick(terms.device)
            return self._leaves(sickness, is_sick=True) if sickness else None
        for pause in PAUSES:
            time.sleep(pause)
            here = look(
                ray.util.get_node_ip_address(), terms.base.model_dump(mode="json"), storage=terms.storage
            )
            if not here.lacks:
                break
        refusal = incompatibility(terms.expected, here)
        if refusal:
            return TrialResult(refused=refusal)
        sickness = here.lacks or why_sick(terms.device, (str(terms.runs.cache), tempfile.gettempdir()))
        return self._leaves(sickness, is_sick=True) if sickness else None

    @staticmethod
    def _leaves(reason: str, *, is_sick: bool = False, is_loss: bool = True) -> TrialResult:
        """The outcome of a trial that has to go on elsewhere; see `Departure`."""
        node = ray.get_runtime_context().get_node_id() if is_sick else None
        where = f"node {ray.util.get_node_ip_address()}: {reason}"
        return TrialResult(departure=Departure(where, node, is_loss))

    def _forget(self) -> None:
        """Let go of a trial's run, and free its memory, for the next one in this process."""
        if self._evaluations is not None:
            self._evaluations.close()
        self._evaluations = None
        gc.collect()
        return_freed_memory()
        torch.cuda.empty_cache()

    def step(self) -> dict[str, Any]:
        """Train up to the next evaluation, or until the study is interrupted."""
        if self._has_left:
            raise RuntimeError("the trial goes on elsewhere")  # ends the process, which no trial may reuse
        outcome = self._obstacle or self._next()
        self._has_left = outcome.departure is not None
        ends = outcome.is_end or outcome.failure or outcome.refused
        if ends:  # or an idle process would keep others off the training
            self._forget()
        return {"outcome": outcome, "done": bool(ends)}

    def _next(self) -> TrialResult:
        failure = self._limit.decision
        if failure is None:
            try:
                with self._limit.watch():
                    return self._evaluate()
            except OtherDataError as error:
                self._forget()
                return TrialResult(refused=str(error))
            except LeaseLostError as error:
                return self._leaves(str(error), is_loss=False)
            except BaseException as error:
                if not isinstance(error, Exception) and plugins.failure(error) is None:
                    raise
                if is_of_machine(error):
                    return self._leaves(f"{type(error).__name__}: {first_line(error)}")
                failure = reason_of(error, self._order.trial.experiment)
        self._forget()
        return TrialResult(failure=failure)

    def _evaluate(self) -> TrialResult:
        if self._evaluations is None:
            if self._has_to_stop():
                return self._stopped()
            self._training = self._open()
            self._evaluations = self._training.evaluations(after=self._order.trial.known_step)
        record = next(self._evaluations, None)
        outcome = TrialResult(
            run=self._training.run.name,
            note=self._note,
            gpu=torch.cuda.get_device_name() if self._terms.device == "cuda" else None,
        )
        if record is not None:
            is_end = record.step >= self._order.trial.experiment.training.steps
            self._known_step = record.step
            return replace(outcome, step=record.step, measured=record, is_end=is_end)
        if self._known_step >= self._order.trial.experiment.training.steps:
            return replace(outcome, is_end=True)
        stopped = self._stopped()
        return replace(outcome, is_interrupted=stopped.is_interrupted, departure=stopped.departure)

    def _open(self) -> Training:
        terms, order = self._terms, self._order
        if terms.device == "cuda":
            limit_gpu_memory(ray.get_runtime_context().get_assigned_resources()["GPU"])
        trial = order.trial
        asker = Asker(
            user=terms.user,
            name=f"trial {trial.number} of study {terms.study}",
            nonce=order.nonce,
            predecessors=order.predecessors,
            should_stop=self._has_to_stop,
            on_wait=self._wait_for_other,
            on_note=self._take_note,
            on_teacher=self._has_taught,
            check=self._begin,
            use_storage=self._patiently,
        )
        run = terms.runs.named(trial.run) if trial.run else terms.runs.of(trial.experiment)
        return Training(trial.experiment, run, asker, device=terms.device, objective=terms.objective)

    def _wait_for_other(self, holder: str) -> None:
        """Another process trains what this trial needs: that may take longer than an evaluation."""
        self._limit.pause()
        self._say(f"waits for {holder}, which trains what it needs")

    def _begin(self, trainer: Trainer) -> None:
        self._limit.restart()
        check_data(trainer, self._terms.base, self._terms.data_fingerprint)

    def _has_taught(self, teacher: Experiment, record: EvaluationRecord) -> None:
        self._limit.restart()
        objective = teacher.default_objective
        value = f"{objective.metric} {shown(objective.value_of(record))}"
        self._say(f"teacher: step {record.step}/{teacher.training.steps}, {value}")

    def _take_note(self, text: str) -> None:
        self._note = text
        self._say(text)

    def _has_to_stop(self) -> bool:
        return self._interrupted() or self._asked_to_end() or bool(self._spot and self._spot.notice)

    def _stopped(self) -> TrialResult:
        """The outcome of a trial that was told to stop, here or everywhere."""
        if self._interrupted():
            return TrialResult(is_interrupted=True)
        if self._spot and self._spot.notice:
            if not self._spot.is_draining:
                drain(ray.get_runtime_context().get_node_id(), self._spot.notice, NOTICE_SECONDS)
            return self._leaves(self._spot.notice, is_loss=False)
        return self._leaves("its process was asked to end (SIGTERM)", is_loss=False)

    def _patiently(self, use: Callable[[], T]) -> T:
        """Use the storage; a note says at once where it is away, or full. An interrupt ends the wait."""
        said: list[str] = []

        def note(error: Exception) -> None:
            if not said:
                said.append(self._why_away(error))
                self._note = said[0]
                self._say(f"{said[0]}; waiting for it")

        try:
            return locations.retry(use, note, self._interrupted)
        except OSError as error:
            is_alone = self._terms.expected is None
            if is_alone and not self._interrupted() and scarcity(error, self._place):
                self._say(self._why_away(error), ends_study=True)
            raise

    @property
    def _place(self) -> Path:
        return Path(self._terms.runs.location)

    def _why_away(self, error: Exception) -> str:
        away = f"the storage was away: {type(error).__name__}: {first_line(error)}"
        return scarcity(error, self._place) or away

    def _say(self, text: str, *, ends_study: bool = False) -> None:
        ray.get(self._stop_signal.say.remote(Word(self._order.trial.number, text, ends_study)))


def check_data(trainer: Trainer, base: Experiment, expected: str) -> None:
    """Raise OtherDataError where the study's data are not those to which its results are bound.

    base: the study's experiment. Its data, too, are looked at where a trial searches for other ones.
    """
    is_same = trainer.experiment.data == base.data
    found = trainer.data_fingerprint if is_same else fingerprint(base.data)
    if found != expected:
        raise OtherDataError(
            f"{described(base.data)} have changed since the study began: their fingerprint was {expected}, "
            f"on {ray.util.get_node_ip_address()} it is now {found}. Trials on both could not be compared\n"
            "help: put the data back, and run the study again; or begin another one with --name"
        )


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
