"""Running a study: everything is checked first, then Ray Tune runs what the conductor assigns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from gpm_tune.errors import UserError
from gpm_tune.metrics import check_features
from gpm_tune.study import space
from gpm_tune.study.cluster import check_resources, connected, this_machine
from gpm_tune.study.conductor import Conductor, run_tags
from gpm_tune.study.confirmation import ConfirmationLedger
from gpm_tune.study.guards import interruptible, only_once
from gpm_tune.study.home import Home
from gpm_tune.study.ledger import Ledger
from gpm_tune.study.progress import StudyProgress
from gpm_tune.study.provenance import data_fingerprint, environment_tags, requirements
from gpm_tune.study.records import read_study
from gpm_tune.study.runs import checkpoint_of, find_teacher
from gpm_tune.study.specification import CONFIRMATION, Study
from gpm_tune.study.tracking import RunLog, Tracker
from gpm_tune.training import Experiment
from gpm_tune.training.saved import read_experiment
from gpm_tune.training.teacher import teacher_checkpoint


def prepare(experiment: Experiment, home: Home) -> None:
    """Make sure that data, feature network and teacher can be had.

    Raises UserError where they cannot, before any work has started.
    """
    experiment.data.prepare()
    if experiment.features:
        check_features(experiment.features, experiment.evaluation.inception_weights)
    if experiment.teacher is not None:
        prepare(experiment.teacher, home)
    else:
        teacher_checkpoint(experiment, home.cache)


def run_study(study: Study, home: Home, address: str, console: Console) -> bool:
    """Run a study, or continue it, until a part of its budget is used up. Returns False if interrupted.

    Raises UserError where something is missing that the trials need, or the study is running.
    """
    study = _find_start_points(study.with_experiment(find_teacher(study.experiment, home)), home)
    prepare(study.experiment, home)
    if address == "local":
        check_resources(study.resources, this_machine(), "this machine")
    folder = home.study(study.name)
    with only_once(f"study '{study.name}'", folder):
        home.stop_file(study.name).unlink(missing_ok=True)  # it was meant for an earlier run
        ledger = Ledger(study, home.optuna_uri, folder)
        (folder / "study.yaml").write_text(
            yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        )
        with Tracker(folder / "spool", home.tracking_uri, study.name, home.artifact_root) as tracker:
            finished = _run_stage(ledger, home, address, tracker, console)
            if finished and study.confirm:
                best = read_study(home.optuna_uri, study.name).ranked()[: study.confirm.trials]
                stage = ConfirmationLedger(study, home.optuna_uri, best)
                finished = _run_stage(stage, home, address, tracker, console)
    return finished


def _find_start_points(study: Study, home: Home) -> Study:
    """The study with start points that were given by MLflow runs given by their values instead.

    Raises UserError where a run has no checkpoint, or its values lie outside the search space.
    """
    starts: list[str | dict[str, Any]] = []
    for start in study.start_from:
        if isinstance(start, str) and start != "base":
            tree = read_experiment(checkpoint_of(start, home)).model_dump(mode="json")
            try:
                space.parameters(tree, study.base, study.search)
            except ValueError as error:
                raise UserError(f"start_from: run {start}: its {error}") from None
            starts.append(space.found(tree, study.search))
        else:
            starts.append(start)
    return study.model_copy(update={"start_from": starts})


def _run_stage(ledger: Ledger, home: Home, address: str, tracker: Tracker, console: Console) -> bool:
    """Run the trials that a ledger hands out. Returns False if interrupted."""
    study = ledger.study
    stop_file = home.stop_file(study.name.removesuffix(CONFIRMATION))
    with StudyProgress(study, ledger.remaining, console) as progress:
        conductor = Conductor(ledger, tracker, progress)
        conductor.is_asked_to_stop = stop_file.exists
        if ledger.remaining:
            conductor.look_around()
        if ledger.remaining and not conductor.used_up:
            parent = _open_parent(ledger, home, tracker)
            try:
                _run_trials(study, home, address, conductor, console)
            finally:
                ledger.close()
            _register_best(ledger, home, tracker)
            parent.end("KILLED" if conductor.interrupted and not conductor.used_up else "FINISHED")
    if conductor.used_up:
        console.print(
            f"study {study.name} is stopped by its budget: {conductor.used_up}; {ledger.remaining} of "
            f"{study.budget.trials} trials are left, {ledger.meter.hours:.2f} hours and "
            f"{ledger.meter.gpu_hours:.2f} GPU-hours were spent",
            highlight=False,
        )
    return not conductor.interrupted or conductor.used_up is not None


def _open_parent(ledger: Ledger, home: Home, tracker: Tracker) -> RunLog:
    """The run of a study, with all that its results depend on."""
    study = ledger.study
    tags = run_tags(study.experiment) | environment_tags() | {"gpm.study": study.name}
    tags["gpm.data_fingerprint"] = data_fingerprint(study.experiment)
    parent = tracker.open_run(ledger.id, name=study.name, params={}, tags=tags)
    file = home.study(study.name.removesuffix(CONFIRMATION)) / "study.yaml"
    parent.artifact("study.yaml", file.read_bytes())
    parent.artifact("requirements.txt", requirements().encode())
    return parent


def _register_best(ledger: Ledger, home: Home, tracker: Tracker) -> None:
    """Upload the best checkpoint of a search, and register it as a model of the study's name."""
    study = ledger.study
    best = next(iter(read_study(home.optuna_uri, study.name).ranked()), None)
    if best is None or best.checkpoint is None or study.name.endswith(CONFIRMATION):
        return
    folder = Path(best.checkpoint)
    if not folder.is_dir():
        return
    name = f"trial {best.number}"
    run = tracker.open_run(ledger.run_key(best.number), name=name, parent=ledger.id, params={}, tags={})
    for file in sorted(folder.glob("[!.]*.*")):
        run.artifact(f"checkpoint/{file.name}", file.read_bytes())
    tags = {
        "trial": str(best.number),
        "step": str(best.best_step),
        "metric": study.objective.metric,
        "value": str(best.value),
    }
    run.register(study.name, tags)
    run.end("FINISHED" if best.state in ("complete", "pruned") else "KILLED")


def _run_trials(study: Study, home: Home, address: str, conductor: Conductor, console: Console) -> None:
    with connected(address) as totals:
        check_resources(study.resources, totals, "the Ray cluster")
        from gpm_tune.study.teaching import teach
        from gpm_tune.study.trainable import Switch

        switch = Switch.remote()  # type: ignore[attr-defined]

        conductor.on_stop = switch.turn_on.remote
        with interruptible(conductor.interrupt):
            if teach(study, home, switch, console):
                _build_tuner(study, home, conductor, switch).fit()


def _build_tuner(study: Study, home: Home, conductor: Conductor, switch: Any) -> Any:
    from ray import tune

    from gpm_tune.study.ray_adapters import (
        CheckpointCallback,
        ConductedScheduler,
        ConductedSearcher,
    )
    from gpm_tune.study.trainable import TrialTrainable
    from gpm_tune.study.trial_checkpoints import trial_folder

    resources = study.resources
    trainable = tune.with_resources(
        tune.with_parameters(TrialTrainable, switch=switch),
        resources.for_ray,
    )
    shared = {
        "objective": study.objective.model_dump(),
        "wanted": study.wanted,
        "cache": str(home.cache),
        "threads": resources.cpu,
        "device": "cuda" if resources.gpu else "cpu",
        "time_limit": resources.time_limit,
    }
    sessions = home.study(study.name) / "checkpoints"
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=ConductedSearcher(conductor, resources.concurrent, shared),
            scheduler=ConductedScheduler(conductor),
            num_samples=-1,  # the searcher says when to end
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial_folder(trial.config["number"], trial.config["attempt"]),
        ),
        run_config=tune.RunConfig(
            # A session of its own: a continued trial's new checkpoints never meet its old ones.
            name=f"session_{len(list(sessions.glob('session_*'))):03d}",
            storage_path=str(sessions),
            failure_config=tune.FailureConfig(max_failures=0),  # the searcher starts them again
            # Trials say when to checkpoint: one that failed has nothing to keep. Old ones are ours to
            # delete: for `num_to_keep` Tune would write the state of all trials every other checkpoint.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[CheckpointCallback(conductor)],
            verbose=0,
        ),
    )
