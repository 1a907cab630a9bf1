"""`gpm-tune init`: for every model and data set a file that loads, builds, and says what its keys mean."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gpm_tune.data import DataConfig
from gpm_tune.documents import Document
from gpm_tune.errors import UserError
from gpm_tune.models import ModelConfig
from gpm_tune.plugins import members, name_of
from gpm_tune.study.definition.specification import StudyConfig, load_study
from gpm_tune.study.starting.commented import WIDTH, CommentedStudy
from gpm_tune.study.starting.starter import starter, write_starter
from gpm_tune.training.description import describe

MODELS = [*((name_of(model), False) for model in members(ModelConfig)), ("kernel_flow", True)]
DATA = [name_of(data) for data in members(DataConfig)]
# Points and images for every model; every data set for the one that has the networks of all the others.
PAIRS = [
    (model, generator, data)
    for model, generator in MODELS
    for data in DATA
    if data in ("gaussians", "digits") or model == "score_gan"
]
SWITCHED_OFF = re.compile(r"^( *)#(?=[a-z_]+: )", re.MULTILINE)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with as many pictures as are needed."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(20):
        Image.new("RGB", (40, 36), (index, 2 * index, 255 - index)).save(folder / f"{index}.png")
    return folder


def study_in(path: Path) -> StudyConfig:
    return load_study(Document.load(path))


@pytest.mark.parametrize(("model", "generator", "data"), PAIRS, ids=str)
def test_every_pair_loads_builds_and_can_be_extended(
    model: str, generator: bool, data: str, pictures: Path, tmp_path: Path
) -> None:
    root = pictures if data == "folder" else None
    path = tmp_path / f"{model}.yaml"
    begun = write_starter(path, model, data, root=root, generator=generator, gpu=False, force=False)
    study = study_in(path)
    assert study == StudyConfig.model_validate(begun.tree)
    assert study.name == model
    experiment = study.experiment
    assert (experiment.model.name, experiment.data.name) == (model, data)
    assert (getattr(experiment.model, "generator", None) is not None) == (
        generator or model in ("gan", "score_gan")
    )
    assert study.resources.gpu == 0
    if experiment.teacher is not None:
        assert (
            experiment.teacher
            == StudyConfig.model_validate(starter("x", "edm", data, root=root).tree).experiment
        )
    assert describe(experiment).nfe >= 1

    text = path.read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= WIDTH
    switched_on, count = SWITCHED_OFF.subn(r"\1", text)
    assert count == len(begun.off)
    path.write_text(switched_on, encoding="utf-8")
    extended = study_in(path)
    assert extended.confirm is not None
    assert extended.constraints
    assert extended.resources.gpu > 0
    with_gpu = starter(model, model, data, root=root, generator=generator, gpu=True)
    small = data in ("gaussians", "digits")
    assert ("gpu" in with_gpu.tree["resources"]) is begun.lacks_gpu is not small


def test_each_key_that_is_switched_off_is_valid_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    write_starter(path, "score_gan", "mnist", root=None, generator=False, gpu=False, force=False)
    text = path.read_text(encoding="utf-8")
    base = study_in(path)
    for place in SWITCHED_OFF.finditer(text):
        path.write_text(text[: place.end() - 1] + text[place.end() :], encoding="utf-8")
        assert study_in(path) != base, place


def test_every_key_has_its_description() -> None:
    begun = starter("x", "gan", "digits")
    lines = CommentedStudy(begun.tree, begun.off).text("header").splitlines()
    assert "  data:  # The data set that the model learns." in lines
    assert "    discriminator_steps: 1" in lines
    above = lines[lines.index("    discriminator_steps: 1") - 1]
    assert above.startswith("    # ")
    bare = [
        line
        for before, line in pairwise(lines)
        if line.strip() and "#" not in line and not before.lstrip().startswith("# ")
    ]
    assert bare == []


def test_inference_only_keys_say_so() -> None:
    begun = starter("x", "edm", "gaussians")
    text = CommentedStudy(begun.tree, begun.off).text("header")
    lines = text.splitlines()
    steps = "N: steps of the solver from σ_max to the grid's end. Inference-only."
    assert f"    sampling_steps: 28  # {steps}" in lines
    assert "  evaluation:  # When and how to measure. Inference-only." in lines
    (rho,) = (index for index, line in enumerate(lines) if "model.sampling_noise.rho:" in line)
    assert lines[rho - 1].endswith("denser near sigma_min. Inference-only."), "a key below one is one"
    assert "Learning rate.\n" in text


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown model": ({"model": "gam", "data": "digits"}, "unknown model; did you mean 'gan'?"),
    "unknown data": ({"model": "gan", "data": "minst"}, "unknown data set; did you mean 'mnist'?"),
    "no root": ({"model": "gan", "data": "folder"}, "name it with --root FOLDER"),
    "a root for nothing": (
        {"model": "gan", "data": "digits", "root": Path("x")},
        "data set 'digits' is not in a folder",
    ),
    "no generator": ({"model": "edm", "data": "digits", "generator": True}, "'edm' has no generator"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(case: str) -> None:
    arguments, message = REFUSED[case]
    with pytest.raises(UserError, match=re.escape(message)):
        starter("x", **arguments)


def test_a_name_that_no_study_may_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name"):
        write_starter(
            tmp_path / "my study.yaml", "gan", "digits", root=None, generator=False, gpu=False, force=False
        )
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_unless_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("mine")
    with pytest.raises(UserError, match="--force"):
        write_starter(path, "gan", "digits", root=None, generator=False, gpu=False, force=False)
    assert path.read_text() == "mine"
    write_starter(path, "gan", "digits", root=None, generator=False, gpu=False, force=True)
    assert study_in(path).name == "x"
