"""Feature networks in local files: DINOv2 against PyTorch's own layers, TorchScript, and errors."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from examples import IMAGE_MODELS, IMAGES, experiment_of
from safetensors.torch import save_file
from torch import Tensor, nn

from gpm_tune.errors import UserError
from gpm_tune.metrics import FeatureExtractor, check_features
from gpm_tune.metrics.dinov2 import Block, DinoV2
from gpm_tune.training import Experiment, Trainer

WIDTH, DEPTH = 128, 2  # two heads


def random_weights(registers: int, grid: int = 5) -> dict[str, Tensor]:
    """Of a small network, named as the published ones are, by Meta's list of keys."""
    rng = torch.Generator().manual_seed(0)
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + grid**2, WIDTH),
        "mask_token": (1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, 14, 14),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    if registers:
        shapes["register_tokens"] = (1, registers, WIDTH)
    for index in range(DEPTH):
        inner = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
        for name, (outputs, inputs) in inner.items():
            shapes[f"blocks.{index}.{name}.weight"] = (outputs * WIDTH, inputs * WIDTH)
            shapes[f"blocks.{index}.{name}.bias"] = (outputs * WIDTH,)
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"blocks.{index}.{name}"] = (WIDTH,)
    return {name: 0.1 * torch.randn(shape, generator=rng) for name, shape in shapes.items()}


def images(n: int = 3, channels: int = 3, side: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def scripted(file: Path, module: nn.Module) -> Path:
    with warnings.catch_warnings():  # TorchScript is on its way out, and still what many networks come as
        warnings.simplefilter("ignore")
        torch.jit.script(module).save(str(file))
    return file


class Colours(nn.Module):
    """The mean of each channel, weighted."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.mean((2, 3))


def test_a_block_is_pytorchs_encoder_layer() -> None:
    block = Block(WIDTH)
    theirs = nn.TransformerEncoderLayer(
        WIDTH, 2, 4 * WIDTH, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    ).eval()
    names = {
        "self_attn.in_proj_": "attn.qkv.",
        "self_attn.out_proj.": "attn.proj.",
        "linear1.": "mlp.fc1.",
        "linear2.": "mlp.fc2.",
    }
    state = theirs.state_dict()
    for old, new in names.items():
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    block.load_state_dict(state | {"ls1.gamma": torch.ones(WIDTH), "ls2.gamma": torch.ones(WIDTH)})
    tokens = torch.randn(3, 7, WIDTH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(block(tokens), theirs(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("registers", [0, 4])
def test_without_its_blocks_the_network_has_the_class_token_alone(registers: int) -> None:
    weights = random_weights(registers)
    for name in weights:
        if name.endswith("gamma"):
            weights[name].zero_()
    found = DinoV2.of(weights)(images() / 2 + 0.5)
    first = weights["cls_token"][0] + weights["pos_embed"][:, 0]
    expected = nn.functional.layer_norm(first, (WIDTH,), weights["norm.weight"], weights["norm.bias"], 1e-6)
    torch.testing.assert_close(found, expected.expand(3, -1))


@pytest.mark.parametrize("registers", [0, 4])
def test_registers_and_places_of_patches_matter(registers: int) -> None:
    weights, x = random_weights(registers), images(side=224) / 2 + 0.5
    found = DinoV2.of(weights)(x)
    assert (found - DinoV2.of(weights)(x.flip(3))).abs().max() > 1e-5
    if registers:  # which have no order
        tokens = weights["register_tokens"]
        reordered, others = (DinoV2.of(weights | {"register_tokens": tokens.flip(d)})(x) for d in (1, 2))
        torch.testing.assert_close(reordered, found, rtol=1e-4, atol=1e-5)
        assert (found - others).abs().max() > 1e-5


@pytest.mark.parametrize("registers", [0, 4])
def test_positions_that_vary_linearly_stay_so_when_they_are_interpolated(registers: int) -> None:
    weights, side = random_weights(registers, grid=37), 37
    ramp = (torch.arange(side) + 0.5) / side
    weights["pos_embed"][:, 1:] = ramp.repeat(side, 1).flatten()[None, :, None]
    found = DinoV2.of(weights)._positions().unflatten(1, (16, 16))[0, :, 2:-2, 0]
    expected = (torch.arange(16) + 0.5) / 16
    torch.testing.assert_close(found, expected[2:-2].expand(16, -1), atol=0.01, rtol=0)


def test_dinov2_from_a_file_takes_grey_images_of_any_size(tmp_path: Path) -> None:
    file = tmp_path / "dinov2_tiny.safetensors"
    save_file(random_weights(0), file)
    extract = FeatureExtractor(file, None, "cpu")
    grey = images(2, 1, 16)
    found = extract(grey)
    assert found.shape == (2, WIDTH)
    torch.testing.assert_close(found, extract(grey.expand(-1, 3, -1, -1)))
    torch.testing.assert_close(found[:1], extract(grey[:1]))


def test_torchscript_sees_images_between_0_and_1_in_colour(tmp_path: Path) -> None:
    extract = FeatureExtractor(scripted(tmp_path / "colours.pt", Colours()), None, "cpu")
    grey = images(60, 1)
    expected = (grey / 2 + 0.5).mean((2, 3)).expand(-1, 3)
    torch.testing.assert_close(extract(grey), expected)


def test_the_cache_goes_by_the_weights_and_not_by_the_files_name(tmp_path: Path) -> None:
    keys = []
    for weight in (1.0, 1.0, 2.0):
        (tmp_path / str(len(keys))).mkdir()
        file = scripted(tmp_path / str(len(keys)) / "colours.pt", Colours(weight))
        keys.append(FeatureExtractor(file, None, "cpu").key(images()))
    assert all(key.startswith("colours.pt-") for key in keys)
    assert keys[0] != keys[2]


def test_what_is_no_feature_network_is_refused_with_a_way_out(tmp_path: Path) -> None:
    others = tmp_path / "others.safetensors"
    save_file({"weight": torch.zeros(3)}, others)
    lacking = tmp_path / "lacking.safetensors"
    save_file({k: v for k, v in random_weights(0).items() if k != "norm.bias"}, lacking)
    text = tmp_path / "text.pt"
    text.write_text("<!DOCTYPE html>")
    for file, said in (
        (tmp_path / "nothing.pt", "is not a file"),
        (others, "no feature network is in"),
        (lacking, "no feature network is in"),
        (text, "no feature network is in"),
        (scripted(tmp_path / "pixels.pt", nn.Identity()), r"gives \(2, 3, 32, 32\), not features"),
    ):
        with pytest.raises(UserError, match=said) as error:
            check_features(file, None)
        sentence, advice = str(error.value).split("\nhelp: ")
        assert sentence.startswith("evaluation.features: ")
        assert str(file) in sentence
        assert sentence.isprintable()
        assert advice.startswith("give the path of DINOv2's weights")


def test_a_mistyped_network_is_no_file() -> None:
    with pytest.raises(
        ValueError, match=r"'smal': did you mean 'small'\? valid: inception, small, or a file"
    ):
        experiment_of(**{**IMAGES, "model": IMAGE_MODELS["gan"]}, evaluation__features="smal")


def test_training_measures_by_a_file_and_names_it(tmp_path: Path) -> None:
    file = scripted(tmp_path / "colours.pt", Colours())
    evaluation = {**IMAGES["evaluation"], "features": str(file), "metrics": ["kid"]}
    experiment = experiment_of(**{**IMAGES, "model": IMAGE_MODELS["gan"], "evaluation": evaluation})
    assert experiment.features == "colours.pt"
    again = Experiment.model_validate(experiment.model_dump(mode="json"))
    assert again.feature_network == experiment.feature_network == file
    found = Trainer(experiment, cache=tmp_path / "cache").run_interval()
    assert found is not None
    assert set(found.measured.metrics) == {"kid"}
    (kept,) = (tmp_path / "cache").glob("*.safetensors")
    assert kept.name.startswith("features-colours.pt-")
