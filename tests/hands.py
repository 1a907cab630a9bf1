"""Studies run by hand: the real trial manager, training and home, without Ray."""

from __future__ import annotations

from collections.abc import Callable

from gpm_tune.documents import as_yaml
from gpm_tune.study.accounts.population import trial_manager
from gpm_tune.study.accounts.records import run_user
from gpm_tune.study.accounts.trial_manager import TrialManager, TrialSpec
from gpm_tune.study.definition.specification import StudyConfig
from gpm_tune.study.storage.home import Home
from gpm_tune.training.loop import Asker, Training


def begin(study: StudyConfig, home: Home) -> TrialManager:
    """The trial manager of a study in a home, with the files of its folder."""
    home.study(study.name).mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("study.yaml", as_yaml(study.model_dump(mode="json"))),
        ("requirements.txt", "x==1\n"),
    ):
        (home.study(study.name) / name).write_text(text)
    return trial_manager(study, home.optuna_uri, home.open_runs())


def train(
    manager: TrialManager, home: Home, spec: TrialSpec, should_stop: Callable[[], bool] = bool
) -> Training:
    """Train a trial, from where it stands, to its end or until it is to stop."""
    number, study = spec.number, manager.study
    asker = Asker(user=run_user(manager.id), name=f"trial {number}", should_stop=should_stop)
    run = home.runs.of(spec.experiment)
    training = Training(spec.experiment, run, asker, objective=study.objective)
    manager.keep_run(number, training.run.name)
    for record in training.evaluations(after=spec.known_step):
        manager.report(number, record.step, record)
    if training.is_done:
        manager.complete(number)
    else:
        manager.suspend(number)
    return training


def run_trials(study: StudyConfig, home: Home, trials: int = 100) -> TrialManager:
    """Run a number of a study's trials, or those that its budget allows."""
    manager = begin(study, home)
    for _ in range(trials):
        spec = manager.next()
        if spec is None:
            break
        train(manager, home, spec)
    manager.close()
    return manager


def run_a_part(study: StudyConfig, home: Home, evaluations: int = 1) -> TrialManager:
    """Run a study until its next trial has some evaluations, and is interrupted."""
    manager = begin(study, home)
    spec = manager.next()
    assert spec is not None

    def should_stop() -> bool:
        run = home.runs.of(spec.experiment)
        return len(run.evaluations(spec.experiment.judge(study.objective))) >= evaluations

    train(manager, home, spec, should_stop)
    return manager
