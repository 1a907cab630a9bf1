"""The conductor, driven event by event: ledger, tracking and observer tell the same story."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from examples import study_of

from gpm_tune.study.accounts.ledger import Assignment, Ledger
from gpm_tune.study.accounts.records import read_study
from gpm_tune.study.running.conductor import Conductor
from gpm_tune.study.tracking.spool import Event, Spool
from gpm_tune.study.tracking.tracker import Tracker

METRICS = {"sliced_wasserstein": 1.0, "nfe": 4.0, "seconds": 1.0}


class Recorder:
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def started(self, assignment: Assignment) -> None:
        self.lines.append(f"{assignment.number} started")

    def measured(self, number: int, step: int, metrics: Mapping[str, float]) -> None:
        self.lines.append(f"{number} at {step}: {metrics['sliced_wasserstein']}")

    def noted(self, number: int, note: str) -> None:
        self.lines.append(f"{number} note: {note}")

    def ended(self, number: int, state: str, reason: str | None) -> None:
        self.lines.append(f"{number} {state} {reason or ''}".rstrip())


class Scene:
    """A conductor with a real ledger and a real tracker, which delivers nothing."""

    def __init__(self, folder: Path) -> None:
        self.storage = f"sqlite:///{folder / 'optuna.db'}"
        self.spools = folder / "spool"
        scheduler = {"name": "asha", "grace_steps": 4, "reduction_factor": 2}
        self.ledger = Ledger(study_of(scheduler=scheduler), self.storage)
        self.observer = Recorder()
        tracker = Tracker(self.spools, "sqlite:///unused", "small")
        self.conductor = Conductor(self.ledger, tracker, self.observer)

    def start(self) -> int:
        assignment = self.conductor.assign()
        assert assignment is not None
        return assignment.number

    def states(self) -> list[str]:
        return [trial.state for trial in read_study(self.storage, "small").trials]

    def events(self, number: int) -> list[Event]:
        key = f"{self.ledger.id}/{number:04d}"
        return Spool(Spool.folder_of(self.spools, key)).pending(10_000)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_trial_that_runs_its_steps_is_complete_everywhere(scene: Scene) -> None:
    number = scene.start()
    assert scene.conductor.measured(number, 4, METRICS) is False
    scene.conductor.checkpointed(number, "a/checkpoint", {"samples/step_4.png": b"png"})
    scene.conductor.ended(number)
    assert scene.states() == ["complete"]
    opened, *between, last = scene.events(number)
    assert opened.payload["parent"] == scene.ledger.id
    assert opened.payload["params"]["model.eta"] == "5.0"
    assert opened.payload["tags"]["gpm.trial"] == "0"
    assert [event.kind for event in between] == ["artifact", "metrics", "tags", "artifact", "tags"]
    assert between[1].payload == {"step": 4, "values": METRICS}
    assert between[-1].payload["tags"] == {"gpm.state": "complete"}
    assert last.payload["status"] == "FINISHED"
    assert scene.observer.lines == ["0 started", "0 at 4: 1.0", "0 complete"]
    assert read_study(scene.storage, "small").trials[0].checkpoint == "a/checkpoint"


def test_a_trial_that_is_stopped_early_is_pruned_and_never_complete(scene: Scene) -> None:
    good, bad = scene.start(), scene.start()
    assert scene.conductor.measured(good, 4, METRICS) is False
    assert scene.conductor.measured(bad, 4, {**METRICS, "sliced_wasserstein": 9.0}) is True
    scene.conductor.ended(bad)
    assert scene.states() == ["running", "pruned"]
    assert scene.events(bad)[-1].payload["status"] == "FINISHED"


def test_a_failure_keeps_its_reason_everywhere(scene: Scene) -> None:
    number = scene.start()
    scene.conductor.ended(number, "loss was nan")
    assert read_study(scene.storage, "small").trials[0].reason == "loss was nan"
    *_, tags, end = scene.events(number)
    assert tags.payload["tags"] == {"gpm.state": "fail", "gpm.reason": "loss was nan"}
    assert end.payload["status"] == "FAILED"
    assert scene.observer.lines[-1] == "0 fail loss was nan"


def test_an_evaluation_measured_again_is_told_to_nobody(scene: Scene) -> None:
    number = scene.start()
    scene.conductor.measured(number, 4, METRICS)
    before = len(scene.events(number)), list(scene.observer.lines)
    assert scene.conductor.measured(number, 4, {**METRICS, "sliced_wasserstein": 0.0}) is False
    assert (len(scene.events(number)), scene.observer.lines) == before


def test_a_trial_that_lost_its_process_is_handed_out_again_first(scene: Scene) -> None:
    number, _ = scene.start(), scene.start()
    scene.conductor.measured(number, 4, METRICS)
    scene.conductor.checkpointed(number, "a/checkpoint", {})
    scene.conductor.lost(number)
    assert scene.states() == ["running", "running"]
    again = scene.conductor.assign()
    assert again is not None
    assert (again.number, again.checkpoint, again.steps_done) == (number, "a/checkpoint", 4)
    assert scene.conductor.measured(number, 4, METRICS) is False, "measured before"
    scene.conductor.measured(number, 8, METRICS)
    scene.conductor.ended(number)
    assert scene.states() == ["complete", "running"]
    kinds = [event.kind for event in scene.events(number)]
    assert kinds == ["open", "artifact", "metrics", "tags", "open", "artifact", "metrics", "tags", "end"]


def test_a_note_is_told_once(scene: Scene) -> None:
    number = scene.start()
    for _ in range(3):
        scene.conductor.noted(number, "continued from the one before")
    assert scene.observer.lines == ["0 started", "0 note: continued from the one before"]
    assert [event.kind for event in scene.events(number)] == ["open", "artifact", "tags"]
    assert scene.events(number)[-1].payload["tags"] == {"gpm.note": "continued from the one before"}


def test_an_interrupted_study_starts_nothing_and_leaves_its_trials_to_be_continued(scene: Scene) -> None:
    number = scene.start()
    scene.conductor.interrupted = True
    assert scene.conductor.assign() is None
    scene.conductor.suspended(number)
    assert scene.states() == ["interrupted"]
    assert scene.events(number)[-1].payload["status"] == "KILLED"
    continued = Scene.__new__(Scene)
    continued.ledger = Ledger(scene.ledger.study, scene.storage)
    assignment = continued.ledger.next()
    assert assignment is not None
    assert assignment.number == number
    assert scene.states() == ["running"]
