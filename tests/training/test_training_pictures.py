"""Pictures of samples: what is in them."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import experiment_of
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gpm_tune.training import Trainer
from gpm_tune.training.generation import load_sampler, write_samples
from gpm_tune.training.pictures import frame, picture
from gpm_tune.training.saved import SavedModel

POINT = (31, 119, 180)  # matplotlib's first colour


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(png)).convert("RGB"))


def drawn(png: bytes) -> int:
    """How many pixels have the colour of points."""
    return int((pixels(png) == POINT).all(-1).sum())


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1))
def test_a_frame_holds_all_points(points: list[tuple[float, float]]) -> None:
    x = torch.tensor(points, dtype=torch.float64)
    low, high = frame(x)
    assert ((x > low) & (x < high)).all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0, 1e5])
def test_points_are_pictured_at_any_scale(scale: float) -> None:
    """The same picture up to the numbers on its axes: nothing is cut off."""
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    one, other = drawn(picture(x)), drawn(picture(scale * x))
    assert other == pytest.approx(one, rel=0.1)
    assert one > 200


def test_the_data_set_the_frame_and_points_outside_are_counted() -> None:
    real = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    inside = picture(real[:10], real=real)
    assert inside == picture(real[:10], real=real)
    assert inside != picture(real[:10]), "the samples alone have another range"
    assert not np.array_equal(pixels(inside)[:40], pixels(picture(100 * real[:10], real=real))[:40]), (
        "a title"
    )
    assert drawn(picture(100 + real[:10], real=real)) == 0


def test_pictures_of_a_run_share_the_frame_of_its_data(tmp_path: Path) -> None:
    trainer = Trainer(experiment_of(data={"name": "gaussians", "samples": 2000, "radius": 10.0}))
    evaluation = trainer.run_interval()
    assert evaluation is not None
    data = trainer.experiment.data.load(trainer.experiment.seed).validation
    assert trainer._framing is not None
    low, high = frame(trainer._framing)
    assert ((data > low) & (data < high)).float().mean() > 0.99
    trainer.save(tmp_path / "run")
    file = tmp_path / "x.png"
    sampler = load_sampler(SavedModel.at(tmp_path / "run"))
    write_samples(sampler, file, n=64, seed=0)
    assert file.read_bytes() == picture(sampler.draw(64, seed=0).x, real=trainer._framing)
