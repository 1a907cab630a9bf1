"""Running a study: everything is checked first, then Ray Tune runs what the controller assigns."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from rich.console import Console

from gpm_tune import locations
from gpm_tune.documents import as_yaml
from gpm_tune.errors import ScarcityError, UserError, first_line
from gpm_tune.interrupts import interruptible
from gpm_tune.lease import LeaseLostError
from gpm_tune.patience import Patience
from gpm_tune.study.accounts.confirmation import ConfirmationManager
from gpm_tune.study.accounts.population import trial_manager
from gpm_tune.study.accounts.records import read_study, run_user, study_names
from gpm_tune.study.accounts.runs import find_start_points, find_teacher
from gpm_tune.study.accounts.trial_manager import TrialManager
from gpm_tune.study.cluster.capacity import Capacity, this_machine
from gpm_tune.study.cluster.connection import connected, refuse_beside_other_use
from gpm_tune.study.cluster.fetching import present, take_over
from gpm_tune.study.cluster.nodes import NodeReport, check_same, drain, look, look_everywhere
from gpm_tune.study.definition.specification import CONFIRMATION, Resources, StudyConfig
from gpm_tune.study.running.controller import StudyController
from gpm_tune.study.running.messages import Terms
from gpm_tune.study.running.progress import StudyProgress
from gpm_tune.study.running.publishing import StudyViews
from gpm_tune.study.storage.home import Home
from gpm_tune.study.storage.inputs import prepare, share_inputs
from gpm_tune.study.storage.locks import hold_study
from gpm_tune.study.storage.mirror import Mirror
from gpm_tune.study.tracking.provenance import environment_tags, requirements
from gpm_tune.study.tracking.sender import check_store
from gpm_tune.training.run import Runs

JOIN_SECONDS = 900.0  # for the first node of a cluster, whose set-up may install everything
JOIN_LOOK_SECONDS = 2.0
DRAIN_SECONDS = 60.0  # that other trials may go on where some could not

_log = logging.getLogger("gpm_tune")


def run_study(study: StudyConfig, home: Home, address: str, console: Console) -> bool:
    """Run a study, or continue it, until a part of its budget is used up. Returns False if interrupted.

    Raises UserError where something is missing that the trials need, or the study is running.
    """
    _log.info("home %s, MLflow %s, storage %s", home.root, home.tracking_uri, home.storage)
    home.check()
    refuse_beside_other_use()
    home.check_tracking()
    if address != "local":
        with connected(address):  # what keeps it from being used is said before the study is begun
            pass
    study = study.model_copy(update={"experiment": find_teacher(study.experiment, home)})
    study = find_start_points(study, home)
    prepare(study.experiment, home)
    if home.storage and address != "local":
        share_inputs(study.experiment, home.storage)
    if address == "local":
        this_machine().check(study.resources, "this machine")
    folder, runs = home.study(study.name), _open_runs(study.name, home)
    with hold_study(study.name, home) as check:
        take_over(study.name, home)
        if study.name not in study_names(home.optuna_uri):
            check_store(home.tracking_uri)
        home.stop_file(study.name).unlink(missing_ok=True)  # it was meant for an earlier run
        patience = Patience()
        manager = trial_manager(study, home.optuna_uri, runs, patience)
        for file, text in (
            (folder / "study.yaml", as_yaml(study.model_dump(mode="json"))),
            (folder / "requirements.txt", requirements()),
        ):
            patience.use(partial(locations.write, str(file), text.encode()), file)
        environment = environment_tags()
        manager.keep_environment(environment)
        views = StudyViews(home, study.name, is_running=True)
        with (
            interruptible() as interrupted,
            Mirror(home, study.name, check),
            views.publisher() as publisher,
        ):
            publisher.touch(*views.keys())  # what an earlier run could not deliver

            def touch(key: str) -> None:
                views.forget()
                publisher.touch(key)

            waiting = patience, interrupted
            try:
                finished = _run_stage(manager, home, address, touch, console, check, *waiting)
                if finished and study.confirm and interrupted():
                    finished = False
                elif finished and study.confirm:
                    best = read_study(home.optuna_uri, study.name).ranked()[: study.confirm.trials]
                    stage = ConfirmationManager(study, home.optuna_uri, best, patience)
                    stage.keep_environment(environment)
                    finished = _run_stage(stage, home, address, touch, console, check, *waiting)
            finally:
                views.is_running = False
                views.forget()
                publisher.touch(*views.keys())
        check()
    return finished


def _open_runs(name: str, home: Home) -> Runs:
    """Training runs, whose folder is not made anew where it has those of the study: its disk may be away."""
    record = present(name, home)
    if record and any(trial.run for trial in record.trials):
        try:
            home.runs.check()
        except OSError as error:
            raise UserError(
                f"study '{name}': {error}; it had the study's training runs, and its disk may be away\n"
                f"help: bring the disk back; or, to train anew: mkdir -p {quote(home.runs.location)}"
            ) from None
    return home.open_runs()


def _is_lost(check: Callable[[], object]) -> bool:
    try:
        check()
    except LeaseLostError:
        return True
    return False


def _run_stage(
    manager: TrialManager,
    home: Home,
    address: str,
    touch: Callable[[str], object],
    console: Console,
    check: Callable[[], object],
    patience: Patience,
    is_interrupted: Callable[[], bool],
) -> bool:
    """Run the trials that a trial manager hands out. Returns False if interrupted.

    check: raises LeaseLostError where the study is another process's by now.
    """
    study = manager.study
    stop_file = home.stop_file(study.name.removesuffix(CONFIRMATION))
    if not manager.remaining:
        console.print(f"all trials of {study.name} are done; --trials N adds some", highlight=False)
    with StudyProgress(study, manager.remaining, console) as progress:
        controller = StudyController(manager, touch, progress)
        controller.is_asked_to_stop = lambda: stop_file.exists() or _is_lost(check)
        patience.is_over = lambda: is_interrupted() or controller.interrupted or stop_file.exists()
        if manager.remaining:
            controller.poll()
        if manager.remaining and not controller.used_up:
            try:
                _run_trials(study, home, address, controller, console)
            finally:
                controller.close()
            if controller.scarcity:
                raise ScarcityError(f"the study was interrupted: {first_line(controller.scarcity)}")
            if controller.refused:
                raise UserError(f"the study was interrupted: {controller.refused}")
    if controller.used_up:
        console.print(
            f"study {study.name} is stopped by its budget: {controller.used_up}; {manager.remaining} of "
            f"{study.budget.trials} trials are left, {manager.spending.hours:.2f} hours and "
            f"{manager.spending.gpu_hours:.2f} GPU-hours were spent",
            highlight=False,
        )
    return not (controller.interrupted and manager.remaining) or controller.used_up is not None


def _run_trials(
    study: StudyConfig, home: Home, address: str, controller: StudyController, console: Console
) -> None:
    # Around Ray, whose start would have its own handlers, and whose end must not be left halfway.
    with interruptible(controller.interrupt), connected(address) as capacity:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from gpm_tune.study.running.ray_adapters import build_tuner
        from gpm_tune.study.running.trainable import StopSignal

        if capacity().is_empty:
            _wait_for_node(study.resources, capacity, console, lambda: controller.interrupted)
        if controller.interrupted:
            return
        capacity().check(study.resources, "the Ray cluster")
        if warning := capacity().unlike_gpus(study):
            _log.warning(warning)
        own = None if address == "local" else _check_nodes(study, home)
        # On the driver's own node: elsewhere it would vanish with its node, and all trials would fail.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        stop_signal = StopSignal.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
        controller.on_stop = stop_signal.turn_on.remote
        if controller.interrupted:  # before there was a switch
            return
        controller.price = lambda: capacity().price
        controller.hear = lambda: ray.get(stop_signal.heard.remote())

        def exclude(node: str, reason: str) -> None:
            """Give a sick node no more trials."""
            others = [other for other in capacity().nodes_for(study.resources) if other.id != node]
            if not others:
                controller.give_up(f"no node can train. The last one was {reason}")
            elif address != "local":
                console.print(f"{reason}; it gets no more trials", highlight=False, soft_wrap=True)
                drain(node, reason, DRAIN_SECONDS)

        controller.on_sick = exclude
        terms = Terms(
            study=study.name,
            user=run_user(controller.study_id),
            base=study.experiment,
            data_fingerprint=controller.data_fingerprint,
            objective=study.objective,
            runs=home.runs,
            storage=home.storage,
            threads=study.resources.cpu,
            device="cuda" if study.resources.gpu else "cpu",
            time_limit=study.resources.time_limit,
            hangs=home.cache / "hangs" / study.name / f"{time.time_ns()}",
            expected=own,
        )
        with tempfile.TemporaryDirectory() as scratch:
            _fit(build_tuner(study, terms, controller, stop_signal, capacity, Path(scratch)), controller)


def _fit(tuner: Any, controller: StudyController) -> None:
    """Run the trials. On a full disk Tune fails at what it keeps of them, which is not used."""
    try:
        tuner.fit()
    except Exception:
        if controller.scarcity is None:
            raise


def _wait_for_node(
    wanted: Resources, capacity: Callable[[], Capacity], console: Console, is_stopped: Callable[[], bool]
) -> None:
    """Wait for the first node of a cluster that has none for trials, and does not say what it may start."""
    import ray

    console.print("the cluster has no node for trials yet; waiting for one", highlight=False)
    # Something that waits for a place: to an autoscaler that cannot be asked it says what is wanted.
    knock = ray.remote(lambda: None).options(**wanted.for_task).remote()
    end = time.monotonic() + JOIN_SECONDS
    while capacity().is_empty and time.monotonic() < end and not is_stopped():
        time.sleep(JOIN_LOOK_SECONDS)
    ray.cancel(knock)


def _check_nodes(study: StudyConfig, home: Home) -> NodeReport:
    """What this machine has, of software and data. Raises UserError where a node has something else."""
    own = look("this process", study.base, storage=home.storage)
    check_same(own, look_everywhere(study.base, storage=home.storage))
    return own
