"""What every network owes its role: shapes, sensitivity, independence of samples, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from gpm_tune.networks import DenoiserConfig, DiscriminatorConfig, GeneratorConfig

EMBEDDING, LATENT, BATCH = 8, 6, 3
SHAPES = {
    "mlp": [(2,), (1, 8, 8)],
    "dcgan": [(1, 16, 16), (1, 32, 32), (3, 64, 64)],
    "resnet": [(1, 32, 32), (3, 64, 64)],
    "fastgan": [(1, 32, 32), (3, 64, 64)],
    "unet": [(1, 16, 16), (1, 32, 32), (3, 24, 24)],
}
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"width": 8, "depth": 2},
    "dcgan": {"width": 2},
    "resnet": {"width": 8, "attention_after": (1,)},
    "fastgan": {"width": 2},
    "unet": {"channels": 8, "channel_mult": (1, 2), "blocks": 1},
}
ROLES: dict[str, tuple[Any, list[str]]] = {
    "discriminator": (DiscriminatorConfig, ["mlp", "dcgan", "resnet", "fastgan"]),
    "generator": (GeneratorConfig, ["mlp", "dcgan", "resnet", "fastgan"]),
    "denoiser": (DenoiserConfig, ["mlp", "unet"]),
}


def small(role: str, name: str, **changes: Any) -> Any:
    """PyTorch's initialisation: with small weights differences would drown in rounding."""
    init = {} if name == "unet" else {"init": {"name": "default"}}
    return TypeAdapter(ROLES[role][0]).validate_python({"name": name, **SMALL[name], **init, **changes})


def build(config: Any, role: str, shape: tuple[int, ...], embedding: int = EMBEDDING) -> nn.Module:
    config.check_shape(shape)
    network: nn.Module
    if role == "generator":
        network = config.build_generator(LATENT, shape)
    elif role == "discriminator":
        network = config.build_discriminator(shape, embedding)
    else:
        network = config.build_denoiser(shape, embedding)
    return network


def arguments(role: str, shape: tuple[int, ...], embedding: int = EMBEDDING) -> list[Tensor]:
    if role == "generator":
        return [torch.randn(BATCH, LATENT)]
    x = torch.randn(BATCH, *shape)
    return [x, torch.randn(BATCH, embedding)] if embedding else [x]


CASES = [
    pytest.param(role, name, shape, changes, id="-".join([role, name, str(shape[-1]), *changes.values()]))
    for role, (_, names) in ROLES.items()
    for name in names
    for shape in SHAPES[name]
    for changes in ([{}] if name in ("mlp", "unet") else [{"norm": "none"}, {"norm": "batch"}])
]
every_network = pytest.mark.parametrize(("role", "name", "shape", "changes"), CASES)


@every_network
def test_outputs_have_the_roles_shape_and_gradients_reach_every_parameter(
    role: str, name: str, shape: tuple[int, ...], changes: dict[str, str]
) -> None:
    network = build(small(role, name, **changes), role, shape)
    output = network(*arguments(role, shape))
    assert output.shape == ((BATCH,) if role == "discriminator" else (BATCH, *shape))
    if role == "generator" and name != "mlp":
        assert output.abs().max() < 1
    output.pow(2).sum().backward()
    assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []


@every_network
def test_operations_can_be_counted_without_memory(
    role: str, name: str, shape: tuple[int, ...], changes: dict[str, str]
) -> None:
    with torch.device("meta"):
        network = build(small(role, name, **changes), role, shape)
        output = network(*arguments(role, shape))
    assert output.device.type == "meta"


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("name", ["dcgan", "resnet", "fastgan"])
def test_a_discriminator_without_time_takes_images_alone(name: str, norm: str) -> None:
    shape = SHAPES[name][0]
    network = build(small("discriminator", name, norm=norm), "discriminator", shape, embedding=0)
    assert network(torch.randn(BATCH, *shape)).shape == (BATCH,)
    assert not [key for key, _ in network.named_parameters() if "affine" in key or "modulation" in key]


@pytest.mark.parametrize(
    ("role", "name"), [(role, name) for role in ("discriminator", "denoiser") for name in ROLES[role][1]]
)
def test_the_output_depends_on_the_input_and_on_the_time(role: str, name: str) -> None:
    shape = SHAPES[name][-1]
    network = build(small(role, name), role, shape)
    x, embedding = arguments(role, shape)
    output = network(x, embedding)
    assert not torch.allclose(output, network(x + torch.randn_like(x), embedding))
    assert not torch.allclose(output, network(x, embedding + 1))


@pytest.mark.parametrize("name", ROLES["generator"][1])
def test_different_latents_give_different_samples(name: str) -> None:
    network = build(small("generator", name), "generator", SHAPES[name][-1])
    one, other, _ = network(*arguments("generator", ()))
    assert not torch.allclose(one, other)


@pytest.mark.parametrize(
    ("role", "name"), [(role, name) for role in ("discriminator", "denoiser") for name in ROLES[role][1]]
)
def test_samples_of_a_batch_do_not_influence_each_other_without_batch_norm(role: str, name: str) -> None:
    """The shrinking simulation relies on it."""
    shape = SHAPES[name][-1]
    changes = {"norm": "none"} if "norm" in type(small(role, name)).model_fields else {}
    network = build(small(role, name, **changes), role, shape).double()
    x, embedding = (tensor.double() for tensor in arguments(role, shape))
    torch.testing.assert_close(network(x, embedding)[:2], network(x[:2], embedding[:2]))


@pytest.mark.parametrize(
    ("role", "name", "valid"),
    [
        (role, name, valid)
        for role in ("discriminator", "generator")
        for name, valid in [
            ("dcgan", "16x16, 32x32, 64x64"),
            ("resnet", "32x32, 64x64"),
            ("fastgan", "32x32, 64x64"),
        ]
    ],
)
@pytest.mark.parametrize("shape", [(2,), (1, 28, 28), (1, 32, 64), (32, 32)])
def test_images_of_other_sides_are_refused(role: str, name: str, valid: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"'{name}' takes images of {valid}, the data has the shape"):
        small(role, name).check_shape(shape)


@pytest.mark.parametrize("role", ROLES)
def test_the_name_chooses_the_network(role: str) -> None:
    union, names = ROLES[role]
    assert [small(role, name).name for name in names] == names
    with pytest.raises(ValidationError, match="does not match any of the expected tags"):
        TypeAdapter(union).validate_python({"name": "transformer"})


@pytest.mark.parametrize("name", ["dcgan", "resnet", "fastgan"])
@pytest.mark.parametrize("side", [32, 64])
def test_first_bias_is_the_bias_of_the_first_convolution_only(name: str, side: int) -> None:
    biases = []
    for first_bias in (False, True):
        network = build(
            small("discriminator", name, first_bias=first_bias), "discriminator", (3, side, side), 0
        )
        biases.append(
            [module.bias is not None for module in network.modules() if isinstance(module, nn.Conv2d)]
        )
    without, with_bias = biases
    assert (without[0], with_bias[0]) == (False, True)
    assert without[1:] == with_bias[1:]
