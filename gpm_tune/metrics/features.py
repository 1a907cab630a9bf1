"""Feature networks whose activations FID compares: Inception-v3, or a small one that needs no download."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from gpm_tune.errors import UserError

SMALL_WEIGHTS = Path(__file__).with_name("small_features.safetensors")
SIDE = 32
INCEPTION_FEATURES = 2048
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"


class SmallFeatures(nn.Module):
    """A convolutional classifier of MNIST's digits; its features are what the last layer sees.

    Trained by `train_small_features.py`. Meaningful for grey images of single characters, and
    comparable only with itself: its FID is no substitute for the standard one.
    """

    num_features = 128

    def __init__(self) -> None:
        super().__init__()
        widths = [1, 24, 32, 48, 64, 96, self.num_features]
        strides = [1, 2, 1, 2, 1, 2]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride, padding=1)
            for before, after, stride in zip(widths[:-1], widths[1:], strides, strict=True)
        )
        self.classifier = nn.Linear(self.num_features, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 128) of images (B, 1 or 3, H, W) in [0, 1], of any size."""
        x = x.mean(1, keepdim=True)
        if x.shape[-2:] != (SIDE, SIDE):
            x = interpolate(x, size=(SIDE, SIDE), mode="bilinear", antialias=True)
        for convolution in self.convolutions:
            x = relu(convolution(x))
        return x.mean((2, 3))

    def classify(self, x: Tensor) -> Tensor:
        """Logits (B, 10) of the digit classes."""
        logits: Tensor = self.classifier(self(x))
        return logits


def small_features() -> SmallFeatures:
    """The bundled network with its trained weights."""
    network = SmallFeatures()
    network.load_state_dict(load_file(SMALL_WEIGHTS))
    return network.eval().requires_grad_(False)


def inception_features(weights: Path | None) -> nn.Module:
    """torchmetrics' Inception-v3, the standard network of FID.

    weights: a local file; None to let torchmetrics download it.
    Raises UserError where the weights cannot be had.
    """
    from torchmetrics.image.fid import NoTrainInceptionV3

    advice = (
        f"Give evaluation.inception_weights the path of {INCEPTION_FILE} (from the releases of "
        "torch-fidelity), or choose evaluation.features: small"
    )
    if weights is not None and not weights.is_file():
        raise UserError(f"evaluation.inception_weights: {weights} is not a file. {advice}")
    try:
        if weights is not None:
            torch.load(weights, weights_only=True)  # torch-fidelity itself would run any pickle
        network: nn.Module = NoTrainInceptionV3(
            name="inception-v3-compat",
            features_list=[str(INCEPTION_FEATURES)],
            feature_extractor_weights_path=str(weights) if weights else None,
        )
    except Exception as error:  # whatever the download or the unpickling of a wrong file raises
        source = f"read from {weights}" if weights else "downloaded"
        raise UserError(f"Inception's weights could not be {source}: {error}. {advice}") from error
    return network


def check_features(features: str, weights: Path | None) -> None:
    """Raise UserError unless the feature network can be had; so that training need not find out."""
    if features == "inception":
        inception_features(weights)


def fingerprint(network: nn.Module) -> str:
    """A hash of a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
