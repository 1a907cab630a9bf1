"""Studies run by hand: the real ledger, training and home, without Ray."""

from __future__ import annotations

from collections.abc import Callable

from gpm_tune.documents import as_yaml
from gpm_tune.study.accounts.ledger import Assignment, Ledger
from gpm_tune.study.accounts.records import run_user
from gpm_tune.study.definition.specification import Study
from gpm_tune.study.storage.home import Home
from gpm_tune.training.loop import Asker, Training


def begin(study: Study, home: Home) -> Ledger:
    """The ledger of a study in a home, with the files of its folder."""
    home.study(study.name).mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("study.yaml", as_yaml(study.model_dump(mode="json"))),
        ("requirements.txt", "x==1\n"),
    ):
        (home.study(study.name) / name).write_text(text)
    return Ledger(study, home.optuna_uri, home.open_runs())


def train(
    ledger: Ledger, home: Home, assignment: Assignment, should_stop: Callable[[], bool] = bool
) -> Training:
    """Train a trial, from where it stands, to its end or until it is to stop."""
    number, study = assignment.number, ledger.study
    asker = Asker(user=run_user(ledger.id), name=f"trial {number}", should_stop=should_stop)
    run = home.runs.of(assignment.experiment)
    training = Training(assignment.experiment, run, asker, objective=study.objective)
    ledger.keep_run(number, training.run.name)
    for record in training.evaluations(after=assignment.known_step):
        ledger.report(number, record.step, record.metrics)
    if training.is_done:
        ledger.complete(number)
    else:
        ledger.suspend(number)
    return training


def run_trials(study: Study, home: Home, trials: int = 100) -> Ledger:
    """Run a number of a study's trials, or those that its budget allows."""
    ledger = begin(study, home)
    for _ in range(trials):
        assignment = ledger.next()
        if assignment is None:
            break
        train(ledger, home, assignment)
    ledger.close()
    return ledger


def run_a_part(study: Study, home: Home, evaluations: int = 1) -> Ledger:
    """Run a study until its next trial has some evaluations, and is interrupted."""
    ledger = begin(study, home)
    assignment = ledger.next()
    assert assignment is not None

    def should_stop() -> bool:
        run = home.runs.of(assignment.experiment)
        return len(run.evaluations(assignment.experiment.judge(study.objective))) >= evaluations

    train(ledger, home, assignment, should_stop)
    return ledger
