"""Studies end to end, by the command line, on a real Ray, Optuna and MLflow."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from examples import MODELS, POINTS, TEACHER
from hands import run_trials
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from program import Started, give_tables, gpm_tune, write_study

from gpm_tune.documents import Document
from gpm_tune.study.accounts.records import read_study, study_names
from gpm_tune.study.definition import space
from gpm_tune.study.definition.specification import load_study
from gpm_tune.study.storage.home import Home

pytestmark = pytest.mark.slow


def start(*arguments: str | Path, home: Path) -> Started:
    """Start the program in a process group of its own, as a terminal does."""
    give_tables(home)
    return Started(*arguments, "--home", home, folder=home.parent)


def read_until(process: Started, text: str) -> list[str]:
    """The lines that a process prints, up to one that has the text."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"never printed {text!r}:\n{''.join(lines)}")


def status(name: str, home: Path) -> dict[str, Any]:
    result = gpm_tune("status", name, "--json", home=home)
    assert result.returncode == 0, result.stderr
    data: dict[str, Any] = json.loads(result.stdout)
    return data


def runs(name: str, home: Path) -> tuple[list[Run], list[Run]]:
    """The parent runs and the child runs of a study in MLflow."""
    client = MlflowClient(Home(home).tracking_uri.secret())
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    children = [run for run in found if "mlflow.parentRunId" in run.data.tags]
    return [run for run in found if run not in children], children


def test_a_study_gives_every_trial_once_to_optuna_and_mlflow(finished: Path) -> None:
    trials = status("digits", finished)["trials"]
    assert [trial["number"] for trial in trials] == [0, 1, 2, 3]
    assert trials[0]["values"] == {"model.eta": 2.0, "model.sampling_steps": 3}
    parents, children = runs("digits", finished)
    assert len(parents) == 1
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    assert sorted(run.data.tags["gpm.trial"] for run in children) == ["0", "1", "2", "3"]
    client = MlflowClient(Home(finished).tracking_uri.secret())
    for run in children:
        trial = trials[int(run.data.tags["gpm.trial"])]
        history = client.get_metric_history(run.info.run_id, "fid")
        assert [point.step for point in history] == [4, 8, 12]
        assert min(point.value for point in history) == trial["value"]
        assert run.data.params["model.eta"] == str(trial["values"]["model.eta"])
        assert run.data.metrics["nfe"] == trial["values"]["model.sampling_steps"]
        assert (run.info.status, run.data.tags["gpm.state"]) == ("FINISHED", "complete")
        pictures = client.list_artifacts(run.info.run_id, "samples")
        assert [Path(picture.path).name for picture in pictures] == [
            f"step_{step:07d}.png" for step in (4, 8, 12)
        ]


def test_the_best_trial_is_exported_and_trained_again_to_the_same_value(
    finished: Path, tmp_path: Path
) -> None:
    exported = tmp_path / "best.yaml"
    result = gpm_tune("best", "digits", "--export", exported, "--json", home=finished)
    best = json.loads(result.stdout)
    assert best["value"] == min(trial["value"] for trial in status("digits", finished)["trials"])
    assert list((finished / "runs" / best["run"] / "checkpoints").iterdir())
    trained = gpm_tune("train", exported, "--device", "cpu", home=tmp_path / "home")
    assert trained.returncode == 0, trained.stderr
    assert f"best FID (small) {best['value']:.4g} at step {best['best_step']}" in trained.stdout
    parents, _ = runs("best", tmp_path / "home")
    (run,) = parents
    assert run.data.params["model.eta"] == str(best["values"]["model.eta"])
    again = gpm_tune("train", exported, "--device", "cpu", home=tmp_path / "home")
    assert "trained already" in again.stdout
    assert len(runs("best", tmp_path / "home")[0]) == 1


def test_running_again_changes_nothing(finished: Path) -> None:
    before = status("digits", finished)
    again = gpm_tune("run", finished.parent / "study.yaml", home=finished)
    assert again.returncode == 0
    assert status("digits", finished) == before


def test_more_trials_are_added(tmp_path: Path) -> None:
    home = tmp_path / "home"
    path = write_study(tmp_path, name="more", budget={"trials": 1})
    run_trials(load_study(Document.load(path)), Home(home))
    before = status("more", home)
    extended = gpm_tune("run", path, "--trials", "2", home=home)
    assert extended.returncode == 0, extended.stdout + extended.stderr
    after = status("more", home)
    assert after["trials"][:1] == before["trials"]
    assert len(after["trials"]) == 2
    parents, children = runs("more", home)
    assert (len(parents), len(children)) == (1, 2)


LONG = space.put(POINTS, {"training.steps": 3000, "evaluation.every": 1500, "evaluation.nfe": []})


def test_ctrl_c_leaves_a_study_that_continues_where_it_stood(tmp_path: Path) -> None:
    home = tmp_path / "home"
    path = write_study(tmp_path, name="stopped", experiment=LONG, budget={"trials": 2})
    process = start("run", path, home=home)
    read_until(process, "step 1500/3000")
    time.sleep(1)  # into the next interval
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "interrupted; continue with" in output
    before = [line for line in output.splitlines() if "step " in line]
    assert not any("3000/3000" in line for line in before), "no trial ran on to its end"
    interrupted = [trial for trial in status("stopped", home)["trials"] if trial["state"] == "interrupted"]
    assert interrupted
    stood = {trial["number"]: Home(home).runs.named(trial["run"]).newest(3000) for trial in interrupted}
    assert all(stood[trial["number"]] >= trial["step"] for trial in interrupted)
    in_the_middle = [step for step in stood.values() if step % 1500]
    assert in_the_middle, "trials checkpoint at once, not at their next evaluation"
    _, children = runs("stopped", home)
    assert {run.data.tags["gpm.state"] for run in children} >= {"interrupted"}
    result = gpm_tune("run", path, home=home)
    assert result.returncode == 0, result.stdout + result.stderr
    trials = status("stopped", home)["trials"]
    assert [trial["state"] for trial in trials] == ["complete"] * 2
    _, children = runs("stopped", home)
    assert len(children) == 2
    client = MlflowClient(Home(home).tracking_uri.secret())
    for run in children:
        history = client.get_metric_history(run.info.run_id, "sliced_wasserstein")
        assert [point.step for point in history] == [1500, 3000]
        assert run.info.status == "FINISHED"


def test_a_diverging_trial_fails_alone_and_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    home = tmp_path / "home"
    path = write_study(
        tmp_path,
        name="hurt",
        experiment=LONG,
        search={"training.optimizer.lr": {"choice": [2e-4, 1e30]}},
        sampler={"name": "random", "seed": 0},
        budget={"trials": 3},
        resources={"cpu": 1, "concurrent": 1},
    )
    process = start("run", path, home=home)
    read_until(process, "step 1500/3000")
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if child.name().startswith("ray::") and "Trainable" in " ".join(child.cmdline())
    ]
    assert workers
    workers[0].kill()
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    trials = status("hurt", home)["trials"]
    assert len(trials) == 3
    by_rate = {trial["values"]["training.optimizer.lr"]: trial for trial in trials}
    assert by_rate[2e-4]["state"] == "complete"
    assert by_rate[1e30]["state"] == "fail"
    assert "not finite" in by_rate[1e30]["reason"]
    assert "failed: loss/" in output
    _, children = runs("hurt", home)
    assert len(children) == 3
    for run in children:
        failed = run.data.params["training.optimizer.lr"] == "1e+30"
        assert run.info.status == ("FAILED" if failed else "FINISHED")
        assert ("not finite" in run.data.tags.get("gpm.reason", "")) == failed


def test_training_alone_is_interrupted_and_continued_in_the_same_run(tmp_path: Path) -> None:
    home, path = tmp_path / "home", tmp_path / "alone.yaml"
    path.write_text(yaml.safe_dump(LONG))
    process = start("train", path, "--device", "cpu", home=home)
    read_until(process, "step 1500/3000")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert "interrupted; continue with" in output
    result = gpm_tune("train", path, "--device", "cpu", home=home)
    assert result.returncode == 0, result.stderr
    assert "continuing at step 1" in result.stdout or "continuing at step 2" in result.stdout
    (run,), children = runs("alone", home)
    assert not children
    history = MlflowClient(Home(home).tracking_uri.secret()).get_metric_history(run.info.run_id, "frechet")
    assert [point.step for point in history] == [1500, 3000]
    assert run.data.tags["gpm.state"] == "complete"


def terminate(process: Started) -> str:
    """SIGTERM to the program and all that it has started, twice, as of systemd or Slurm; what it prints."""
    for _ in range(2):
        for each in [process, *psutil.Process(process.pid).children(recursive=True)]:
            each.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    assert "interrupted; continue with" in output
    return output


def test_sigterm_stops_the_confirmation_of_a_study_whose_used_up_hours_were_extended(tmp_path: Path) -> None:
    home = tmp_path / "home"
    path = write_study(
        tmp_path,
        name="seeds",
        experiment=space.put(LONG, {"training.steps": 800, "evaluation.every": 400}),
        budget={"trials": 1, "hours": 1e-9},
        confirm={"trials": 1, "seeds": 3},
        resources={"cpu": 1, "concurrent": 1},
    )
    result = gpm_tune("run", path, home=home)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "1e-09 hours have passed (budget.hours)" in result.stdout
    process = start("resume", "seeds", "--set", "budget.hours=1", home=home)
    read_until(process, "step 800/800")
    read_until(process, "step 400/800")
    terminate(process)
    storage = Home(home).optuna_uri
    assert [trial.state for trial in read_study(storage, "seeds").trials] == ["complete"]
    states = [trial.state for trial in read_study(storage, "seeds.confirm").trials]
    assert states[-1] == "interrupted"


def test_sigterm_stops_the_training_of_a_teacher(tmp_path: Path) -> None:
    home = tmp_path / "home"
    teacher = space.put(TEACHER, {"training.steps": 10**6, "evaluation.every": 1000})
    model = {**MODELS["score_gan"], "teacher": {"experiment": teacher}}
    search = {"model.score_steps": {"int": [1, 4]}}
    path = write_study(tmp_path, name="taught", experiment={**POINTS, "model": model}, search=search)
    process = start("run", path, home=home)
    read_until(process, "teacher: step 1000/")
    terminate(process)
    states = {trial.state for trial in read_study(Home(home).optuna_uri, "taught").trials}
    assert states == {"interrupted"}
    (run,) = (home / "runs").glob("edm-gaussians-*")
    assert Home(home).runs.named(run.name).newest(10**6) >= 1000, "it goes on there"


def test_training_alone_that_diverges_says_so(tmp_path: Path) -> None:
    home, path = tmp_path / "home", tmp_path / "broken.yaml"
    path.write_text(yaml.safe_dump(space.put(LONG, {"training.optimizer.lr": 1e30})))
    result = gpm_tune("train", path, "--device", "cpu", home=home)
    assert result.returncode == 1
    assert result.stderr.startswith("error: training diverged: loss/")
    (run,), _ = runs("broken", home)
    assert run.info.status == "FAILED"


def test_a_teacher_is_trained_once_before_the_trials_and_shared(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (tmp_path / "edm.yaml").write_text(yaml.safe_dump(TEACHER))
    model = {**MODELS["score_gan"], "teacher": {"experiment": str(tmp_path / "edm.yaml")}}
    path = write_study(
        tmp_path,
        name="taught",
        experiment={**POINTS, "model": model},
        search={"model.score_steps": {"int": [1, 4]}},
        budget={"trials": 2},
    )
    result = gpm_tune("run", path, home=home)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "teacher: step 12/12" in result.stdout
    assert [trial["state"] for trial in status("taught", home)["trials"]] == ["complete"] * 2
    (teacher,) = (home / "runs").glob("edm-gaussians-*")
    before = {file: file.stat().st_mtime_ns for file in teacher.glob("checkpoints/*/*")}
    result = gpm_tune("run", path, "--trials", "3", home=home)
    assert result.returncode == 0, result.stdout + result.stderr
    result = gpm_tune("train", path, "--device", "cpu", home=home)
    assert result.returncode == 0, result.stderr
    assert "trained already" in result.stdout, "the first trial was the base experiment"
    assert {file: file.stat().st_mtime_ns for file in teacher.glob("checkpoints/*/*")} == before
    assert list((home / "runs").glob("edm-gaussians-*")) == [teacher]


def test_a_teacher_that_is_an_mlflow_run_is_found(tmp_path: Path) -> None:
    home, path = tmp_path / "home", tmp_path / "edm.yaml"
    path.write_text(yaml.safe_dump(TEACHER))
    assert gpm_tune("train", path, "--device", "cpu", home=home).returncode == 0
    (run,), _ = runs("edm", home)
    model = {**MODELS["score_gan"], "teacher": {"run": run.info.run_id}}
    pupil = tmp_path / "pupil.yaml"
    pupil.write_text(yaml.safe_dump({**POINTS, "model": model}))
    result = gpm_tune("train", pupil, "--device", "cpu", home=home)
    assert result.returncode == 0, result.stderr
    (run,), _ = runs("pupil", home)
    assert run.data.params["model.teacher.checkpoint"].endswith("step_000000012")


PENDING = """
from gpm_tune.cli import main
from gpm_tune.study.cluster import connection
from gpm_tune.study.cluster.capacity import Capacity, Node
from gpm_tune.study.running import run
connection.present_nodes = lambda: [Node({"CPU": 1000.0})]
run.this_machine = lambda: Capacity(connection.present_nodes())
main()
"""


def test_trials_that_wait_for_nodes_do_not_keep_an_interrupted_study_waiting(tmp_path: Path) -> None:
    path = write_study(tmp_path, name="waiting", budget={"trials": 2}, resources={"cpu": 500})
    storage = Home(tmp_path / "home").optuna_uri
    process = Started("run", path, "--home", tmp_path / "home", code=PENDING)
    try:
        wait_until(lambda: asked(storage) == 2)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, output
    record = read_study(storage, "waiting")
    assert [trial.state for trial in record.trials] == ["interrupted", "interrupted"]


def asked(storage: str) -> int:
    """How many trials the study has asked for."""
    return len(read_study(storage, "waiting").trials) if "waiting" in study_names(storage) else 0


def wait_until(condition: Callable[[], object], seconds: float = 150) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
