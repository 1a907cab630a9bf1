"""What checkpoints generate: at which NFE, measured how, interpolated between what."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples import experiment_of, spoilt

from gpm_tune.errors import UserError
from gpm_tune.training import Trainer
from gpm_tune.training.generation import (
    interpolate,
    load_sampler,
    takes_solver,
    write_interpolation,
    write_samples,
)
from gpm_tune.training.pictures import most_images
from gpm_tune.training.saved import SavedModel
from gpm_tune.training.sweep import Conditions, evaluate


@pytest.mark.parametrize(
    ("run", "how", "nfe"),
    [
        ("discr_flow", {}, 6),
        ("discr_flow", {"nfe": 4}, 4),
        ("edm", {}, 15),
        ("edm", {"nfe": 32}, 31),
        ("edm", {"nfe": 32, "solver": "euler"}, 32),
        ("edm", {"nfe": 5, "solver": "euler", "steps": 20}, 5),
        ("edm", {"steps": 3}, 5),
        ("edm", {"nfe": 12, "solver": "langevin"}, 12),
        ("gan", {}, 1),
        ("kernel", {"nfe": 3}, 3),
    ],
)
def test_the_nfe_asked_for_is_spent(
    runs: dict[str, SavedModel], run: str, how: dict[str, Any], nfe: int
) -> None:
    found, x = load_sampler(runs[run], **how).draw(20, seed=0)
    assert found == nfe
    assert x.shape == (20, 2)


@pytest.mark.parametrize(
    ("run", "how", "steps", "costs"),
    [
        ("discr_flow", {}, 6, [0, 1, 2, 3, 4, 5, 6]),
        ("discr_flow", {"nfe": 2}, 6, [0, 1, 2]),
        ("edm", {}, 8, [0, 2, 4, 6, 8, 10, 12, 14, 15]),
        ("edm", {"nfe": 4, "solver": "euler"}, 4, [0, 1, 2, 3, 4]),
        ("kernel", {}, 10, list(range(11))),
    ],
)
def test_a_process_leads_from_the_prior_to_the_samples(
    runs: dict[str, SavedModel], run: str, how: dict[str, Any], steps: int, costs: list[int]
) -> None:
    chosen = load_sampler(runs[run], **how)
    states = chosen.process(500, seed=0)
    assert (chosen.sampling_steps, [nfe for nfe, _ in states]) == (steps, costs)
    assert torch.equal(states[-1].x, chosen.draw(500, seed=0)[1])
    prior = chosen.model.schedule.prior
    assert states[0].x.std().item() == pytest.approx(prior.std, rel=0.1)


def test_a_generator_has_no_process(runs: dict[str, SavedModel]) -> None:
    with pytest.raises(UserError, match="model 'gan' has no process of generation"):
        load_sampler(runs["gan"]).process(4, seed=0)
    assert load_sampler(runs["gan"]).sampling_steps is None


def test_samples_follow_the_seed(runs: dict[str, SavedModel]) -> None:
    chosen = load_sampler(runs["edm"], nfe=7)
    assert torch.equal(chosen.draw(5, seed=1)[1], chosen.draw(5, seed=1)[1])
    assert not torch.equal(chosen.draw(5, seed=1)[1], chosen.draw(5, seed=2)[1])


@pytest.mark.parametrize(
    ("run", "how", "message"),
    [
        ("discr_flow", {"nfe": 7}, r"NFE 7 is beyond the 6 sampling steps.*valid: 1 to 6"),
        ("discr_flow", {"steps": 12}, r"knows the grid of 6 sampling steps only, not one of 12"),
        (
            "discr_flow",
            {"solver": "dpmpp"},
            r"solver 'dpmpp' of model 'discr_flow': .*valid: ab, euler, heun",
        ),
        ("discr_flow", {"solver": "heun", "nfe": 12}, r"NFE 12 is beyond the 6 .*valid: 1 to 11"),
        (
            "edm",
            {"solver": "rk4"},
            r"solver 'rk4' of model 'edm': unknown name 'rk4'; valid: ab, dpm2, dpmpp",
        ),
        ("edm", {"solver": "ipndm:order=9"}, r"solver 'ipndm:order=9' of model 'edm': order: .*4"),
        ("edm", {"solver": "ipndm:steps=9"}, r"unknown key 'steps'; valid: name, order"),
        ("edm", {"solver": "langevin", "nfe": 2}, r"NFE 2 does not suffice for a step of solver 'langevin'"),
        ("edm", {"steps": 0}, r"0 sampling steps; valid: 1 to 10,000"),
        ("edm", {"steps": 10_001}, r"10,001 sampling steps; valid: 1 to 10,000. Change --nfe or --steps"),
        ("edm", {"solver": "euler", "nfe": 20_000}, r"NFE 20,000: too many steps; valid: 1 to 10,000"),
        ("gan", {"solver": "euler"}, r"model 'gan' samples by its generator: it has no solver"),
        ("gan", {"nfe": 8}, r"NFE 8 is not its 1"),
    ],
)
def test_impossible_requests_are_refused(
    runs: dict[str, SavedModel], run: str, how: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_sampler(runs[run], **how)


@pytest.mark.parametrize("run", ["gan", "edm", "discr_flow"])
def test_interpolations_start_and_end_in_samples(runs: dict[str, SavedModel], run: str) -> None:
    """Of latents or of prior points; neighbours lie closer together than the ends."""
    chosen = load_sampler(runs[run])
    for method in ("linear", "spherical", "cauchy-linear", "spherical-cauchy-linear"):
        x = interpolate(chosen, rows=3, columns=9, seed=4, method=method).x
        assert x.shape == (3, 9, 2)
        noise = torch.randn(2, 3, *chosen.model.noise_shape, generator=torch.Generator().manual_seed(4))
        torch.testing.assert_close(x[:, 0], chosen.transport(noise[0], 4).x, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(x[:, -1], chosen.transport(noise[1], 4).x, atol=1e-4, rtol=1e-4)


def test_unknown_interpolations_are_refused(runs: dict[str, SavedModel]) -> None:
    with pytest.raises(UserError, match="unknown interpolation 'spherica'; did you mean 'spherical'"):
        interpolate(load_sampler(runs["gan"]), rows=1, columns=2, seed=0, method="spherica")


def test_samples_are_written_as_pictures_and_arrays(runs: dict[str, SavedModel], tmp_path: Path) -> None:
    write_samples(load_sampler(runs["images"]), tmp_path / "grid.png", n=4, seed=0)
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    write_samples(load_sampler(runs["edm"], nfe=7), tmp_path / "x.npz", n=4, seed=3)
    stored = np.load(tmp_path / "x.npz")
    assert stored["samples"].shape == (4, 2)
    assert (int(stored["nfe"]), int(stored["seed"])) == (7, 3)
    write_interpolation(
        load_sampler(runs["images"]), tmp_path / "row.png", rows=2, columns=3, seed=0, method="linear"
    )
    assert (tmp_path / "row.png").read_bytes().startswith(b"\x89PNG")
    for name, message in (("x.jpg", "ends in .png or .npz"), ("no/x.png", "there is no folder")):
        with pytest.raises(UserError, match=message):
            write_samples(load_sampler(runs["edm"]), tmp_path / name, n=4, seed=0)


def test_a_picture_shows_no_more_images_than_memory_and_people_take(
    runs: dict[str, SavedModel], tmp_path: Path
) -> None:
    images, file = load_sampler(runs["images"]), tmp_path / "x.png"
    with pytest.raises(UserError, match=r"at most 1,000 images of 16 × 16, not 1,001\nhelp: .*x\.npz"):
        write_samples(images, file, n=1001, seed=0)
    with pytest.raises(UserError, match=r"at most 1,000 images of 16 × 16, not 1,040"):
        write_interpolation(images, file, rows=40, columns=26, seed=0, method="linear")
    assert not file.exists()
    assert [most_images((3, side, side)) for side in (64, 256, 1024)] == [1000, 256, 16]
    write_samples(load_sampler(runs["gan"]), file, n=1001, seed=0)
    assert file.exists(), "points are not bounded"


def test_before_an_evaluation_the_last_weights_are_sampled(tmp_path: Path) -> None:
    Trainer(experiment_of()).save(tmp_path)
    saved = SavedModel.at(tmp_path)
    assert (saved.step, saved.weights) == (0, "last")
    assert load_sampler(saved).draw(3, seed=0).x.shape == (3, 2)


def test_images_are_within_the_range_of_data(runs: dict[str, SavedModel], tmp_path: Path) -> None:
    """An EDM overshoots; what is still on its way is left as it is."""
    chosen = load_sampler(runs["images"])
    end = chosen.process(8, seed=0)[-1].x
    assert end.abs().max() > 1, "the case is one"
    write_samples(chosen, tmp_path / "x.npz", n=8, seed=0)
    assert np.array_equal(np.load(tmp_path / "x.npz")["samples"], end.clamp(-1, 1))
    write_interpolation(chosen, tmp_path / "y.npz", rows=2, columns=3, seed=0, method="linear")
    assert np.abs(np.load(tmp_path / "y.npz")["samples"]).max() <= 1
    assert chosen.draw(8, seed=0).x.abs().max() <= 1


def test_points_are_not_clamped(runs: dict[str, SavedModel]) -> None:
    chosen = load_sampler(runs["edm"])
    end = chosen.process(50, seed=0)[-1].x
    assert torch.equal(chosen.draw(50, seed=0).x, end)
    assert end.abs().max() > 1


@pytest.mark.parametrize("run", ["edm", "gan", "images"])
def test_samples_that_are_not_finite_are_refused(
    runs: dict[str, SavedModel], tmp_path: Path, run: str
) -> None:
    folder = spoilt(runs[run].folder, tmp_path / "spoilt")
    saved = SavedModel.at(folder)
    chosen = load_sampler(saved)
    calls = [
        lambda: chosen.draw(20, seed=0),
        lambda: interpolate(chosen, rows=4, columns=5, seed=0, method="linear"),
        lambda: write_samples(chosen, tmp_path / "x.png", n=20, seed=0),
        lambda: write_samples(chosen, tmp_path / "x.npz", n=20, seed=0),
        lambda: write_interpolation(chosen, tmp_path / "x.npz", rows=4, columns=5, seed=0, method="linear"),
        lambda: evaluate(
            saved,
            nfe=(),
            solvers=(),
            conditions=Conditions("validation", 20, 0, 0),
            cache=tmp_path,
            device="cpu",
        ),
    ]
    if run != "gan":
        calls.append(lambda: chosen.process(20, seed=0))
    for call in calls:
        with pytest.raises(UserError, match=rf"20 of 20 samples are not finite .*{folder}.*NFE \d+.*: try "):
            call()
    assert not list(tmp_path.glob("x.*"))


def test_a_solver_is_left_out_by_its_name_and_not_for_a_mistaken_option(runs: dict[str, SavedModel]) -> None:
    """What is mistyped is refused later, and not passed over in silence."""
    edm, flow = runs["edm"].experiment, runs["discr_flow"].experiment
    assert takes_solver(edm, "ipndm:order=9")
    assert takes_solver(edm, "dpmpp:order=3")
    assert not takes_solver(flow, "dpmpp:order=3")
    with pytest.raises(UserError, match="unknown solver 'rk4'"):
        takes_solver(edm, "rk4")
