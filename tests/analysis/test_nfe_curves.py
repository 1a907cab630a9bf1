"""Quality against NFE: what is measured, how seeds and solvers are joined, what may share an axis."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from examples import experiment_of
from hypothesis import given
from hypothesis import strategies as st

from gpm_tune.analysis.nfe_curves import draw, stops, with_front
from gpm_tune.analysis.quality import over_seeds, pareto_front
from gpm_tune.analysis.subjects import Subject
from gpm_tune.analysis.tables import latex, markdown, quality_table
from gpm_tune.training.saved import SavedModel

Script = Callable[..., int]
QUICK = ["--samples", "20", "--device", "cpu"]
COSTS = st.lists(st.tuples(st.integers(1, 9), st.floats(0, 9)), min_size=1, max_size=20)


@given(COSTS)
def test_exactly_the_points_that_no_other_beats_are_on_the_front(points: list[tuple[int, float]]) -> None:
    costs, values = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    for (cost, value), on_front in zip(points, pareto_front(costs, values), strict=True):
        beaten = any(c <= cost and v <= value and (c, v) != (cost, value) for c, v in points)
        assert on_front != beaten


def measured(**changes: Any) -> dict[str, Any]:
    row = {"label": "GAN", "model": "gan", "data": "digits", "solver": "generator", "sampling_steps": None}
    row |= {
        "nfe": 1,
        "data_fingerprint": "da7a",
        "features": "small",
        "samples": 20,
        "split": "test",
        "origin": "a",
    }
    return {**row, "fid": 10.0, "fid_error": 0.5, **changes}


def test_seeds_are_joined_by_mean_and_standard_deviation() -> None:
    frame = pd.DataFrame([measured(), measured(fid=14.0, origin="b"), measured(label="EDM", fid=3.0)])
    seeds, single = over_seeds(frame, "fid").to_dict("records")
    assert (seeds["value"], seeds["seeds"], seeds["origin"]) == (12.0, 2, "a b")
    assert seeds["error"] == pytest.approx(8**0.5), "the spread of the two, with n - 1"
    assert (single["value"], single["error"], single["seeds"]) == (3.0, 0.5, 1)


def test_a_sweep_of_several_models_shares_an_axis(
    models: dict[str, Path], run_script: Script, tmp_path: Path
) -> None:
    output = tmp_path / "figure"
    runs = [models["edm"], models["discr_flow"], models["gan"], models["gan_again"]]
    words = [*runs, *QUICK, "--solver", "euler", "heun", "--nfe", "1", "2", "4", "--resamples", "3"]
    assert run_script("nfe_fid.py", *words, "-o", output, "--home", tmp_path) == 0
    table = pd.read_csv(output.with_suffix(".csv"))
    costs = {name: sorted(group["nfe"]) for name, group in table.groupby("series")}
    assert costs == {
        "EDM, euler": [1, 2, 4],
        "EDM, heun": [1, 3],
        "Discriminator Flow, euler, N = 3, stopped early": [1, 2],
        "Discriminator Flow, heun, N = 3, stopped early": [2],
        "GAN": [1],
    }
    assert table.set_index("series").loc["GAN", "seeds"] == 2
    assert (table["error"] > 0).all()
    assert table.loc[table["value"].idxmin(), "pareto"]
    assert set(zip(table["features"], table["samples"], table["split"], strict=True)) == {
        ("small", 20, "test")
    }
    svg = output.with_suffix(".svg").read_text()
    for text in ("FID (small features, 20 samples, test split)", "NFE", "GAN (2 seeds)", "Pareto front"):
        assert text in svg
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_early_stops_are_measured_on_one_grid(
    models: dict[str, Path], run_script: Script, tmp_path: Path
) -> None:
    words = [models["edm"], models["discr_flow"], *QUICK, "--resamples", "0", "-o", tmp_path / "figure"]
    assert run_script("early_stop.py", *words, "--home", tmp_path) == 0
    table = pd.read_csv(tmp_path / "figure.csv")
    assert set(table["sampling_steps"]) == {3, 6}
    assert sorted(table.loc[table["model"] == "edm", "nfe"]) == [2, 4, 6, 8, 10, 11], "Heun's method"
    assert sorted(table.loc[table["model"] == "discr_flow", "nfe"]) == [1, 2, 3]


def test_a_generator_has_nothing_to_stop_early(
    models: dict[str, Path], run_script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script("early_stop.py", models["gan"], "-o", tmp_path / "x", "--home", tmp_path) == 2
    assert "there is nothing to stop early" in capsys.readouterr().err


def test_different_data_are_refused_before_anything_is_measured(
    models: dict[str, Path], run_script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [models["edm"], models["points"], "-o", tmp_path / "x", "--home", tmp_path]
    assert run_script("nfe_fid.py", *words) == 2
    error = capsys.readouterr().err
    assert "differ in data and cannot share an axis (digits: EDM; gaussians: Discriminator Flow)" in error
    assert list(tmp_path.iterdir()) == []


def test_the_table_has_models_by_data_sets(
    models: dict[str, Path], run_script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [models[name] for name in ("edm", "gan", "gan_again", "discr_flow")]
    points = f"Discriminator Flow={models['points']}"
    words = [*runs, points, *QUICK, "--resamples", "3", "-o", tmp_path / "t", "--home", tmp_path]
    assert run_script("table.py", *words, "--metric", "fid") == 2, "points have no FID"
    assert "--metric fid: unknown metric; valid: energy_distance" in capsys.readouterr().err
    assert run_script("table.py", *words) == 0
    shown = (tmp_path / "t.md").read_text()
    head = "| model | digits: FID (small features, 20 samples, test split) | "
    assert shown.startswith(head + "gaussians: sliced wasserstein (20 samples, test split) |")
    (gan,) = (line for line in shown.splitlines() if line.startswith("| GAN"))
    assert gan.endswith("(2 seeds) | - |")
    assert len(pd.read_csv(tmp_path / "t.csv")) == 5, "a row for every run"
    assert r"\begin{tabular}{lcc}" in (tmp_path / "t.tex").read_text()


def test_a_table_joins_labels_over_data_sets() -> None:
    rows = [measured(metric="fid", value=12.0, error=1.0, seeds=2)]
    rows.append(measured(metric="fid", value=7.0, error=np.nan, seeds=1, data="mnist"))
    table = quality_table(pd.DataFrame(rows))
    assert list(table["model"]) == ["GAN"]
    assert table.iloc[0, 1:].tolist() == ["12 ± 1 (2 seeds)", "7"]
    assert "| GAN | 12 ± 1 (2 seeds) | 7 |" in markdown(table)
    assert r"GAN & 12 $\pm$ 1 (2 seeds) & 7 \\" in latex(table)


def test_stops_reach_the_end_of_every_grid() -> None:
    experiments = [experiment_of(model__sampling_steps=n) for n in (7, 16)]
    subjects = [Subject("a", "a", SavedModel(experiment, Path(), 0, "best")) for experiment in experiments]
    assert {7, 16, 5, 10, 15} <= set(stops(subjects, 5, None))


def test_values_of_zero_or_less_have_a_linear_axis() -> None:
    point = {"metric": "kid", "value": -0.1, "error": np.nan, "seeds": 1}
    rows = [measured(**point), measured(**{**point, "nfe": 2, "value": 1.0})]
    points = with_front(pd.DataFrame(rows), [])
    assert draw(points).axes[0].get_yscale() == "linear"
