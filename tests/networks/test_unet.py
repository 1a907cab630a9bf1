"""U-Net: the paper's parameter counts, laws of its blocks, attention against a softmax by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from counting import conv, linear, parameters
from torch import Tensor, nn

from gpm_tune.networks.unet import Attention, Block, UNetConfig


def unet(shape: tuple[int, ...] = (1, 16, 16), embedding: int = 6, **changes: Any) -> nn.Module:
    small = {"name": "unet", "channels": 8, "channel_mult": (1, 2), "blocks": 1}
    return UNetConfig.model_validate({**small, **changes}).build_denoiser(shape, embedding)


def test_parameter_counts_are_the_papers() -> None:
    shape, mult = (1, 32, 32), (1, 2, 2)
    with torch.device("meta"):
        edm = unet(shape, 256, channels=16, channel_mult=mult)
        score_gan = unet(shape, 256, channels=64, channel_mult=mult, blocks=2)
    assert parameters(edm) == 332_481
    assert parameters(score_gan) == 7_036_737


def test_unet_of_celeba_has_the_described_layers() -> None:
    """Sides 64, 32, 16: the lowest level is the one that attends."""
    with torch.device("meta"):
        network = UNetConfig(name="unet", dropout=0.1).build_denoiser((3, 64, 64), embedding=256)

    def block(inputs: int, outputs: int, *, shortcut: bool = False, attend: bool = False) -> int:
        main = 2 * inputs + conv(inputs, outputs, 3) + linear(512, outputs)
        main += 2 * outputs + conv(outputs, outputs, 3)
        attention = 2 * outputs + conv(outputs, 3 * outputs, 1) + conv(outputs, outputs, 1)
        return main + shortcut * conv(inputs, outputs, 1) + attend * attention

    time = linear(256, 512) + linear(512, 512)
    encoder = conv(3, 128, 3) + 2 * block(128, 128)
    encoder += block(128, 128, shortcut=True) + block(128, 256, shortcut=True) + block(256, 256)
    encoder += block(256, 256, shortcut=True) + 2 * block(256, 256, attend=True)
    bottom = block(256, 256, attend=True) + block(256, 256)
    wide = 2 * block(512, 256, shortcut=True)
    decoder = wide + block(512, 256, shortcut=True, attend=True)
    decoder += block(256, 256, shortcut=True) + wide + block(256 + 128, 256, shortcut=True)
    decoder += block(256, 256, shortcut=True) + block(256 + 128, 128, shortcut=True)
    decoder += 2 * block(128 + 128, 128, shortcut=True)
    assert parameters(network) == time + encoder + bottom + decoder + 2 * 128 + conv(128, 3, 3)


def test_blocks_attend_at_the_asked_sides_and_at_the_bottom() -> None:
    def attending(blocks: nn.ModuleList) -> list[bool]:
        return [isinstance(block.attention, Attention) for block in blocks]

    network = unet((1, 32, 32), channel_mult=(1, 2, 2), blocks=2, attention_resolutions=(16,))
    assert attending(network.encoder) == [False, False, False, True, True, False, False, False]
    assert attending(network.bottom) == [True, False]
    assert attending(network.decoder) == [False] * 3 + [False, False, False, True] + [False] * 4
    everywhere_else = unet((1, 32, 32), attention_resolutions=())
    assert attending(everywhere_else.encoder) + attending(everywhere_else.decoder) == [False] * 8


RESAMPLINGS = ["up", "down", None]


def block_of(resample: Any, outputs: int = 8) -> Block:
    return Block(8, outputs, 5, 0.0, resample, attend=False).double()


def branch_alone(block: Block) -> Block:
    """Without its shortcut, which is made a convolution where it is the identity."""
    block.shortcut = nn.Conv2d(8, block.first.out_channels, 1).double()
    for parameter in block.shortcut.parameters():
        nn.init.zeros_(parameter)
    return block


@pytest.mark.parametrize("resample", RESAMPLINGS)
def test_convolutions_act_on_the_side_of_the_output(resample: Any) -> None:
    """A first kernel that moves its input by a pixel moves the output by one, after either resampling.

    Convolved before it is pooled, the output would move by half a pixel; before it is upsampled, by two.
    """
    block = branch_alone(block_of(resample))
    block.second_norm = nn.Identity()  # it would spread what comes in at the border
    for convolution, column in ((block.first, 1), (block.second, 1)):
        nn.init.zeros_(convolution.weight)
        convolution.weight.data[range(8), range(8), 1, column] = 1.0
    x, time = torch.randn(2, 8, 12, 12).double(), torch.randn(2, 5).double()
    still = block(x, time)
    block.first.weight.data = block.first.weight.data.roll(-1, dims=3)
    moved = block(x, time)
    torch.testing.assert_close(moved[..., 1:], still[..., :-1])
    assert still.std() > 0.1


@pytest.mark.parametrize("resample", RESAMPLINGS)
def test_without_its_branch_a_block_is_its_resampled_input_times_the_root_of_a_half(resample: Any) -> None:
    block = block_of(resample)
    nn.init.zeros_(block.second.weight)
    nn.init.zeros_(block.second.bias)
    if resample is not None:
        nn.init.zeros_(block.shortcut.bias)
        block.shortcut.weight.data = torch.eye(8).double()[:, :, None, None]
    x = torch.randn(2, 8, 6, 6).double()
    expected = {
        "up": x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3),
        "down": x.unflatten(3, (3, 2)).unflatten(2, (3, 2)).mean(dim=(3, 5)),
        None: x,
    }[resample]
    torch.testing.assert_close(block(x, torch.randn(2, 5).double()), expected * math.sqrt(0.5))


@pytest.mark.parametrize("resample", RESAMPLINGS)
def test_norms_come_first_and_after_the_time(resample: Any) -> None:
    """The branch sees neither scale nor level of its input, nor what the time adds to all channels."""
    block = branch_alone(block_of(resample))
    x, time = 100 * torch.randn(2, 8, 12, 12).double(), torch.randn(2, 5).double()
    before = block(x, time)
    torch.testing.assert_close(block(3 * x + 70, time), before, rtol=1e-5, atol=1e-5)
    block.affine.bias.data += 100
    torch.testing.assert_close(block(x, time), before)
    block.affine.bias.data += 100 * torch.randn(8).double()
    assert not torch.allclose(block(x, time), before, atol=0.1)


def test_shortcuts_are_convolutions_where_width_or_side_change() -> None:
    found = {(r, o): isinstance(block_of(r, o).shortcut, nn.Conv2d) for r in RESAMPLINGS for o in (8, 12)}
    assert [key for key, is_convolution in found.items() if not is_convolution] == [(None, 8)]


def test_attention_is_the_softmax_by_hand() -> None:
    attention = Attention(12).double()
    x = torch.randn(2, 12, 4, 5).double()
    q, k, v = attention.qkv(attention.norm(x)).reshape(2, 3, 12, 20).unbind(dim=1)
    weights = (torch.einsum("bci,bcj->bij", q, k) / math.sqrt(12)).softmax(dim=2)
    y = torch.einsum("bij,bcj->bci", weights, v).reshape(2, 12, 4, 5)
    torch.testing.assert_close(attention(x), (x + attention.out(y)) / math.sqrt(2))


@pytest.mark.parametrize(
    ("channels", "groups"), [(16, 4), (48, 12), (64, 16), (128, 32), (256, 32), (384, 32), (144, 24)]
)
def test_norms_have_32_groups_or_at_least_4_channels_in_each(channels: int, groups: int) -> None:
    norm = Attention(channels).norm
    assert (norm.num_groups, norm.eps) == (groups, 1e-6)


@pytest.mark.parametrize("index", range(4))
def test_every_encoder_output_reaches_the_decoder_beside_the_path_through_the_bottom(index: int) -> None:
    """With the path through the bottom and all other skips cut, the output still depends on this one."""
    network = unet().double()
    sources = [network.first, *network.encoder]
    x, embedding = torch.randn(2, 1, 16, 16).double(), torch.randn(2, 6).double()
    network.bottom[-1].register_forward_hook(lambda _module, _inputs, output: output.detach())
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[0]

    sources[index].register_forward_hook(keep)
    for later in sources[index + 1 : index + 2]:
        later.register_forward_hook(lambda _module, _inputs, output: output.detach())
    (gradient,) = torch.autograd.grad(network(x, embedding).sum(), kept[0])
    assert gradient.any()
    assert len(sources) == 4


def test_dropout_acts_in_training_only() -> None:
    network = unet(dropout=0.5)
    x, embedding = torch.randn(2, 1, 16, 16), torch.randn(2, 6)
    assert not torch.equal(network(x, embedding), network(x, embedding))
    network.eval()
    assert torch.equal(network(x, embedding), network(x, embedding))


@pytest.mark.parametrize("shape", [(2,), (16, 16), (1, 16, 32), (1, 30, 30), (1, 8, 8)])
def test_shapes_that_cannot_be_halved_down_to_4_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match="'unet' with 3 levels takes square images whose side is a multiple of 4 and"
    ):
        UNetConfig(name="unet").check_shape(shape)


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 28, 28), (3, 64, 64)])
def test_shapes_that_can_are_taken(shape: tuple[int, ...]) -> None:
    UNetConfig(name="unet").check_shape(shape)


@pytest.mark.parametrize("field", [{"channel_mult": ()}, {"channels": 6}, {"dropout": 1.0}, {"blocks": 0}])
def test_configurations_without_sense_are_refused(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        UNetConfig.model_validate({"name": "unet", **field})
