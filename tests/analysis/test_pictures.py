"""Pictures of samples, processes and interpolations: what they show, and where it came from."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageSequence

from gpm_tune.analysis.coverage import effective_modes, modes_of
from gpm_tune.analysis.pictures import Shown, interpolation_figure, load_shown, samples_figure
from gpm_tune.analysis.process import choose, first, process_figure, simulate
from gpm_tune.analysis.subjects import find_subjects
from gpm_tune.data import DigitsConfig, GaussiansConfig, to_float
from gpm_tune.errors import UserError
from gpm_tune.study.storage.home import Home
from gpm_tune.training.pictures import tile


@pytest.fixture
def run(run_script: Callable[..., int], tmp_path: Path) -> Callable[..., int]:
    """Run a script on the CPU, with an empty home; returns its exit code."""
    return lambda name, *words: run_script(name, *words, "--device", "cpu", "--home", tmp_path)


def shown(*folders: Path, nfe: int | None = None) -> list[Shown]:
    return load_shown(find_subjects(Home(folders[0]), [str(folder) for folder in folders]), nfe, "cpu")


def assert_written(output: Path) -> pd.DataFrame:
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in output.with_suffix(".svg").read_text()
    return pd.read_csv(output.with_suffix(".csv"))


def test_panels_show_the_samples_of_the_seed(models: dict[str, Path]) -> None:
    shows = shown(models["edm"], models["gan"], nfe=5)
    figure, table = samples_figure(shows, 6, 3, seed=4)
    assert table[["label", "solver", "nfe", "seed", "samples"]].to_numpy().tolist() == [
        ["EDM", "heun", 5, 4, 6],
        ["GAN", "generator", 1, 4, 6],
    ]
    assert table["sampling_steps"][0] == 3
    assert pd.isna(table["sampling_steps"][1])
    for model, axes in zip(shows, figure.axes, strict=True):
        expected = tile(model.sampler.draw(6, 4)[1], 3).permute(1, 2, 0)
        assert np.array_equal(axes.images[0].get_array(), expected)


def test_points_beyond_the_frame_are_drawn_on_its_edge(models: dict[str, Path]) -> None:
    (model,) = shown(models["points"])
    process = simulate(model, 50, 4, seed=0)
    far = process.states[0]._replace(x=process.states[0].x * 1000)
    figure, _ = process_figure([choose(process, 1), type(process)(model, [far])], seed=0)
    axes = next(each for each in reversed(figure.axes) if each.get_visible())
    points = np.concatenate([cloud.get_offsets() for cloud in axes.collections[1:]])
    low, high = np.transpose([axes.get_xlim(), axes.get_ylim()])
    assert len(points) == 50
    assert ((points >= low - 1e-5) & (points <= high + 1e-5)).all()


def test_particles_that_interact_are_simulated_in_company(models: dict[str, Path]) -> None:
    shows = shown(models["kernel"], models["points"])
    _, table = samples_figure(shows, 7, 1, seed=0)
    assert table["samples"].tolist() == [7, 7]
    assert table["simulated"].tolist() == [500, 7]
    few, many = (simulate(shows[0], n, 4, seed=0).states[-1].x[:3] for n in (3, 500))
    assert torch.equal(few, many)


def test_columns_spread_over_the_process(models: dict[str, Path]) -> None:
    edm, flow = (simulate(each, 2, 4, seed=1) for each in shown(models["edm"], models["discr_flow"]))
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
    models: dict[str, Path], run: Callable[..., int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = [f"Diffusion={models['edm']}", models["discr_flow"], models["gan"]]
    animation = tmp_path / "a.gif"
    assert run("generation.py", *words, "--first", 1, "--animate", animation, "-o", tmp_path / "p") == 0
    assert "left out: GAN: a generator makes a sample from noise of another shape" in caplog.text
    assert run("generation.py", *words, tmp_path, "-o", tmp_path / "p") == 2  # a slip is not passed over
    table = assert_written(tmp_path / "p")
    nfe = table.groupby(["label", "part"], sort=False)["nfe"].apply(list)
    assert nfe["Diffusion", "all"] == [0, 2, 4, 6, 8, 10, 11]
    assert nfe["Discriminator Flow", "all"] == [0, 1, 2, 3]
    assert nfe["Discriminator Flow", "first 1 steps"] == [0, 1]
    assert set(table["checkpoint"]) == {str(models["edm"]), str(models["discr_flow"])}
    with Image.open(animation) as frames:
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(frames)]
    assert sum(durations) == 11 * 500 + 2000  # NFE 0 to 11; frames that are alike are merged
    assert durations[-1] >= 2000


def test_what_cannot_be_drawn_is_refused(
    models: dict[str, Path], run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {
        ("generation.py", models["gan"]): "GAN: a generator makes a sample from noise of another shape",
        ("generation.py", models["edm"], "--animate", "a.mp4"): "a name that ends in .gif or .webp",
        ("samples.py", models["discr_flow"], "--nfe", 9): "NFE 9 is beyond the 3 sampling steps",
        ("samples.py", models["gan"], "--split", "tset"): "unknown split 'tset'; did you mean 'test'",
        ("interpolate.py", models["gan"], "--method", "circular"): "unknown interpolation 'circular'",
        ("interpolate.py", models["gan"], "-o", "nowhere/x"): "there is no folder nowhere",
    }
    for words, message in wrong.items():
        assert run(*words) == 2
        assert message in capsys.readouterr().err


def test_a_webp_may_show_points(models: dict[str, Path], run: Callable[..., int], tmp_path: Path) -> None:
    words = [models["points"], "--animate", tmp_path / "a.webp", "-o", tmp_path / "p"]
    assert run("generation.py", *words) == 0
    with Image.open(tmp_path / "a.webp") as frames:
        assert frames.n_frames == 5


def test_interpolations_share_their_ends(models: dict[str, Path]) -> None:
    methods = ["linear", "spherical", "cauchy-linear", "spherical-cauchy-linear"]
    figure, table = interpolation_figure(shown(models["discr_flow"]), methods, 2, 5, seed=0)
    assert table["method"].tolist() == methods
    assert set(table["nfe"]) == {3}
    drawn = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    side = drawn[0].shape[1] // 5
    for other in drawn[1:]:
        for end in (slice(None, side), slice(-side, None)):
            np.testing.assert_allclose(other[:, end], drawn[0][:, end], atol=1e-3)
        assert np.abs(other - drawn[0]).max() > 0.02


def test_interpolations_are_written(models: dict[str, Path], run: Callable[..., int], tmp_path: Path) -> None:
    words = ["--method", "linear", "spherical", "--rows", 2, "--columns", 3, "-o", tmp_path / "i"]
    assert run("interpolate.py", models["points"], models["gan"], *words) == 0
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
    models: dict[str, Path], run: Callable[..., int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("samples.py", models["points"], "--counted", 300, "-o", tmp_path / "s") == 0
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
        assert run("samples.py", models["points"], models["gan"], "--n", 4, "-o", tmp_path / "mixed") == 0
    assert "no coverage of modes: the models were trained on different data" in caplog.text
    assert len(assert_written(tmp_path / "mixed")) == 2
    assert not (tmp_path / "mixed_modes.csv").exists()
