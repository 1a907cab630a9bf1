"""models, describe, sample, evaluate, interpolate: as typed, on a study that was run."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from examples import spoilt
from mlflow import MlflowClient
from program import gpm_tune

from gpm_tune.study.storage.home import Home


@pytest.fixture(scope="module")
def best(finished: Path) -> Path:
    """The training run of the finished study's best trial."""
    result = gpm_tune("best", "digits", "--json", home=finished)
    return finished / "runs" / json.loads(result.stdout)["run"]


def test_models_prints_the_taxonomy() -> None:
    result = gpm_tune("models")
    assert result.returncode == 0, result.stderr
    for words in (
        ("edm", "score", "no"),
        ("score_gan", "score", "yes"),
        ("discr_flow", "discriminator", "no"),
        ("gan", "discriminator", "yes"),
        ("kernel_flow", "kernel", "no"),
        ("kernel_flow", "kernel", "yes"),
    ):
        assert any(line.split()[:3] == list(words) for line in result.stdout.splitlines()), words


def test_describe_prints_parameters_flops_and_memory() -> None:
    result = gpm_tune("describe", "gan_gaussians.yaml")
    for text in ("855,042", "790,017", "training step", "sample, NFE 1", "FLOP", "Adam"):
        assert text in result.stdout
    found = json.loads(gpm_tune("describe", "gan_gaussians.yaml", "--json").stdout)
    assert found["networks"] == {
        "discriminator": {"parameters": 790_017},
        "generator": {"parameters": 855_042},
    }
    narrow = ["--set", "experiment.model.generator.width=16"]
    found = json.loads(gpm_tune("describe", "gan_gaussians.yaml", "--json", *narrow).stdout)
    assert found["networks"]["generator"]["parameters"] < 5000


def test_models_and_describe_tell_which_keys_are_inference_only() -> None:
    rows = {(row["model"], row["generator"]): row for row in json.loads(gpm_tune("models", "--json").stdout)}
    assert rows["edm", False]["inference_only"] == rows["edm", False]["knobs"][:-2]
    assert rows["discr_flow", False]["inference_only"] == []
    assert "sampling_steps*" in gpm_tune("models").stdout
    found = json.loads(gpm_tune("describe", "edm_gaussians.yaml", "--json").stdout)
    assert found["inference_only"] == [
        "evaluation",
        "model.analytic_first_step",
        "model.grid",
        "model.sampling_noise",
        "model.sampling_steps",
        "model.solver",
    ]


def test_sample_writes_a_grid_and_says_where_it_comes_from(
    best: Path, finished: Path, tmp_path: Path
) -> None:
    grid = tmp_path / "grid.png"
    result = gpm_tune("sample", best, "--n", "9", "--nfe", "2", "-o", grid, home=finished)
    assert result.returncode == 0, result.stderr
    assert grid.read_bytes().startswith(b"\x89PNG")
    assert f"9 samples in {grid}: euler, NFE 2, seed 0, from {best}/checkpoints/step_" in result.stdout


def test_a_run_of_mlflow_is_sampled_by_its_id(best: Path, finished: Path, tmp_path: Path) -> None:
    client = MlflowClient(Home(finished).tracking_uri.secret())
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (run,) = [run for run in runs if run.data.tags.get("gpm.training_run") == best.name]
    by_id, by_folder, by_name = (tmp_path / f"{name}.npz" for name in ("id", "folder", "name"))
    for reference, file in ((run.info.run_id, by_id), (best, by_folder), (best.name, by_name)):
        result = gpm_tune("sample", reference, "--n", "4", "--seed", "3", "-o", file, home=finished)
        assert result.returncode == 0, result.stderr
    for other in (by_folder, by_name):
        assert np.array_equal(np.load(by_id)["samples"], np.load(other)["samples"])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    result = gpm_tune("sample", parent.info.run_id, "-o", by_id, home=finished)
    assert result.returncode == 2
    assert "a study's parent run has none" in result.stderr


def test_evaluate_takes_several_values_of_an_option(best: Path, finished: Path) -> None:
    words = ["--nfe", "1", "2", "--solver", "euler", "--samples", "50", "--metric", "fid", "kid", "--json"]
    result = gpm_tune("evaluate", best, *words, home=finished)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert [(row["solver"], row["nfe"], row["samples"]) for row in found] == [
        ("euler", 1, 50),
        ("euler", 2, 50),
    ]
    assert all(row["metrics"]["fid"] > 0 and row["features"] == "small" for row in found)
    assert all(list(row["metrics"]) == ["fid", "kid"] for row in found)
    table = gpm_tune("evaluate", best, "--samples", "50", "--split", "test", home=finished).stdout
    assert "50 samples, test set, seed 0" in table
    assert "FID (small)" in table


def test_interpolate_writes_rows(best: Path, finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.npz"
    words = ["--rows", "2", "--columns", "5", "--method", "spherical-cauchy-linear", "-o", file]
    result = gpm_tune("interpolate", best, *words, home=finished)
    assert result.returncode == 0, result.stderr
    assert np.load(file)["samples"].shape == (2, 5, 1, 16, 16)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nfe", "99"], "NFE 99 is beyond the"),
        (["--solver", "dpm2"], "solver 'dpm2' of model 'discr_flow': unknown name 'dpm2'; valid: ab, euler"),
        (["--device", "tpu"], "--device tpu: not on this machine"),
    ],
)
def test_what_the_model_cannot_do_is_refused(
    best: Path, finished: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    result = gpm_tune("sample", best, *words, "-o", tmp_path / "x.png", home=finished)
    assert result.returncode == 2
    assert message in result.stderr
    assert not (tmp_path / "x.png").exists()


def test_samples_that_are_not_finite_are_no_result(best: Path, finished: Path, tmp_path: Path) -> None:
    folder = spoilt(max((best / "checkpoints").iterdir()), tmp_path / "spoilt")
    for words in (
        ["sample", "-o", tmp_path / "x.png"],
        ["interpolate", "-o", tmp_path / "x.npz"],
        ["evaluate"],
    ):
        result = gpm_tune(*words, folder, home=finished)
        assert result.returncode == 2
        assert re.search(
            rf"error: \d+ of \d+ samples are not finite .*{folder}, euler, NFE \d", result.stderr
        )
        assert "training" not in result.stderr.replace(str(folder), "")
    assert not list(tmp_path.glob("x.*"))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("nowhere", "neither a study of"),
        ("0" * 32, "nothing has been tracked in"),
    ],
)
def test_unknown_runs_are_refused(tmp_path: Path, run: str, message: str) -> None:
    result = gpm_tune("evaluate", run, home=tmp_path / "home")
    assert result.returncode == 2
    assert message in result.stderr
