"""What is kept is bound to the data that were read: where they were replaced, it is refused or made anew."""

import json
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from contents import Write, replace_unnoticed, write_celeba, write_mnist, write_pictures
from examples import IMAGE_MODELS, IMAGES, MODELS, POINTS, experiment_of, study_data, study_of
from hands import run_trials
from program import Started, gpm_tune

import gpm_tune as package
from gpm_tune.analysis.quality import refuse_different
from gpm_tune.analysis.subjects import find_subjects
from gpm_tune.console import new_console
from gpm_tune.data.fingerprint import fingerprint
from gpm_tune.errors import OtherDataError, UserError
from gpm_tune.study.accounts.confirmation import ConfirmationManager
from gpm_tune.study.accounts.records import read_study
from gpm_tune.study.accounts.trial_manager import TrialManager
from gpm_tune.study.definition import space
from gpm_tune.study.running.single import train
from gpm_tune.study.running.trainable import check_data
from gpm_tune.study.storage.home import Home
from gpm_tune.study.storage.inputs import prepare
from gpm_tune.study.views.results import comparison
from gpm_tune.training import Experiment, Trainer
from gpm_tune.training.loop import Asker, resume, train_teacher
from gpm_tune.training.objectives import Measured
from gpm_tune.training.saved import SavedModel
from gpm_tune.training.sweep import Conditions, Measurement, evaluate

pytestmark = pytest.mark.timeout(600)
WRITERS = [write_pictures, write_mnist, write_celeba]
CHANGED = "have changed since"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPM_TUNE_DATA", str(tmp_path / "cache"))


def plain_experiment(root: Path, write: Write = write_pictures, **changes: object) -> dict[str, Any]:
    """A small experiment on images that are written to a folder, content 1."""
    data = write(root, 1).model_dump(mode="json")  # type: ignore[attr-defined]
    tree: dict[str, Any] = space.put(POINTS, {**IMAGES, "data": data, "evaluation.samples": None, **changes})
    return tree


def experiment_on(root: Path, write: Write = write_pictures, **changes: object) -> Experiment:
    return Experiment.model_validate(plain_experiment(root, write, **changes))


def measure(folder: Path, cache: Path) -> Measurement:
    conditions = Conditions("validation", samples=20, seed=0, resamples=0)
    saved = SavedModel.at(folder)
    (found,) = evaluate(saved, nfe=[1], solvers=[], conditions=conditions, cache=cache, device="cpu")
    return found


def finish(manager: TrialManager, value: float) -> None:
    """Let the next trial of a study end with this FID."""
    spec = manager.next()
    assert spec is not None
    manager.report(spec.number, 4, Measured(curve={3: {"fid": value}}, scalars={"seconds": 1.0}))
    manager.complete(spec.number)


@pytest.mark.slow
def test_the_program_never_mixes_two_contents_of_a_folder(tmp_path: Path) -> None:
    home, experiment = tmp_path / "home", plain_experiment(tmp_path)
    study = study_data(
        name="s",
        experiment=experiment,
        search={"model.eta": {"float": [1.0, 4.0]}},
        budget={"trials": 1},
        resources={"cpu": 1, "concurrent": 1},
    )
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(experiment))

    def call(*words: str | Path, code: int = 0) -> tuple[Any, str]:
        done = gpm_tune(*words, "--json", home=home)
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout) if done.stdout else None, " ".join(done.stderr.split())

    first, _ = call("train", "one.yaml")
    run_trials(study_of(**study), Home(home))
    before, said = call("evaluate", "s", "--nfe", "1")
    assert CHANGED not in said

    replace_unnoticed(tmp_path, write_pictures, 3)
    (after,), said = call("evaluate", "s", "--nfe", "1")
    assert f"the data under {tmp_path / 'pictures'} {CHANGED}" in said
    assert "is measured against what is there now" in said
    assert after["metrics"]["fid"] > 2 * before[0]["metrics"]["fid"]
    assert after["data_fingerprint"] != before[0]["data_fingerprint"]
    second, said = call("train", "one.yaml")
    assert CHANGED in said
    assert "trained anew" in said
    assert second["value"] > 2 * first["value"]
    _, said = call("run", "study.yaml", "--trials", "2", code=2)
    assert f"study 's': the data under {tmp_path / 'pictures'} {CHANGED} it began" in said
    assert "help: put the data back to continue, or begin another study: --name s-2" in said
    assert len(read_study(Home(home).optuna_uri, "s").trials) == 1

    write_pictures(tmp_path, 1)
    assert call("evaluate", "s", "--nfe", "1")[0] == before, "as it was kept"
    assert call("train", "one.yaml")[0] == first
    record, _ = call("run", "study.yaml", "--trials", "2")
    assert [trial["state"] for trial in record["trials"]] == ["complete", "complete"]
    assert record["data_fingerprint"] == before[0]["data_fingerprint"]


@pytest.mark.slow
def test_a_study_whose_data_are_replaced_while_it_runs_is_interrupted(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    study = study_data(
        name="s",
        experiment=plain_experiment(tmp_path),
        search={"model.eta": {"float": [1.0, 4.0]}},
        budget={"trials": 100},
        resources={"cpu": 1, "concurrent": 1},
    )
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    running = Started("run", tmp_path / "study.yaml", "--home", home.root)
    try:
        while running.poll() is None and not _has_complete(home):
            time.sleep(0.2)
        write_pictures(tmp_path, 3)
        said, _ = running.communicate(timeout=200)
    finally:
        running.kill()
    assert running.returncode == 2, said
    assert f"the study was interrupted: the data under {tmp_path / 'pictures'} {CHANGED}" in said
    trials = read_study(home.optuna_uri, "s").trials
    assert len(trials) < 100
    assert trials[-1].state == "interrupted"
    assert trials[-1].step == 0, "nothing was measured on the other data"


def _has_complete(home: Home) -> bool:
    try:
        return any(trial.state == "complete" for trial in read_study(home.optuna_uri, "s").trials)
    except (UserError, KeyError, optuna.exceptions.StorageInternalError):  # it is just being created
        return False


@pytest.mark.parametrize("write", WRITERS)
def test_a_run_that_was_left_midway_is_not_continued_on_other_data(
    tmp_path: Path, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment, home = experiment_on(tmp_path, write, **{"training.batch_size": 4}), Home(tmp_path / "home")
    trainer = Trainer(experiment)
    trainer.run_interval()
    run = home.open_runs().of(experiment)
    run.create(experiment, "x")
    run.keep_checkpoint(trainer)

    replace_unnoticed(tmp_path, write, 3)
    anew = Trainer(experiment)
    with pytest.raises(OtherDataError, match=f"{CHANGED} step 4 was trained: their fingerprint was"):
        resume(anew, run, 12, print)
    trained = train(experiment, "x", home, "cpu", new_console(stderr=False))
    said = " ".join(capsys.readouterr().out.split())
    assert trained.folder != run.location
    assert f"{CHANGED} {run.name} was trained" in said
    assert "step 4/12" in said

    write(tmp_path, 1)
    train(experiment, "x", home, "cpu", new_console(stderr=False))
    assert "continuing at step 4" in capsys.readouterr().out


@pytest.mark.parametrize("write", WRITERS)
def test_in_one_process_a_checkpoint_is_measured_against_what_is_there_now(
    tmp_path: Path, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    experiment = experiment_on(tmp_path, write, **{"training.batch_size": 4, "evaluation.nfe": []})
    trainer, folder = Trainer(experiment), tmp_path / "checkpoint"
    trainer.run_interval()
    trainer.save(folder)
    first = measure(folder, tmp_path / "kept")
    assert first.data_fingerprint == trainer.data_fingerprint == fingerprint(experiment.data)
    assert not caplog.records
    replace_unnoticed(tmp_path, write, 3)
    second = measure(folder, tmp_path / "kept")
    assert second.metrics["fid"] != first.metrics["fid"]
    assert second.data_fingerprint != first.data_fingerprint
    assert CHANGED in caplog.text
    write(tmp_path, 1)
    assert measure(folder, tmp_path / "kept") == first


def test_a_teacher_is_trained_anew_where_its_data_were_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = plain_experiment(tmp_path, model=IMAGE_MODELS["edm"])
    pupil = experiment_on(tmp_path, model={**MODELS["score_gan"], "teacher": {"experiment": teacher}})
    runs, asker = Home(tmp_path / "home").open_runs(), Asker("x", "a test")
    first = train_teacher(pupil, runs, asker, "cpu")
    assert "trained anew" not in caplog.text
    write_pictures(tmp_path, 3)
    second = train_teacher(pupil, runs, asker, "cpu")
    assert "trained anew" in caplog.text
    assert first
    assert second
    assert first.folder.parents[1] != second.folder.parents[1]
    write_pictures(tmp_path, 1)
    assert train_teacher(pupil, runs, asker, "cpu") == first
    assert len(runs.names()) == 2


def test_a_teachers_checkpoint_is_of_the_same_data_or_of_others_on_purpose(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = Trainer(experiment_of(model=MODELS["edm"]))
    trainer.run_interval()
    trainer.save(tmp_path / "points")
    model = {**MODELS["score_gan"], "teacher": {"checkpoint": str(tmp_path / "points")}}
    home = Home(tmp_path / "home")
    prepare(experiment_of(model=model), home)
    assert not caplog.records
    prepare(experiment_of(model=model, data__std=0.4), home)
    assert "was trained on other data than the experiment's" in caplog.text

    record = json.loads((tmp_path / "points" / "checkpoint.json").read_text())
    (tmp_path / "points" / "checkpoint.json").write_text(json.dumps(record | {"data": "0ther"}))
    for use in (
        lambda: prepare(experiment_of(model=model), home),
        lambda: Trainer(experiment_of(model=model)),
    ):
        with pytest.raises(OtherDataError, match=f"the data 'gaussians' {CHANGED} step 4 was trained"):
            use()


@pytest.mark.parametrize("write", WRITERS)
def test_studies_are_not_compared_across_contents(tmp_path: Path, write: Write) -> None:
    home = Home(tmp_path / "home")
    home.root.mkdir()
    tree = plain_experiment(tmp_path, write, **{"evaluation.samples": 20})
    search = {"model.eta": {"float": [1.0, 4.0]}}
    confirm = {"trials": 1, "seeds": 2}

    def study(name: str, **changes: Any) -> Any:
        return study_of(name=name, experiment=tree, search=search, confirm=confirm, **changes)

    old = TrialManager(study("old"), home.optuna_uri)
    finish(old, 30.0)
    replace_unnoticed(tmp_path, write, 3)
    with pytest.raises(OtherDataError, match=f"study 'old': the data under .* {CHANGED} it began"):
        TrialManager(study("old"), home.optuna_uri)
    with pytest.raises(OtherDataError, match=f"study 'old'.*{CHANGED} it began"):
        ConfirmationManager(study("old"), home.optuna_uri, read_study(home.optuna_uri, "old").ranked())
    with pytest.raises(UserError, match="study 'old' has other values of the data's fingerprint"):
        TrialManager(study("warm", warm_start=["old"]), home.optuna_uri)
    new = TrialManager(study("new"), home.optuna_uri)
    finish(new, 1000.0)
    assert new.data_fingerprint != old.data_fingerprint
    records = [read_study(home.optuna_uri, name) for name in ("old", "new")]
    with pytest.raises(UserError, match="cannot be compared: they differ in the data's fingerprint"):
        comparison(records)
    write(tmp_path, 1)
    assert (
        TrialManager(study("warm", warm_start=["old"]), home.optuna_uri).data_fingerprint
        == old.data_fingerprint
    )


def test_in_a_notebook_a_study_is_refused_after_its_folder_changed(tmp_path: Path) -> None:
    search = {"model.eta": {"float": [1.0, 4.0]}}
    data = study_data(name="s", experiment=plain_experiment(tmp_path), search=search)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(data))
    study = package.Study(tmp_path / "study.yaml", home=tmp_path / "home")
    study.home.root.mkdir()
    TrialManager(study.definition, study.home.optuna_uri)
    write_pictures(tmp_path, 3)
    with pytest.raises(OtherDataError, match=f"{CHANGED} it began"):
        study.run()


def test_a_study_of_an_earlier_version_is_shown_and_not_continued(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'optuna.db'}"
    begun = TrialManager(study_of(), storage).next()
    assert begun
    stored = optuna.load_study(study_name="small", storage=storage)
    identity = json.loads(stored.user_attrs["identity"])
    del identity["format"]
    stored.set_user_attr("identity", json.dumps(identity))
    trial = optuna.Trial(stored, stored.trials[begun.number]._trial_id)
    trial.set_user_attr("checkpoint", str(tmp_path / "studies" / "small" / "checkpoints" / "trial_0000"))
    assert [trial.run for trial in read_study(storage, "small").trials] == [None]
    for words in (["status"], ["list"], ["status", "small"], ["report", "small"]):
        done = gpm_tune(*words, home=tmp_path)
        assert done.returncode == 0, done.stderr
    with pytest.raises(UserError, match=r"begun by version 0\.1.*\nhelp: .*gpm-tune migrate \[--home H\]"):
        TrialManager(study_of(), storage)


def test_a_trial_that_searches_its_data_looks_at_the_studys_too(tmp_path: Path) -> None:
    base = plain_experiment(tmp_path)
    experiment = Experiment.model_validate(base)
    expected = fingerprint(experiment.data)
    other = Trainer(Experiment.model_validate(space.put(base, {"data.channels": 1})))
    check_data(other, experiment, expected)
    write_pictures(tmp_path, 3)
    with pytest.raises(OtherDataError, match="Trials on both could not be compared"):
        check_data(other, experiment, expected)


def test_figures_have_one_content_on_an_axis(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    experiment = experiment_on(tmp_path)
    for content in (1, 3):
        write_pictures(tmp_path, content)
        train(experiment, "x", home, "cpu", new_console())
    one, two = sorted(map(str, home.root.glob("runs/*")))
    refuse_different(find_subjects(home, [f"a={one}"]), None)
    with pytest.raises(UserError, match="these differ in data_fingerprint and cannot share an axis"):
        refuse_different(find_subjects(home, [f"a={one}", f"b={two}"]), None)
