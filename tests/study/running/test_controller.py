"""The controller, driven event by event: trial manager, tracking and observer tell the same story."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from examples import KERNEL_FLOW, measured, study_of
from managers import PBT, keep_checkpoint

from gpm_tune.study.accounts.population import trial_manager
from gpm_tune.study.accounts.records import read_study
from gpm_tune.study.accounts.trial_manager import TrialManager, TrialSpec
from gpm_tune.study.running.controller import PROCESS_LOSSES, StudyController, Word
from gpm_tune.study.running.publishing import StudyViews
from gpm_tune.study.storage.home import Home
from gpm_tune.study.tracking.views import BY_NFE, View
from gpm_tune.training.objectives import Measured
from gpm_tune.training.trainer import Evaluation


class Recorder:
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def started(self, spec: TrialSpec) -> None:
        self.lines.append(f"{spec.number} started")

    def measured(self, number: int, step: int, found: Measured) -> None:
        self.lines.append(f"{number} at {step}: {found.metrics['sliced_wasserstein']}")

    def led(self, value: float) -> None:
        self.lines.append(f"best {value}")

    def noted(self, number: int, note: str) -> None:
        self.lines.append(f"{number} note: {note}")

    def ended(self, number: int, state: str, reason: str | None) -> None:
        self.lines.append(f"{number} {state} {reason or ''}".rstrip())


class Scene:
    """A controller with a real trial manager, training runs, and what MLflow is to show of them."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.home = Home(folder)
        self.storage = self.home.optuna_uri
        scheduler = {"name": "asha", "grace_steps": 4, "reduction_factor": 2}
        study = study_of(**{"scheduler": scheduler, **changes})
        self.runs = self.home.open_runs()
        self.manager = trial_manager(study, self.storage, self.runs)
        self.observer = Recorder()
        self.touched: list[str] = []
        self.controller = StudyController(self.manager, self.touched.append, self.observer)
        self.trials: dict[int, TrialSpec] = {}

    def start(self) -> int:
        spec = self.controller.assign()
        assert spec is not None
        self.trials[spec.number] = spec
        return spec.number

    def states(self) -> list[str]:
        return [trial.state for trial in read_study(self.storage, "small").trials]

    def view(self, number: int | None) -> View:
        """What MLflow is to show of a trial, or, for None, of the study."""
        key = self.manager.id if number is None else self.manager.run_key(number)
        view = StudyViews(self.home, "small", is_running=True)(key)
        assert view is not None
        return view

    def bests(self, number: int | None) -> list[tuple[int, float]]:
        """Steps and values of the best evaluations that are shown."""
        points = self.view(number).points
        return [(point.step, point.value) for point in points if point.name == "best/sliced_wasserstein"]

    def tags(self, number: int | None) -> Mapping[str, str]:
        return self.view(number).tags

    def tell(self, number: int, step: int, found: Measured) -> bool:
        """An evaluation, written to the trial's run before it is heard of. Returns whether it stops there."""
        spec = self.trials[number]
        run = self.runs.named(spec.run or f"{spec.number}-{spec.experiment.run_name}")
        judge = spec.experiment.judge(self.manager.study.objective)
        run.keep_evaluation(Evaluation(step, found, b"png"), judge, "cpu", "user")
        keep_checkpoint(run, step)
        self.controller.trains(number, run.name)
        return self.controller.measured(number, step, found)

    def measure(self, number: int, *values: float, **more: float) -> None:
        """Evaluations every 4 steps."""
        for index, value in enumerate(values, start=1):
            self.tell(number, 4 * index, measured(value, **more))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_trial_that_runs_its_steps_is_complete_everywhere(scene: Scene) -> None:
    number = scene.start()
    assert scene.tell(number, 4, measured()) is False
    scene.controller.ended(number)
    assert scene.states() == ["complete"]
    view = scene.view(number)
    assert view.parent == scene.manager.id
    assert view.params["model"]["eta"] == 5.0
    assert (view.status, view.tags["gpm.state"], view.tags["gpm.trial"]) == ("FINISHED", "complete", "0")
    named = {"sliced_wasserstein": 1.0, "sliced_wasserstein/nfe_4": 1.0, "nfe": 4.0, "seconds": 1.0}
    assert {p.name: p.value for p in view.points if not p.name.endswith(BY_NFE)}.items() >= named.items()
    assert view.files["samples/step_0000004.png"]() == b"png"
    assert scene.observer.lines == ["0 started", "0 at 4: 1.0", "best 1.0", "0 complete"]
    assert read_study(scene.storage, "small").trials[0].run == view.tags["gpm.training_run"]
    key = scene.manager.run_key(number)
    assert scene.touched == [key, key, key, scene.manager.id], "as it starts, is measured, and ends"


def test_a_trial_that_is_stopped_early_is_pruned_and_never_complete(scene: Scene) -> None:
    good, bad = scene.start(), scene.start()
    assert scene.tell(good, 4, measured()) is False
    assert scene.tell(bad, 4, measured(9.0)) is True
    scene.controller.ended(bad)
    assert scene.states() == ["running", "pruned"]
    assert scene.view(bad).status == "FINISHED"


def test_a_failure_keeps_its_reason_everywhere(scene: Scene) -> None:
    number = scene.start()
    scene.controller.ended(number, "loss was nan")
    assert read_study(scene.storage, "small").trials[0].reason == "loss was nan"
    view = scene.view(number)
    assert (view.tags["gpm.state"], view.tags["gpm.reason"]) == ("fail", "loss was nan")
    assert view.status == "FAILED"
    assert scene.observer.lines[-1] == "0 fail loss was nan"


def test_an_evaluation_measured_again_is_told_to_nobody(scene: Scene) -> None:
    number = scene.start()
    scene.controller.measured(number, 4, measured())
    before = list(scene.touched), list(scene.observer.lines)
    assert scene.controller.measured(number, 4, measured(0.0)) is False
    assert (scene.touched, scene.observer.lines) == before


def leave(scene: Scene, number: int, node: str | None, *, is_loss: bool = True) -> None:
    """A trial cannot go on on its node, which is sick if it is named; its process ends."""
    scene.controller.leaves(number, f"node {node}: no GPU", node, is_loss=is_loss)
    scene.controller.lost(number)


def test_a_trial_leaves_a_sick_node_and_costs_no_budget(scene: Scene) -> None:
    number = scene.start()
    leave(scene, number, "a")
    assert scene.states() == ["running"]
    assert scene.observer.lines[-1] == f"{number} note: node a: no GPU; it goes on from its latest checkpoint"
    assert scene.start() == number


def test_a_sick_node_is_named_once_after_a_few_trials(scene: Scene) -> None:
    told: list[tuple[str, str]] = []
    scene.controller.on_sick = lambda node, reason: told.append((node, reason))
    scene.controller.measured(scene.start(), 4, measured())
    for node in "aabababb":
        leave(scene, scene.start(), node)
    assert told == [("a", "node a: no GPU"), ("b", "node b: no GPU")]
    assert not scene.controller.interrupted


def test_a_study_ends_where_node_after_node_is_sick(scene: Scene) -> None:
    for node in "aaabbbcc":
        leave(scene, scene.start(), node)
    assert scene.controller.refused is None
    leave(scene, scene.start(), "c")
    assert scene.controller.refused == "3 nodes, and none could train. The last one was node c: no GPU"
    assert scene.controller.interrupted


def test_errors_of_machines_exclude_none_and_in_the_end_fail_the_trial(scene: Scene) -> None:
    """As the trial may be what the machines cannot do."""
    scene.controller.on_sick = lambda *_: pytest.fail("no node was found to be sick")
    number = scene.start()
    for _ in range(PROCESS_LOSSES):
        leave(scene, number, None)
        assert scene.start() == number
    leave(scene, number, None)
    assert scene.states() == ["fail"]
    reason = scene.tags(number)["gpm.reason"]
    assert reason == "its process was lost 11 times; the last time: node None: no GPU"


def test_nodes_that_vanish_with_notice_are_no_losses(scene: Scene) -> None:
    number = scene.start()
    for _ in range(PROCESS_LOSSES + 1):
        leave(scene, number, None, is_loss=False)
        assert scene.start() == number
    for _ in range(PROCESS_LOSSES):
        scene.controller.lost(number)
        assert scene.start() == number
    scene.controller.lost(number)
    assert scene.states() == ["fail"]
    assert scene.tags(number)["gpm.reason"] == "its process was lost 11 times"


def test_a_trial_that_lost_its_process_is_handed_out_again_first(scene: Scene) -> None:
    number, _ = scene.start(), scene.start()
    scene.tell(number, 4, measured())
    scene.controller.lost(number)
    assert scene.states() == ["running", "running"]
    assert scene.start() == number
    assert scene.trials[number].known_step == 4
    assert scene.tell(number, 4, measured()) is False, "measured before"
    scene.tell(number, 8, measured())
    scene.controller.ended(number)
    assert scene.states() == ["complete", "running"]
    assert scene.bests(number) == [(4, 1.0)], "the best did not change"


def test_a_note_is_told_once(scene: Scene) -> None:
    number = scene.start()
    for _ in range(3):
        scene.controller.noted(number, "continued from the one before")
    assert scene.observer.lines == ["0 started", "0 note: continued from the one before"]
    assert len(scene.touched) == 2
    assert scene.tags(number)["gpm.note"] == "continued from the one before"


def test_an_interrupted_study_starts_nothing_and_leaves_its_trials_to_be_continued(scene: Scene) -> None:
    number = scene.start()
    scene.controller.interrupted = True
    assert scene.controller.assign() is None
    scene.controller.suspended(number)
    assert scene.states() == ["interrupted"]
    assert scene.view(number).status == "KILLED"
    spec = TrialManager(scene.manager.study, scene.storage).next()
    assert spec is not None
    assert spec.number == number
    assert scene.states() == ["running"]


def test_the_best_evaluation_is_told_and_not_the_last(scene: Scene) -> None:
    first, second = scene.start(), scene.start()
    scene.measure(first, 3.0, 1.0, 2.0)
    scene.measure(second, 2.5, 1.5, 9.0)
    for number in (first, second):
        scene.controller.ended(number)
    assert scene.bests(first) == [(4, 3.0), (8, 1.0)]
    assert scene.bests(second) == [(4, 2.5), (8, 1.5)]
    assert scene.bests(None) == [(1, 1.0), (2, 1.0)], "by how many trials have ended"
    assert (scene.tags(None)["gpm.best_trial"], scene.tags(None)["gpm.best_step"]) == (str(first), "8")
    curve = [(p.step, p.value) for p in scene.view(first).points if p.name == "sliced_wasserstein_by_nfe"]
    assert curve == [(4, 1.0)]
    assert [line for line in scene.observer.lines if line.startswith("best")] == ["best 3.0", "best 1.0"]


def test_after_a_restart_the_best_so_far_is_known_and_told_once(scene: Scene, tmp_path: Path) -> None:
    number = scene.start()
    scene.measure(number, 3.0, 1.0)
    scene.manager.report(number, 12, measured(0.5))  # and then the process is killed
    again = Scene(tmp_path)
    assert again.start() == number
    assert again.observer.lines == ["0 started", "best 0.5"]
    again.start()
    assert again.observer.lines == ["0 started", "best 0.5", "1 started"]


def test_a_trial_whose_end_was_not_stored_is_handed_out_again(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = scene.start()
    scene.measure(number, 3.0, 1.0, 2.0)
    monkeypatch.setattr(scene.manager, "complete", exit)
    with pytest.raises(SystemExit):
        scene.controller.ended(number)
    again = Scene(tmp_path)
    assert again.start() == number
    again.controller.ended(number, all_steps=True)
    assert again.states() == ["complete"]
    assert again.view(number).status == "FINISHED"
    assert again.bests(number) == [(4, 3.0), (8, 1.0)]


def test_a_trial_out_of_bounds_is_told_to_be_so_and_leads_no_longer(tmp_path: Path) -> None:
    scene = Scene(tmp_path, constraints=[{"metric": "frechet", "max": 5.0}], scheduler={"name": "none"})
    first, second = scene.start(), scene.start()
    scene.measure(first, 3.0, frechet=4.0)
    scene.tell(first, 8, measured(1.0, frechet=6.0))
    assert scene.observer.lines[-2:] == ["0 at 8: 1.0", "best nan"], "there is no result any more"
    assert scene.tags(None)["gpm.best_trial"] == "none"
    assert read_study(scene.storage, "small").ranked() == [], "the terminal says the same, while it runs"
    scene.measure(second, 2.0, frechet=1.0)
    for number in (first, second):
        scene.controller.ended(number)
    assert scene.tags(first)["gpm.state"] == "infeasible" == scene.states()[first]
    assert scene.bests(first)[-1] == (8, 1.0), "as the terminal shows it"
    assert scene.bests(None)[-1] == (2, 2.0)
    assert scene.tags(None)["gpm.best_trial"] == str(second)


def test_several_objectives_are_told_at_the_same_evaluation(tmp_path: Path) -> None:
    goals = [{"metric": "sliced_wasserstein"}, {"metric": "frechet"}]
    scene = Scene(tmp_path, objectives=goals, scheduler={"name": "none"})
    number = scene.start()
    scene.tell(number, 4, measured(1.0, frechet=9.0))
    scene.tell(number, 8, measured(2.0, frechet=3.0))
    scene.controller.ended(number)
    best = [(p.step, p.name, p.value) for p in scene.view(number).points if p.name.startswith("best/")]
    values = {"best/sliced_wasserstein": 1.0, "best/frechet": 9.0, "best/nfe": 4.0}
    assert best == [(4, name, value) for name, value in values.items()]
    assert read_study(scene.storage, "small").trials[0].scores == [1.0, 9.0]


def test_a_fork_begins_with_the_best_of_its_checkpoint(tmp_path: Path) -> None:
    scene = Scene(tmp_path, **PBT)
    numbers = [scene.start() for _ in range(4)]
    for number in numbers:
        scene.measure(number, float(number))
        scene.controller.ended(number)
    others = [scene.start() for _ in range(4)]
    fork = others[-1]
    assert (others[0], fork) == (0, 4)
    record = {trial.number: trial for trial in read_study(scene.storage, "small").trials}
    assert (record[fork].value, record[fork].best_step, record[fork].step) == (0.0, 4, 4)
    assert scene.bests(fork) == [(4, 0.0)]
    assert scene.tags(3)["gpm.state"] == record[3].state == "pruned"
    assert scene.observer.lines[-2] == "3 pruned replaced by trial 4, a fork"
    scene.tell(fork, 8, measured(5.0))
    assert scene.bests(fork) == [(4, 0.0)], "what is worse does not count"
    scene.tell(fork, 12, measured(-1.0))
    assert scene.bests(fork) == [(4, 0.0), (12, -1.0)]
    assert scene.tags(None)["gpm.best_trial"] == str(fork)


def test_paused_trials_of_a_population_are_interrupted_everywhere(tmp_path: Path) -> None:
    scene = Scene(tmp_path, **PBT)
    numbers = [scene.start() for _ in range(4)]
    for number in numbers[:2]:
        scene.measure(number, float(number))
        scene.controller.ended(number)  # it waits for the others
    scene.controller.interrupt()
    for number in numbers[2:]:
        scene.controller.suspended(number)
    scene.controller.close()
    assert scene.states() == ["interrupted"] * 4
    for number in numbers:
        assert scene.tags(number)["gpm.state"] == "interrupted"
        assert scene.view(number).status == "KILLED"


def test_what_a_trial_says_as_it_pauses_is_kept(tmp_path: Path) -> None:
    scene = Scene(tmp_path, **PBT)
    number = scene.start()
    scene.measure(number, 0.0)
    scene.controller.ended(number)
    scene.controller.hear = lambda: [Word(number, "it has waited", ends_study=False)]
    scene.controller.poll()
    (trial,) = read_study(scene.storage, "small").trials
    assert trial.note == "it has waited"


def test_what_trains_nothing_is_measured_at_step_0(tmp_path: Path) -> None:
    search = {"model.eta": {"float": [1.0, 20.0]}}
    scene = Scene(tmp_path, experiment=KERNEL_FLOW, search=search, scheduler={"name": "none"})
    number = scene.start()
    for value in (1.0, 0.5):
        scene.tell(number, 0, measured(value))
    scene.controller.ended(number)
    (trial,) = read_study(scene.storage, "small").trials
    assert (trial.state, trial.value, trial.best_step) == ("complete", 1.0, 0), "the second time is a replay"
    assert scene.bests(number) == [(0, 1.0)]


def test_every_kind_of_gpu_that_trained_a_trial_is_kept(scene: Scene) -> None:
    """A trial whose node vanished goes on elsewhere."""
    number = scene.start()
    for gpu in ("NVIDIA L4", "NVIDIA L4", "NVIDIA A10G"):
        scene.controller.trained_on(number, gpu)
    assert read_study(scene.storage, "small").trials[0].gpus == ["NVIDIA L4", "NVIDIA A10G"]
    assert scene.tags(number)["gpm.gpu"] == "NVIDIA A10G"


def test_a_trial_without_room_ends_the_study_with_advice(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    number = scene.start()
    scene.controller.hear = lambda: [Word(number, "no space is left on the disk of place", True)]
    scene.controller.poll()
    assert scene.controller.interrupted
    assert str(scene.controller.scarcity).startswith("no space is left on the disk of place\nhelp: ")
