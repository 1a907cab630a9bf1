"""Pictures of samples, processes and interpolations: what they show, and where it came from."""

import logging
import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from examples import IMAGE_MODELS, IMAGES, KERNEL_FLOW, experiment_of
from PIL import Image, ImageSequence

from gpm_tune.analysis.coverage import effective_modes, modes_of
from gpm_tune.analysis.pictures import Shown, interpolation_figure, load_shown, samples_figure
from gpm_tune.analysis.process import choose, first, process_figure, simulate
from gpm_tune.analysis.subjects import find_subjects
from gpm_tune.data import DigitsConfig, GaussiansConfig, to_float
from gpm_tune.errors import UserError
from gpm_tune.study.home import Home
from gpm_tune.training import Experiment, Trainer
from gpm_tune.training.pictures import tile

SCRIPTS = Path(__file__).parents[2] / "analysis"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each kind of model, barely trained."""
    root = tmp_path_factory.mktemp("runs")
    experiments = {
        "edm": experiment_of(**{**IMAGES, "model": {**IMAGE_MODELS["edm"], "sampling_steps": 6}}),
        "discr_flow": experiment_of(**IMAGES),
        "gan": experiment_of(**{**IMAGES, "model": IMAGE_MODELS["gan"]}),
        "points": experiment_of(),
        "kernel": Experiment.model_validate(KERNEL_FLOW),
    }
    for name, experiment in experiments.items():
        trainer = Trainer(experiment)
        trainer.run_interval()
        trainer.save(root / name)
    return {name: root / name for name in experiments}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Run a script as a user would, in this process; returns its exit code."""

    def run(name: str, *arguments: object) -> int:
        words = [name, *map(str, arguments), "--device", "cpu", "--home", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        return int(ended.value.code or 0)

    return run


def shown(*folders: Path, nfe: int | None = None) -> list[Shown]:
    return load_shown(find_subjects(Home(folders[0]), [str(folder) for folder in folders]), nfe, "cpu")


def assert_written(output: Path) -> pd.DataFrame:
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in output.with_suffix(".svg").read_text()
    return pd.read_csv(output.with_suffix(".csv"))


def test_panels_show_the_samples_of_the_seed(runs: dict[str, Path]) -> None:
    models = shown(runs["edm"], runs["gan"], nfe=5)
    figure, table = samples_figure(models, 6, 3, seed=4)
    assert table[["label", "solver", "nfe", "seed", "samples"]].to_numpy().tolist() == [
        ["EDM", "heun", 5, 4, 6],
        ["GAN", "generator", 1, 4, 6],
    ]
    assert table["sampling_steps"][0] == 3
    assert pd.isna(table["sampling_steps"][1])
    for model, axes in zip(models, figure.axes, strict=True):
        expected = tile(model.sampler.draw(6, 4)[1], 3).permute(1, 2, 0)
        assert np.array_equal(axes.images[0].get_array(), expected)


def test_points_beyond_the_frame_are_drawn_on_its_edge(runs: dict[str, Path]) -> None:
    (model,) = shown(runs["points"])
    process = simulate(model, 50, 4, seed=0)
    far = process.states[0]._replace(x=process.states[0].x * 1000)
    figure, _ = process_figure([choose(process, 1), type(process)(model, [far])], seed=0)
    axes = next(each for each in reversed(figure.axes) if each.get_visible())
    points = np.concatenate([cloud.get_offsets() for cloud in axes.collections[1:]])
    low, high = np.transpose([axes.get_xlim(), axes.get_ylim()])
    assert len(points) == 50
    assert ((points >= low - 1e-5) & (points <= high + 1e-5)).all()


def test_particles_that_interact_are_simulated_in_company(runs: dict[str, Path]) -> None:
    models = shown(runs["kernel"], runs["points"])
    _, table = samples_figure(models, 7, 1, seed=0)
    assert table["samples"].tolist() == [7, 7]
    assert table["simulated"].tolist() == [500, 7]
    few, many = (simulate(models[0], n, 4, seed=0).states[-1].x[:3] for n in (3, 500))
    assert torch.equal(few, many)


def test_columns_spread_over_the_process(runs: dict[str, Path]) -> None:
    edm, flow = (simulate(each, 2, 4, seed=1) for each in shown(runs["edm"], runs["discr_flow"]))
    assert [nfe for nfe, _ in edm.states] == [0, 2, 4, 6, 8, 10, 11]
    assert [nfe for nfe, _ in choose(edm, 4).states] == [0, 4, 8, 11]
    assert [nfe for nfe, _ in choose(edm, 100).states] == [0, 11]
    long = type(edm)(edm.shown, [edm.states[0]._replace(nfe=nfe) for nfe in range(65)])
    assert [nfe for nfe, _ in choose(long, None).states] == [0, 8, 16, 24, 32, 40, 48, 56, 64]
    (start,) = first([edm, flow], 2)
    assert start.shown.subject.model == "discr_flow"
    assert [nfe for nfe, _ in start.states] == [0, 1, 2]
    assert [edm.at(nfe).nfe for nfe in (0, 1, 2, 9, 50)] == [0, 0, 2, 8, 11]
    with pytest.raises(UserError, match="--first: no Discriminator Flow or kernel flow"):
        first([edm], 2)


def test_the_process_is_drawn_without_generators(
    runs: dict[str, Path], run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = [f"Diffusion={runs['edm']}", runs["discr_flow"], runs["gan"], tmp_path]
    animation = tmp_path / "a.gif"
    assert run("generation.py", *models, "--first", 1, "--animate", animation, "-o", tmp_path / "p") == 0
    assert "left out: GAN: a generator makes a sample from noise of another shape" in caplog.text
    assert f"left out: {tmp_path}: neither the folder of a checkpoint" in caplog.text
    table = assert_written(tmp_path / "p")
    nfe = table.groupby(["label", "part"], sort=False)["nfe"].apply(list)
    assert nfe["Diffusion", "all"] == [0, 2, 4, 6, 8, 10, 11]
    assert nfe["Discriminator Flow", "all"] == [0, 1, 2, 3]
    assert nfe["Discriminator Flow", "first 1 steps"] == [0, 1]
    assert set(table["checkpoint"]) == {str(runs["edm"]), str(runs["discr_flow"])}
    with Image.open(animation) as frames:
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(frames)]
    assert sum(durations) == 11 * 500 + 2000  # NFE 0 to 11; frames that are alike are merged
    assert durations[-1] >= 2000


def test_what_cannot_be_drawn_is_refused(
    runs: dict[str, Path], run, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {
        ("generation.py", runs["gan"]): "GAN: a generator makes a sample from noise of another shape",
        ("generation.py", runs["edm"], "--animate", "a.mp4"): "a name that ends in .gif or .webp",
        ("samples.py", runs["discr_flow"], "--nfe", 9): "NFE 9 is beyond the 3 sampling steps",
        ("samples.py", runs["gan"], "--split", "tset"): "unknown split 'tset'; did you mean 'test'",
        ("interpolate.py", runs["gan"], "--method", "circular"): "unknown interpolation 'circular'",
        ("interpolate.py", runs["gan"], "-o", "nowhere/x"): "there is no folder nowhere",
    }
    for words, message in wrong.items():
        assert run(*words) == 2
        assert message in capsys.readouterr().err


def test_a_webp_may_show_points(runs: dict[str, Path], run, tmp_path: Path) -> None:
    words = [runs["points"], "--animate", tmp_path / "a.webp", "-o", tmp_path / "p"]
    assert run("generation.py", *words) == 0
    with Image.open(tmp_path / "a.webp") as frames:
        assert frames.n_frames == 5


def test_interpolations_share_their_ends(runs: dict[str, Path]) -> None:
    methods = ["linear", "spherical", "cauchy-linear", "spherical-cauchy-linear"]
    figure, table = interpolation_figure(shown(runs["discr_flow"]), methods, 2, 5, seed=0)
    assert table["method"].tolist() == methods
    assert set(table["nfe"]) == {3}
    drawn = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    side = drawn[0].shape[1] // 5
    for other in drawn[1:]:
        for end in (slice(None, side), slice(-side, None)):
            np.testing.assert_allclose(other[:, end], drawn[0][:, end], atol=1e-3)
        assert np.abs(other - drawn[0]).max() > 0.02


def test_interpolations_are_written(runs: dict[str, Path], run, tmp_path: Path) -> None:
    words = ["--method", "linear", "spherical", "--rows", 2, "--columns", 3, "-o", tmp_path / "i"]
    assert run("interpolate.py", runs["points"], runs["gan"], *words) == 0
    assert assert_written(tmp_path / "i")["method"].tolist() == ["linear", "spherical"] * 2


def test_effective_modes_are_the_exponential_of_the_entropy() -> None:
    assert effective_modes(torch.tensor([7, 7, 7, 7])) == pytest.approx(4)
    assert effective_modes(torch.tensor([0, 5, 0])) == pytest.approx(1)
    assert effective_modes(torch.tensor([1, 3])) == pytest.approx(4 / 3**0.75)
    assert effective_modes(torch.tensor([0, 0])) == 0


def test_real_data_cover_their_modes() -> None:
    mixture = GaussiansConfig(name="gaussians", modes=4, samples=20_000)
    modes = modes_of(mixture)
    assert modes is not None
    assert modes.of(torch.cat([mixture.means, torch.zeros(1, 2)])).tolist() == [0, 1, 2, 3, 4]
    shares = torch.bincount(modes.of(mixture.load(0).test)) / 20_000
    beyond = np.exp(-4.5)  # of a 2-D Gaussian, beyond 3 std
    expected = torch.tensor([(1 - beyond) / 4] * 4 + [beyond])
    assert ((shares - expected).abs() < 4 * (expected * (1 - expected) / 20_000).sqrt()).all()
    digits = DigitsConfig(name="digits")
    modes = modes_of(digits)
    assert modes is not None
    counts = torch.bincount(modes.of(to_float(digits.load(0).test)), minlength=11)
    assert counts[10] < 0.1 * counts.sum()
    assert effective_modes(counts[:10]) > 8.5


def test_the_coverage_of_a_collapsed_model_shows(
    runs: dict[str, Path], run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("samples.py", runs["points"], "--counted", 300, "-o", tmp_path / "s") == 0
    assert_written(tmp_path / "s")
    table = assert_written(tmp_path / "s_modes")
    assert table.groupby("label")["share"].sum().tolist() == pytest.approx([1, 1])
    data = table[table["label"] == "data"]
    assert (data["effective_modes"] > 4.9).all()
    assert data["samples"].tolist() == [2000] * 6
    model = table[table["label"] != "data"]
    assert set(model["samples"]) == {300}
    share = model["share"]
    assert model["standard_error"].tolist() == pytest.approx((share * (1 - share) / 300).pow(0.5).tolist())

    with caplog.at_level(logging.WARNING):
        assert run("samples.py", runs["points"], runs["gan"], "--n", 4, "-o", tmp_path / "mixed") == 0
    assert "no coverage of modes: the models were trained on different data" in caplog.text
    assert len(assert_written(tmp_path / "mixed")) == 2
    assert not (tmp_path / "mixed_modes.csv").exists()
