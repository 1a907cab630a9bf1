"""Train the small feature network: python -m gpm_tune.metrics.train_small_features --data ROOT."""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, pad

from gpm_tune.metrics.features import SMALL_WEIGHTS, SmallFeatures

BATCH = 128
LEARNING_RATE = 3e-3


def images(root: str, *, train: bool) -> tuple[Tensor, Tensor]:
    """MNIST in [0, 1], padded to 32x32, and its labels."""
    from torchvision.datasets import MNIST

    data = MNIST(root, train=train)
    return pad(data.data.unsqueeze(1).float() / 255, (2, 2, 2, 2)), data.targets


def augment(x: Tensor) -> Tensor:
    """Digits of 0.7 to 1.3 times their size, moved by up to 3 pixels, turned by up to 0.2 radians."""
    count = len(x)
    scale = torch.empty(count).uniform_(1 / 1.3, 1 / 0.7)
    angle = torch.empty(count).uniform_(-0.2, 0.2)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    shift = torch.empty(count, 2).uniform_(-3 / 16, 3 / 16)
    rows = [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    grid = affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return grid_sample(x, grid, align_corners=False)


def accuracy(network: SmallFeatures, x: Tensor, y: Tensor) -> float:
    """Share of images classified correctly."""
    with torch.no_grad():
        hits = [network.classify(a).argmax(1) == b for a, b in zip(x.split(500), y.split(500), strict=True)]
    return torch.cat(hits).float().mean().item()


def train(root: str, epochs: int, seed: int) -> tuple[SmallFeatures, float]:
    """The trained network and its accuracy on the test images."""
    torch.manual_seed(seed)
    network = SmallFeatures()
    x, y = images(root, train=True)
    steps = epochs * (len(x) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(BATCH):
            if len(batch) < BATCH:
                continue
            loss = cross_entropy(network.classify(augment(x[batch])), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval(), accuracy(network, *images(root, train=False))


def main() -> None:
    """Train, and write weights and their record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder that holds MNIST/raw")
    parser.add_argument("--out", type=Path, default=SMALL_WEIGHTS)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    network, test_accuracy = train(options.data, options.epochs, options.seed)
    save_file(network.state_dict(), options.out)
    record = {
        "command": "python -m gpm_tune.metrics.train_small_features --data ROOT "
        f"--epochs {options.epochs} --seed {options.seed}",
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__.split("+")[0],
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "mnist_test_accuracy": round(test_accuracy, 4),
    }
    options.out.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
