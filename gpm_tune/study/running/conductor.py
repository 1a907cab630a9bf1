"""The conductor: turns what happens to trials into ledger entries, tracking and progress.

A plain object that knows nothing of Ray; tests drive it event by event.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, NamedTuple, Protocol

import yaml

from gpm_tune.errors import ScarcityError
from gpm_tune.study.accounts.ledger import Assignment, Ledger, Verdict
from gpm_tune.study.tracking.provenance import run_tags
from gpm_tune.study.tracking.tracker import RunLog, Tracker
from gpm_tune.training.objectives import curve_of

STATUSES = {"fail": "FAILED", "interrupted": "KILLED"} | dict.fromkeys(
    ("complete", "pruned", "infeasible"), "FINISHED"
)
"""How the run of a trial in each state ends, in MLflow's words."""

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

    def started(self, assignment: Assignment) -> None: ...
    def measured(self, number: int, step: int, metrics: Mapping[str, float]) -> None: ...
    def noted(self, number: int, note: str) -> None: ...
    def ended(self, number: int, state: str, reason: str | None) -> None: ...
    def led(self, value: float) -> None: ...


def _scarce(otherwise: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make what is told to a conductor end its study in order where storage stays busy or full.

    Trials checkpoint and stop then, and what could not be recorded is measured again from there.
    otherwise: is returned where it could not be recorded.
    """

    def guard(method: Callable[..., Any]) -> Any:
        @wraps(method)
        def call(self: Conductor, *arguments: Any, **named: Any) -> Any:
            try:
                return method(self, *arguments, **named)
            except ScarcityError as error:
                if self.scarcity is None:
                    self.scarcity = error
                self.interrupt()
                return otherwise

        return call

    return guard


class Conductor:
    """Assigns trials and follows each of them to its end."""

    def __init__(self, ledger: Ledger, tracker: Tracker, observer: Observer) -> None:
        self.interrupted = False
        self.used_up: str | None = None  # which part of the budget ended the study
        self.refused: str | None = None  # why a node cannot run its trials
        self.scarcity: ScarcityError | None = None  # what ended the study, and is no one's fault
        self.is_asked_to_stop: Callable[[], bool] = bool  # by another process
        self.on_stop: Callable[[], object] = bool  # called once, when trials have to checkpoint and stop
        self.on_sick: Callable[[str, str], object] | None = None  # called once for a node, with the reason
        self.hear: Callable[[], list[Word]] = list  # what trials have to say between their results
        self.price: Callable[[], float | None] = lambda: None  # of the nodes, in US dollars an hour
        self._ledger = ledger
        self._tracker = tracker
        self._observer = observer
        self._runs: dict[int, RunLog] = {}
        self._steps: dict[int, int] = {}  # of live trials: the last one measured
        self._parent: RunLog | None = None  # the study's own run
        self._leader: tuple[int, int] | None = None  # the best trial, and its best step
        self._notes: dict[int, str] = {}
        self._gpus: dict[int, str] = {}
        self._verdicts: dict[int, Verdict] = {}  # on trials that are to stop here
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
        return self._ledger.id

    def report_to(self, parent: RunLog) -> None:
        """Tell the study's own run of its best trial, from now on."""
        self._parent = parent
        self._log_leader()

    @property
    def data_fingerprint(self) -> str:
        """Of the samples that the study's results are bound to."""
        return self._ledger.data_fingerprint

    def interrupt(self) -> None:
        """Let every trial checkpoint and stop, and start no more."""
        if not self.interrupted:
            self.interrupted = True
            self.on_stop()

    @_scarce(None)
    def look_around(self, training: int = 0) -> None:
        """Interrupt the study where a part of its budget is used up, or another process asks for it.

        training: how many trials train now, and do not wait for a node.
        """
        for word in self.hear():
            if word.number in self._runs:
                self.noted(word.number, word.text)
            if word.ends_study:
                raise ScarcityError(word.text)
        if self.is_asked_to_stop():
            self.interrupt()
        reason = None if self.interrupted else self._ledger.used_up(training, self.price())
        if reason:
            self.used_up = reason
            self.interrupt()

    @_scarce(None)
    def assign(self) -> Assignment | None:
        """The next trial to start; None where there is none now."""
        assignment = None if self.interrupted else self._ledger.next()
        if assignment:
            if assignment.replaces is not None:
                self._replaced(assignment)
            number = assignment.number
            # What trains nothing is measured at step 0.
            self._steps[number] = assignment.steps_done if self._ledger.best_of(number) else -1
            if number not in self._runs:
                self._runs[number] = self._open_run(assignment)
                self._log_best(number)  # of a fork or a continued trial
                self._observer.started(assignment)
                _log.info("trial %d at step %d: %s", number, assignment.steps_done, assignment.values)
        return assignment

    def _open_run(self, assignment: Assignment) -> RunLog:
        number, forked = assignment.number, assignment.forked_from
        tags = {"gpm.study": self._ledger.study.name, "gpm.trial": str(number), "gpm.state": "running"}
        if forked:
            tags["gpm.forked_from"] = f"trial {forked['trial']}, step {forked['step']}"
        experiment = assignment.experiment.model_dump(mode="json")
        run = self._tracker.open_run(
            self._ledger.run_key(number),
            name=f"trial {number}",
            parent=self._ledger.id,
            params=experiment,
            tags=run_tags(assignment.experiment, self.data_fingerprint) | tags,
        )
        run.artifact("experiment.yaml", yaml.safe_dump(experiment, sort_keys=False).encode())
        return run

    def _replaced(self, fork: Assignment) -> None:
        """Close the run of a trial whose place a fork takes."""
        number = fork.replaces
        assert number is not None, "a fork replaces a trial"
        if number not in self._runs:  # it was opened before a restart
            key, name = self._ledger.run_key(number), f"trial {number}"
            self._runs[number] = self._tracker.open_run(key, name=name, parent=self._ledger.id)
        donor = fork.forked_from["trial"] if fork.forked_from else None
        reason = f"replaced by trial {fork.number}, a fork of trial {donor}"
        self._close(number, "pruned", reason)

    @_scarce(False)
    def measured(self, number: int, step: int, metrics: Mapping[str, float]) -> bool:
        """Record an evaluation. Returns whether the trial should be stopped here.

        An evaluation that is measured again, after a lost worker, changes nothing.
        """
        if step <= self._steps[number]:
            return False
        self._steps[number] = step
        self._has_results = True
        self._runs[number].metrics(step, metrics)
        self._observer.measured(number, step, metrics)
        verdict = self._ledger.report(number, step, metrics)
        self._log_best(number)
        if verdict is Verdict.GO_ON:
            return False
        self._verdicts[number] = verdict
        return True

    @_scarce(None)
    def noted(self, number: int, note: str) -> None:
        """Say where a trial goes on if its latest checkpoint is damaged. Said again, it changes nothing."""
        if self._notes.get(number) != note:
            self._notes[number] = note
            self._runs[number].tags({"gpm.note": note})
            self._observer.noted(number, note)

    @_scarce(None)
    def trained_on(self, number: int, gpu: str) -> None:
        """Say on what kind of GPU a trial is trained. Said again, it changes nothing."""
        if self._gpus.get(number) != gpu:
            self._gpus[number] = gpu
            self._ledger.keep_gpu(number, gpu)
            self._runs[number].tags({"gpm.gpu": gpu})

    @_scarce(None)
    def checkpointed(self, number: int, path: str, pictures: Mapping[str, bytes]) -> None:
        """Remember a trial's latest checkpoint, and pictures of its samples by their names."""
        self._ledger.keep_checkpoint(number, path)
        self._runs[number].tags({"gpm.checkpoint": path})
        _log.info("trial %d: checkpoint %s", number, path)
        for name, png in pictures.items():
            self._runs[number].artifact(name, png)

    @_scarce(None)
    def ended(self, number: int, failure: str | None = None, *, all_steps: bool = False) -> None:
        """Close a trial that ran all its steps, was stopped early, pauses, or failed for the given reason."""
        verdict = self._verdicts.pop(number, Verdict.GO_ON)
        # Told to MLflow first: a trial that the storage does not know to have ended is handed out again.
        if failure:
            self._close(number, "fail", failure)
            self._ledger.fail(number, failure)
        elif verdict is Verdict.PAUSE and not all_steps:
            if self.interrupted:
                self.suspended(number)
            else:
                self._ledger.pause(number)
        elif verdict is Verdict.STOP:
            self._close(number, "pruned")
            self._ledger.prune(number)
        else:
            self._close(number, "complete")
            self._ledger.complete(number)

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
        if self._verdicts.get(number) is Verdict.STOP:
            self.ended(number)
            return
        self._verdicts.pop(number, None)
        reason = self._leaving.pop(number, None)
        self._losses[number] += 1
        if self._losses[number] > PROCESS_LOSSES:
            last = f"; the last time: {reason}" if reason else ""
            self.ended(number, f"its process was lost {self._losses[number]} times{last}")
            return
        del self._runs[number]
        self._ledger.requeue(number)
        lost = reason or "its process was lost"
        self._observer.noted(number, f"{lost}; it goes on from its latest checkpoint")

    @_scarce(None)
    def suspended(self, number: int) -> None:
        """Leave a trial as it is, to be continued by a later run of the study."""
        self._close(number, "interrupted")
        self._ledger.suspend(number)

    @_scarce(None)
    def close(self) -> None:
        """Nothing more is run now: paused trials are left to the next run of the study."""
        for number in self._ledger.unfinished & self._runs.keys():
            self._close(number, "interrupted")
        self._ledger.close()

    def refuse(self, number: int, reason: str) -> None:
        """End the study, because a trial was given to a node that would train it otherwise than others."""
        self.give_up(reason)
        self.suspended(number)

    def give_up(self, reason: str) -> None:
        """End the study: there is nowhere to run its trials."""
        self.refused = reason
        self.interrupt()

    def _log_best(self, number: int) -> None:
        """Tell the trial's run of the evaluation by which it is judged; said again, it changes nothing."""
        best = self._ledger.best_of(number)
        if best and self._runs[number].best(best["step"], self._judged(best["metrics"])):
            self._log_leader()

    def _log_leader(self) -> None:
        """Tell the study's run, and who watches, of the best trial."""
        number = self._ledger.leader
        best = None if number is None else self._ledger.best_of(number)
        leader = None if number is None or best is None else (number, best["step"])
        if leader == self._leader:
            return
        self._leader = leader
        # A trial that got better and out of bounds leads no longer, and there may be no other.
        values = self._judged(best["metrics"] if best else {})
        if self._parent:
            self._parent.best(self._ledger.results, values)
            trial, step = leader or ("none", "none")
            self._parent.tags({"gpm.best_trial": str(trial), "gpm.best_step": str(step)})
        self._observer.led(values[self._ledger.study.objective.metric])

    def _judged(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """What is told of an evaluation by which trials are judged: the objectives, and its NFE."""
        names = dict.fromkeys([*(goal.metric for goal in self._ledger.study.goals), "nfe"])
        return {name: metrics.get(name, math.nan) for name in names}

    def _draw_curve(self, number: int) -> None:
        """The first objective's metric against NFE, at the evaluation by which the trial is judged."""
        study, best = self._ledger.study, self._ledger.best_of(number)
        for metric in (study.objective.metric.partition("/")[0], study.experiment.default_objective.metric):
            points = curve_of(metric, best["metrics"] if best else {})
            if points:
                self._runs[number].curve(metric, dict(points))
                return

    def _close(self, number: int, state: str, reason: str | None = None) -> None:
        self._log_best(number)
        if state in ("complete", "pruned"):
            self._draw_curve(number)
            state = state if self._ledger.is_feasible(number) else "infeasible"
        run = self._runs.pop(number)
        run.tags({"gpm.state": state} | ({"gpm.reason": reason} if reason else {}))
        run.end(STATUSES[state])
        self._observer.ended(number, state, reason)
