"""The controller: tells the trial manager, who watches, and MLflow's publisher what happens to trials.

A plain object that knows nothing of Ray; tests drive it event by event.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, Protocol

from gpm_tune.errors import ScarcityError
from gpm_tune.study.accounts.trial_manager import Decision, TrialManager, TrialSpec
from gpm_tune.training.objectives import Measured

PROCESS_LOSSES = 10  # of one trial: a node may vanish, but not for ever
SICK_TRIALS = 3  # that a node could not run, before it gets no more
SICK_NODES = 3  # before a study that has measured nothing ends

_log = logging.getLogger("gpm_tune")


class Word(NamedTuple):
    """What a trial has to say at once, and not with its next result."""

    number: int
    text: str
    ends_study: bool  # it cannot go on, nor can others


class Observer(Protocol):
    """Something that shows a person how the trials fare."""

    def started(self, spec: TrialSpec) -> None: ...
    def measured(self, number: int, step: int, measured: Measured) -> None: ...
    def noted(self, number: int, note: str) -> None: ...
    def ended(self, number: int, state: str, reason: str | None) -> None: ...
    def led(self, value: float) -> None: ...


def _scarce(otherwise: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make what is told to a controller end its study in order where storage stays busy or full.

    Trials checkpoint and stop then, and what could not be recorded is measured again from there.
    otherwise: is returned where it could not be recorded.
    """

    def guard(method: Callable[..., Any]) -> Any:
        @wraps(method)
        def call(self: StudyController, *arguments: Any, **named: Any) -> Any:
            try:
                return method(self, *arguments, **named)
            except ScarcityError as error:
                if self.scarcity is None:
                    self.scarcity = error
                self.interrupt()
                return otherwise

        return call

    return guard


class StudyController:
    """Assigns trials and follows each of them to its end."""

    def __init__(self, manager: TrialManager, touch: Callable[[str], object], observer: Observer) -> None:
        """touch: is told the key of each run whose records have changed, for MLflow."""
        self.interrupted = False
        self.used_up: str | None = None  # which part of the budget ended the study
        self.refused: str | None = None  # why a node cannot run its trials
        self.scarcity: ScarcityError | None = None  # what ended the study, and is no one's fault
        self.is_asked_to_stop: Callable[[], bool] = bool  # by another process
        self.on_stop: Callable[[], object] = bool  # called once, when trials have to checkpoint and stop
        self.on_sick: Callable[[str, str], object] | None = None  # called once for a node, with the reason
        self.hear: Callable[[], list[Word]] = list  # what trials have to say between their results
        self.price: Callable[[], float | None] = lambda: None  # of the nodes, in US dollars an hour
        self._manager = manager
        self._touch = touch
        self._observer = observer
        self._live: set[int] = set()
        self._steps: dict[int, int] = {}  # of live trials: the last one measured
        self._leader: tuple[int, int] | None = None  # the best trial, and its best step
        self._notes: dict[int, str] = {}
        self._runs: dict[int, str] = {}
        self._gpus: dict[int, str] = {}
        self._decisions: dict[int, Decision] = {}  # on trials that are to stop here
        self._leaving: dict[int, str] = {}  # why trials go on elsewhere, whose processes are about to end
        self._losses: Counter[int] = Counter()  # of a trial's process
        self._sick: Counter[str] = Counter()  # trials that a node could not run
        self._has_results = False

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Tune pickles whatever it is given, for a way of resuming that is not ours: give it nothing."""
        return object, ()

    @property
    def study_id(self) -> str:
        """Identifies the study beyond its name."""
        return self._manager.id

    @property
    def data_fingerprint(self) -> str:
        """Of the samples that the study's results are bound to."""
        return self._manager.data_fingerprint

    def interrupt(self) -> None:
        """Let every trial checkpoint and stop, and start no more."""
        if not self.interrupted:
            self.interrupted = True
            self.on_stop()

    @_scarce(None)
    def poll(self, training: int = 0) -> None:
        """Interrupt the study where a part of its budget is used up, or another process asks for it.

        training: how many trials train now, and do not wait for a node.
        """
        for word in self.hear():
            if word.number in self._live:
                self.noted(word.number, word.text)
            if word.ends_study:
                raise ScarcityError(word.text)
        if self.is_asked_to_stop():
            self.interrupt()
        reason = None if self.interrupted else self._manager.used_up(training, self.price())
        if reason:
            self.used_up = reason
            self.interrupt()

    @_scarce(None)
    def assign(self, places: int = 1) -> TrialSpec | None:
        """The next trial to start; None where there is none now. places: for how many there is room."""
        spec = None if self.interrupted else self._manager.next(places)
        if spec:
            number = spec.number
            if spec.replaces is not None:
                self._close(spec.replaces, "pruned", f"replaced by trial {number}, a fork")
            self._steps[number] = spec.known_step
            if number not in self._live:  # it had paused
                self._live.add(number)
                self._changed(number)
                self._observer.started(spec)
                self._show_leader()
            _log.info("trial %d at step %d: %s", number, spec.known_step, spec.values)
        return spec

    def _changed(self, number: int) -> None:
        self._touch(self._manager.run_key(number))

    @_scarce(False)
    def measured(self, number: int, step: int, measured: Measured) -> bool:
        """Record an evaluation. Returns whether the trial should be stopped here.

        An evaluation that is measured again, after a lost worker, changes nothing.
        """
        if step <= self._steps[number]:
            return False
        self._steps[number] = step
        self._has_results = True
        self._observer.measured(number, step, measured)
        decision = self._manager.report(number, step, measured)
        self._changed(number)
        self._show_leader()
        if decision is Decision.CONTINUE:
            return False
        self._decisions[number] = decision
        return True

    @_scarce(None)
    def noted(self, number: int, note: str) -> None:
        """Say what happened to a trial that its owner should know. Said again, it changes nothing."""
        if self._notes.get(number) != note:
            self._notes[number] = note
            self._manager.keep_note(number, note)
            self._changed(number)
            self._observer.noted(number, note)

    @_scarce(None)
    def trained_on(self, number: int, gpu: str) -> None:
        """Say on what kind of GPU a trial is trained. Said again, it changes nothing."""
        if self._gpus.get(number) != gpu:
            self._gpus[number] = gpu
            self._manager.keep_gpu(number, gpu)

    @_scarce(None)
    def trains(self, number: int, run: str) -> None:
        """Say which training run is a trial's. Said again, it changes nothing."""
        if self._runs.get(number) != run:
            self._runs[number] = run
            self._manager.keep_run(number, run)
            _log.info("trial %d: training run %s", number, run)

    @_scarce(None)
    def ended(self, number: int, failure: str | None = None, *, all_steps: bool = False) -> None:
        """Close a trial that ran all its steps, was stopped early, pauses, or failed for the given reason."""
        decision = self._decisions.pop(number, Decision.CONTINUE)
        if failure:
            self._manager.fail(number, failure)
            self._close(number, "fail", failure)
        elif decision is Decision.PAUSE and not all_steps:
            if self.interrupted:
                self.suspended(number)
            else:
                self._manager.pause(number)
        elif decision is Decision.STOP:
            self._manager.prune(number)
            self._close(number, "pruned")
        else:
            self._manager.complete(number)
            self._close(number, "complete")

    def leaves(self, number: int, reason: str, sick_node: str | None, *, is_loss: bool) -> None:
        """Expect the end of a trial's process, because of its node.

        sick_node: a node that can run no trial, if it is. is_loss: whether the end of the process counts.
        """
        self._leaving[number] = reason
        if not is_loss:
            self._losses[number] -= 1  # as its end adds one
        if sick_node is None:
            return
        self._sick[sick_node] += 1
        if self._sick[sick_node] == SICK_TRIALS:
            if self.on_sick:
                self.on_sick(sick_node, reason)
            excluded = sum(trials >= SICK_TRIALS for trials in self._sick.values())
            if excluded == SICK_NODES and not self._has_results:
                self.give_up(f"{SICK_NODES} nodes, and none could train. The last one was {reason}")

    @_scarce(None)
    def lost(self, number: int) -> None:
        """Hand a trial out again whose process was lost, unless it was to be stopped anyway."""
        if self._decisions.get(number) is Decision.STOP:
            self.ended(number)
            return
        self._decisions.pop(number, None)
        reason = self._leaving.pop(number, None)
        self._losses[number] += 1
        if self._losses[number] > PROCESS_LOSSES:
            last = f"; the last time: {reason}" if reason else ""
            self.ended(number, f"its process was lost {self._losses[number]} times{last}")
            return
        self._live.remove(number)
        self._manager.requeue(number)
        lost = reason or "its process was lost"
        self._observer.noted(number, f"{lost}; it goes on from its latest checkpoint")

    @_scarce(None)
    def suspended(self, number: int) -> None:
        """Leave a trial as it is, to be continued by a later run of the study."""
        self._manager.suspend(number)
        self._close(number, "interrupted")

    @_scarce(None)
    def close(self) -> None:
        """Nothing more is run now: paused trials are left to the next run of the study."""
        left = self._manager.unfinished
        self._manager.close()
        for number in left & self._live:
            self._close(number, "interrupted")

    def refuse(self, number: int, reason: str) -> None:
        """End the study, because a trial was given to a node that would train it otherwise than others."""
        self.give_up(reason)
        self.suspended(number)

    def give_up(self, reason: str) -> None:
        """End the study: there is nowhere to run its trials."""
        self.refused = reason
        self.interrupt()

    def _show_leader(self) -> None:
        """Tell who watches of the best trial."""
        number = self._manager.leader
        best = None if number is None else self._manager.best_of(number)
        leader = None if number is None or best is None else (number, best["step"])
        if leader != self._leader:
            self._leader = leader
            # A trial that got better and out of bounds leads no longer, and there may be no other.
            self._observer.led(best["scores"][0] if best else math.nan)

    def _close(self, number: int, state: str, reason: str | None = None) -> None:
        if state in ("complete", "pruned") and not self._manager.is_feasible(number):
            state = "infeasible"
        self._live.discard(number)
        self._changed(number)
        if state != "interrupted":
            self._touch(self._manager.id)
        self._observer.ended(number, state, reason)
