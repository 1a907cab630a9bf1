"""Figures 8 to 12: particles, where their flow points, and what they descend."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from examples import IMAGES, KERNEL_FLOW, MODELS, POINTS, SMALL_MLP, experiment_of
from PIL import Image

from gpm_tune.analysis.particles import (
    PIXELS,
    choose,
    new_scene,
    over_inference,
    over_training,
    take,
)
from gpm_tune.analysis.particles_figure import draw, table
from gpm_tune.analysis.retraining import Origin, find_origin
from gpm_tune.errors import UserError
from gpm_tune.models.flows.score import ScoreDifference
from gpm_tune.sampling.grids import NoiseRange
from gpm_tune.study.storage.home import Home
from gpm_tune.training import Experiment, Trainer

sys.path.append(str(Path(__file__).parents[2] / "analysis"))
import gaussians


def origin_of(**changes: Any) -> Origin:
    return Origin("small.yaml", experiment_of(**changes), None)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("spacing", ["even", "geometric", None])
def test_steps_run_from_the_first_to_the_last(spacing: Any) -> None:
    for changes, multiple in (({}, 1), ({"model": MODELS["gan"], "training__steps": 301}, 2)):
        scene = new_scene(origin_of(**changes), 10, 0, None)
        steps = choose(scene, 6, spacing)
        assert steps[0] == 0
        assert steps[-1] == scene.steps
        assert steps == sorted(set(steps))
        assert all(step % multiple == 0 for step in steps[:-1]), "right after a generator's update"
    assert len(steps) == 6


def test_a_free_particle_moves_along_its_arrow() -> None:
    """Euler's step between neighbouring panels: x + (η/N) ∇h, with the NFE that it has cost."""
    for experiment in (experiment_of(), Experiment.model_validate(KERNEL_FLOW)):
        scene = new_scene(Origin("small.yaml", experiment, None), 50, 0, None)
        model = Trainer(experiment).model
        n = model.steps
        snapshots = over_inference(model, scene, range(n + 1))
        assert [s.moment["nfe"] for s in snapshots] == list(range(n + 1))
        assert [s.moment["t"] for s in snapshots] == [i / n for i in range(n + 1)]
        for before, after in pairwise(snapshots):
            moved = before.x + model.schedule.eta / n * before.arrows["direction"]
            torch.testing.assert_close(after.x, moved, atol=1e-5, rtol=1e-4)


def test_the_background_is_what_the_arrows_descend() -> None:
    experiment = experiment_of()
    scene = new_scene(Origin("small.yaml", experiment, None), 20, 0, None)
    model = Trainer(experiment).model
    (snapshot,) = over_inference(model, scene, [1])
    line = torch.linspace(-snapshot.half, snapshot.half, PIXELS)
    t = torch.tensor([0.25])
    at = torch.stack([line[70], line[20]])[None]
    torch.testing.assert_close(snapshot.loss[20, 70], model.flow.particle_loss(at, t)[0].detach())
    step = 1e-2
    for axis in range(2):
        shift = torch.eye(2)[axis] * step
        times = t.expand(len(snapshot.x))
        ahead, behind = (model.flow.particle_loss(snapshot.x + s, times) for s in (shift, -shift))
        slope = ((ahead - behind) / (2 * step)).detach()
        torch.testing.assert_close(snapshot.arrows["direction"][:, axis], -slope, atol=2e-4, rtol=0.05)


def test_noise_levels_have_no_direction_at_their_end() -> None:
    experiment = experiment_of(model=MODELS["edm"])
    scene = new_scene(Origin("small.yaml", experiment, None), 10, 0, None)
    first, last = over_inference(Trainer(experiment).model, scene, [0, 4])
    assert first.moment["sigma"] == pytest.approx(40.0)
    assert first.arrows
    assert first.loss is None
    assert first.half > 40, "the prior lies within the frame"
    assert (last.moment["sigma"], last.moment["nfe"], last.arrows) == (0.0, 7, {})
    assert draw(scene, [first, last]).axes[1].get_title() == "σ = 0, NFE 7\nend of the path"


@pytest.mark.parametrize("name", ["gan", "mmd_generator"])
def test_training_again_gives_what_training_gave(name: str, tmp_path: Path) -> None:
    """Bit for bit, although the run was evaluated on its way and the figure's is not."""
    origin = origin_of(model=MODELS[name])
    run = Trainer(origin.experiment)
    while not run.done:
        run.run_interval()
    scene = new_scene(origin, 30, 0, None)
    again = Trainer(origin.experiment)
    before, after = over_training(again, scene, [0, 12])
    for key, value in run.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key]), key
    z = run.model.noise(scene.simulated, rng())
    with torch.no_grad():
        assert torch.equal(after.x, run.model.generator(z)[:30])
    assert not torch.equal(before.x, after.x)
    assert (after.loss is not None) == (name == "gan")
    assert after.moment["generator_updates"] == 12 // run.model.flow_steps
    again_on_its_own = take(scene, [12], Home(tmp_path), "cpu")
    assert torch.equal(again_on_its_own[0].x, after.x)


def test_the_two_parts_add_up_to_the_direction(tmp_path: Path) -> None:
    """α σ s_data - β σ s_gen at x + σn (19)."""
    noise = NoiseRange(sigma_min=0.1, sigma_max=2.0)
    flow = ScoreDifference(
        torch.nn.Identity(),
        lambda x, _: 0.2 * x,
        noise,
        alpha=2.0,
        beta=0.5,
        stochastic=0.0,
    )
    flow.network.forward = lambda x, _: 0.6 * x
    x = torch.randn(8, 2, generator=rng())
    draws = rng()
    sigma = noise.at(torch.rand(8, generator=draws))
    noised = x + sigma[:, None] * torch.randn(8, 2, generator=draws)
    data, generated = flow.scaled_scores(noised, sigma)
    torch.testing.assert_close(data, -0.8 * noised / sigma[:, None])
    torch.testing.assert_close(generated, -0.4 * noised / sigma[:, None])
    torch.testing.assert_close(flow.direction(x, None, rng()), 2.0 * data - 0.5 * generated)

    scene = new_scene(origin_of(model=MODELS["score_gan"]), 30, 0, 0.5)
    plain, split = (
        take(new_scene(scene.origin, 30, 0, level), [0, 12], Home(tmp_path), "cpu")[1]
        for level in (None, 0.5)
    )
    assert set(plain.arrows) == {"direction"}
    assert set(split.arrows) == {"data_score", "generated_score"}
    assert (split.x - plain.x).std().item() == pytest.approx(0.5, rel=0.3)
    rows = table(scene, [split])
    assert (rows["kind"].value_counts() == 30).all()
    assert {"data_score_x", "generated_score_y", "noise", "generator_updates"} <= set(rows)


def test_the_script_writes_stills_and_an_animation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(POINTS))
    movie = tmp_path / "movie.gif"
    gaussians.main(
        str(file), tmp_path / "out.png", panels=3, count=20, animation=movie, frames=60, device="cpu",
        home=tmp_path, overrides=["training.steps=4"],
    )  # fmt: skip
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [str(tmp_path / f"out.{end}") for end in ("csv", "png", "svg")] + [
        str(movie)
    ]
    assert "training: step 4 of 4" in captured.err
    with Image.open(movie) as picture:
        assert picture.n_frames == 5, "the start, and each of 4 steps"
    rows = pd.read_csv(tmp_path / "out.csv")
    generated = rows[rows["kind"] == "generated"]
    assert list(generated.groupby("panel")["t"].first()) == [0.0, 0.5, 1.0]
    assert set(generated["solver"]) == {"euler"}
    assert (generated["training_steps"] == 4).all()


def test_what_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    image = Origin("digits.yaml", experiment_of(**IMAGES), None)
    with pytest.raises(UserError, match=r"its data, 'digits', have the shape \(1, 16, 16\)"):
        new_scene(image, 10, 0, None)
    with pytest.raises(UserError, match=r"small.yaml is a 'gan'"):
        new_scene(origin_of(model=MODELS["gan"]), 10, 0, 0.5)
    with pytest.raises(UserError, match="validation data have 2000 points"):
        new_scene(origin_of(), 5000, 0, None)
    with pytest.raises(UserError, match=r"nothing has been tracked|neither a study"):
        find_origin(Home(tmp_path), "nothing", [])
    with pytest.raises(UserError, match="is a run, whose experiment is what it is"):
        find_origin(Home(tmp_path), "a_study", ["seed=1"])
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({**POINTS, "model": {**MODELS["gan"], "generator": SMALL_MLP}}))
    with pytest.raises(UserError, match=r"--at 13: the last training step of .* is 12"):
        gaussians.main(str(file), tmp_path / "out", at=[0, 13], home=tmp_path)
