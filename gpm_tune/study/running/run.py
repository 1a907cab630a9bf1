"""Running a study: everything is checked first, then Ray Tune runs what the conductor assigns."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console

from gpm_tune import locations
from gpm_tune.documents import as_yaml
from gpm_tune.errors import ScarcityError, UserError, first_line
from gpm_tune.interrupts import interruptible
from gpm_tune.patience import Patience
from gpm_tune.study.accounts.confirmation import ConfirmationLedger
from gpm_tune.study.accounts.ledger import Ledger
from gpm_tune.study.accounts.records import read_study, study_names
from gpm_tune.study.accounts.runs import find_start_points, find_teacher
from gpm_tune.study.cluster.capacity import Capacity, this_machine
from gpm_tune.study.cluster.connection import connected, refuse_beside_other_use
from gpm_tune.study.cluster.fetching import take_over
from gpm_tune.study.cluster.nodes import NodeReport, check_same, drain, look, look_everywhere
from gpm_tune.study.definition.specification import CONFIRMATION, Resources, Study
from gpm_tune.study.running.conductor import STATUSES, Conductor
from gpm_tune.study.running.progress import StudyProgress
from gpm_tune.study.storage.home import Home
from gpm_tune.study.storage.inputs import prepare, share_inputs
from gpm_tune.study.storage.locks import only_once
from gpm_tune.study.storage.mirror import Mirror
from gpm_tune.study.tracking.provenance import environment_tags, requirements, run_tags
from gpm_tune.study.tracking.sender import check_store
from gpm_tune.study.tracking.tracker import RunLog, Tracker

JOIN_SECONDS = 900.0  # for the first node of a cluster, whose set-up may install everything
JOIN_LOOK_SECONDS = 2.0
DRAIN_SECONDS = 60.0  # that other trials may go on where some could not

_log = logging.getLogger("gpm_tune")


def run_study(study: Study, home: Home, address: str, console: Console) -> bool:
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
    take_over(study.name, home)
    if study.name not in study_names(home.optuna_uri):
        check_store(home.tracking_uri)
    study = study.model_copy(update={"experiment": find_teacher(study.experiment, home)})
    study = find_start_points(study, home)
    prepare(study.experiment, home)
    if home.storage and address != "local":
        share_inputs(study.experiment, home.storage)
    if address == "local":
        this_machine().check(study.resources, "this machine")
    folder = home.study(study.name)
    with only_once(f"study '{study.name}'", folder):
        home.stop_file(study.name).unlink(missing_ok=True)  # it was meant for an earlier run
        patience, file = Patience(), folder / "study.yaml"
        ledger = Ledger(study, home.optuna_uri, home.checkpoints(study.name), patience)
        text = as_yaml(study.model_dump(mode="json")).encode()
        patience.use(lambda: locations.write(str(file), text), file)
        with (
            interruptible() as interrupted,
            Mirror(home, study.name),
            Tracker(folder / "spool", home.tracking_uri, study.name, home.artifact_root, patience) as tracker,
        ):
            waiting = patience, interrupted
            finished = _run_stage(ledger, home, address, tracker, console, *waiting)
            if finished and study.confirm and interrupted():
                finished = False
            elif finished and study.confirm:
                best = read_study(home.optuna_uri, study.name).ranked()[: study.confirm.trials]
                stage = ConfirmationLedger(study, home.optuna_uri, best, patience)
                finished = _run_stage(stage, home, address, tracker, console, *waiting)
    return finished


def _run_stage(
    ledger: Ledger,
    home: Home,
    address: str,
    tracker: Tracker,
    console: Console,
    patience: Patience,
    is_interrupted: Callable[[], bool],
) -> bool:
    """Run the trials that a ledger hands out. Returns False if interrupted."""
    study = ledger.study
    stop_file = home.stop_file(study.name.removesuffix(CONFIRMATION))
    if not ledger.remaining:
        console.print(f"all trials of {study.name} are done; --trials N adds some", highlight=False)
    with StudyProgress(study, ledger.remaining, console) as progress:
        conductor = Conductor(ledger, tracker, progress)
        conductor.is_asked_to_stop = stop_file.exists
        patience.is_over = lambda: is_interrupted() or conductor.interrupted or stop_file.exists()
        if ledger.remaining:
            conductor.look_around()
        if ledger.remaining and not conductor.used_up:
            parent = _open_parent(ledger, home, tracker)
            conductor.report_to(parent)
            ending = "FAILED"
            try:
                _run_trials(study, home, address, conductor, console)
                ending = "KILLED" if conductor.interrupted and not conductor.used_up else "FINISHED"
            finally:
                conductor.close()
                parent.end(ending)
            if conductor.scarcity:
                raise ScarcityError(f"the study was interrupted: {first_line(conductor.scarcity)}")
            if conductor.refused:
                raise UserError(f"the study was interrupted: {conductor.refused}")
            _register_best(ledger, home, tracker, is_interrupted)
    if conductor.used_up:
        console.print(
            f"study {study.name} is stopped by its budget: {conductor.used_up}; {ledger.remaining} of "
            f"{study.budget.trials} trials are left, {ledger.meter.hours:.2f} hours and "
            f"{ledger.meter.gpu_hours:.2f} GPU-hours were spent",
            highlight=False,
        )
    return not (conductor.interrupted and ledger.remaining) or conductor.used_up is not None


def _open_parent(ledger: Ledger, home: Home, tracker: Tracker) -> RunLog:
    """The run of a study, with all that its results depend on."""
    study = ledger.study
    tags = run_tags(study.experiment, ledger.data_fingerprint) | environment_tags()
    tags["gpm.study"] = study.name
    parent = tracker.open_run(ledger.id, name=study.name, tags=tags)
    file = home.study(study.name.removesuffix(CONFIRMATION)) / "study.yaml"
    parent.artifact("study.yaml", file.read_bytes())
    parent.artifact("requirements.txt", requirements().encode())
    return parent


def _register_best(ledger: Ledger, home: Home, tracker: Tracker, is_interrupted: Callable[[], bool]) -> None:
    """Upload the best checkpoint of a search, and register it as a model of the study's name."""
    study = ledger.study
    best = next(iter(read_study(home.optuna_uri, study.name).ranked()), None)
    if best is None or best.checkpoint is None or study.name.endswith(CONFIRMATION):
        return
    checkpoint = best.checkpoint
    try:
        folder = locations.patiently(lambda: locations.local(checkpoint, home.cache), is_over=is_interrupted)
    except OSError as error:
        _log.warning("the best checkpoint is not registered in MLflow: %s", error)
        return
    if not folder.is_dir():
        return
    run = tracker.open_run(ledger.run_key(best.number), name=f"trial {best.number}", parent=ledger.id)
    for file in sorted(folder.glob("[!.]*.*")):
        run.artifact(f"checkpoint/{file.name}", file.read_bytes())
    tags = {
        "trial": str(best.number),
        "step": str(best.best_step),
        "metric": study.objective.metric,
        "value": str(best.value),
    }
    run.register(study.name, tags)
    run.end(STATUSES.get(best.state, "KILLED"))


def _run_trials(study: Study, home: Home, address: str, conductor: Conductor, console: Console) -> None:
    # Around Ray, whose start would have its own handlers, and whose end must not be left halfway.
    with interruptible(conductor.interrupt), connected(address) as capacity:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from gpm_tune.study.running.ray_adapters import build_tuner
        from gpm_tune.study.running.teaching import teach
        from gpm_tune.study.running.trainable import Switch

        if capacity().is_empty:
            _wait_for_node(study.resources, capacity, console, lambda: conductor.interrupted)
        if conductor.interrupted:
            return
        capacity().check(study.resources, "the Ray cluster")
        if warning := capacity().unlike_gpus(study):
            _log.warning(warning)
        own = None if address == "local" else _check_nodes(study, home)
        # On the driver's own node: elsewhere it would vanish with its node, and all trials would fail.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        switch = Switch.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
        conductor.on_stop = switch.turn_on.remote
        if conductor.interrupted:  # before there was a switch
            return
        conductor.price = lambda: capacity().price
        conductor.hear = lambda: ray.get(switch.heard.remote())

        def exclude(node: str, reason: str) -> None:
            """Give a sick node no more trials."""
            others = [other for other in capacity().nodes_for(study.resources) if other.id != node]
            if not others:
                conductor.give_up(f"no node can train. The last one was {reason}")
            elif address != "local":
                console.print(f"{reason}; it gets no more trials", highlight=False, soft_wrap=True)
                drain(node, reason, DRAIN_SECONDS)

        conductor.on_sick = exclude
        if teach(study, home, switch, console):
            _fit(build_tuner(study, home, conductor, switch, capacity, own), conductor)


def _fit(tuner: Any, conductor: Conductor) -> None:
    """Run the trials. On a full disk Tune fails at what it keeps of them, which is not used."""
    try:
        tuner.fit()
    except Exception:
        if conductor.scarcity is None:
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


def _check_nodes(study: Study, home: Home) -> NodeReport:
    """What this machine has, of software and data. Raises UserError where a node has something else."""
    own = look("this process", study.base, storage=home.storage)
    check_same(own, look_everywhere(study.base, storage=home.storage))
    return own
