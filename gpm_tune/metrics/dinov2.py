"""DINOv2, the vision transformer whose features many compare images by, from its published weights.

Oquab et al. 2024, arXiv 2304.07193; with registers Darcet et al. 2024, arXiv 2309.16588. Names of modules are
those of the published state dicts; sizes are read from these.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, scaled_dot_product_attention

SIDE = 224  # of the images that it is given, which are enlarged or reduced to it
PATCH = 14
HEAD = 64  # width of an attention head, in every size of the network
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours
OFFSET = 0.1  # in patches: by how much the published code enlarges positions, of networks without registers


class DinoV2(nn.Module):
    """The small, base and large network, patches of 14 pixels, with or without registers."""

    def __init__(self, width: int, depth: int, registers: int, positions: int) -> None:
        """positions: of the grid that it was trained on, 37² for the published weights."""
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, PATCH, PATCH)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + positions, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, width)) if registers else None
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> DinoV2:
        """The network with these weights, by name.

        Raises KeyError, ValueError or RuntimeError where they are another network's.
        """
        known = {name: tensor.float() for name, tensor in weights.items() if name != "mask_token"}
        registers = known["register_tokens"].shape[1] if "register_tokens" in known else 0
        depth = 1 + max(int(name.split(".")[1]) for name in known if name.startswith("blocks."))
        _, positions, width = known["pos_embed"].shape
        with torch.device("meta"):
            network = cls(width, depth, registers, positions - 1)
        network.load_state_dict(known, assign=True)
        return network.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """The class token's features (B, width) of images (B, 3, H, W) in [0, 1], of any size."""
        if x.shape[-2:] != (SIDE, SIDE):
            x = interpolate(x, size=(SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = x.new_tensor(MEAN).view(3, 1, 1), x.new_tensor(STD).view(3, 1, 1)
        patches = self.patch_embed["proj"]((x - mean) / std).flatten(2).transpose(1, 2)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        tokens = [first, patches + self._positions()]
        if self.register_tokens is not None:
            tokens.insert(1, self.register_tokens.expand(len(x), -1, -1))
        x = torch.cat(tokens, 1)
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.norm(x[:, 0])
        return features

    def _positions(self) -> Tensor:
        """Embeddings (1, P, width) of the patches' positions, interpolated as the published code does."""
        trained, count = self.pos_embed[:, 1:], SIDE // PATCH
        side = round(trained.shape[1] ** 0.5)
        if side == count:
            return trained
        grid = trained.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        if self.register_tokens is None:
            scale = (count + OFFSET) / side
            grid = interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
        else:
            grid = interpolate(grid, size=(count, count), mode="bicubic", antialias=True)
        return grid.flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Attention and two layers on each token, both with a norm before and a scale for each channel after."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.ls1, self.ls2 = (nn.ParameterDict({"gamma": torch.ones(width)}) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, T, width)."""
        x = x + self.ls1["gamma"] * self._attend(self.norm1(x))
        inner = gelu(self.mlp["fc1"](self.norm2(x)))
        tokens: Tensor = x + self.ls2["gamma"] * self.mlp["fc2"](inner)
        return tokens

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = self.attn["qkv"](x).unflatten(-1, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)
        found: Tensor = self.attn["proj"](scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return found
