"""Feature networks whose activations FID compares: Inception-v3, a small one, or one in a local file."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from gpm_tune.data.dataset import default_root
from gpm_tune.errors import DivergedError, UserError, escaped, first_line
from gpm_tune.metrics.dinov2 import DinoV2
from gpm_tune.paths import expand

SMALL_WEIGHTS = Path(__file__).with_name("small_features.safetensors")
SIDE = 32
BATCH = 500
BATCH_OF_LARGE = 50  # for networks in files, which may enlarge images
IN_FILES = (".safetensors", ".pt", ".pth", ".ts")  # endings of files that hold a feature network
FEATURES_ADVICE = (
    "give the path of DINOv2's weights as .safetensors, or of a TorchScript module (.pt, .pth, .ts) that "
    "makes features (B, d) of images (B, 3, H, W) in [0, 1]; or choose small, or inception"
)
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


def inception_file(weights: Path | None) -> Path:
    """Where Inception's weights are, or belong.

    weights: a local file; None for where torch keeps its downloads, if they are there, else the data folder.
    """
    if weights is not None:
        return expand(weights)
    torchs = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    return torchs if torchs.is_file() else default_root() / "weights" / INCEPTION_FILE


def inception_features(weights: Path | None) -> nn.Module:
    """torchmetrics' Inception-v3, the standard network of FID.

    weights: a local file; None to download it, unless that was done.
    Raises UserError where the weights cannot be had.
    """
    from torchmetrics.image.fid import NoTrainInceptionV3

    advice = (
        f"give evaluation.inception_weights the path of {INCEPTION_FILE} (from the releases of "
        "torch-fidelity), or choose evaluation.features: small"
    )
    file = inception_file(weights)
    if weights is not None and not file.is_file():
        raise UserError(f"evaluation.inception_weights: {weights} is not a file\nhelp: {advice}")
    try:
        download_inception(file)
    except Exception as error:  # whatever the download raises
        raise UserError(
            f"Inception's weights could not be downloaded: {first_line(error)}\nhelp: {advice}"
        ) from error
    if weights is None:
        advice = f"delete it, and it is downloaded again; or {advice}"
    try:
        torch.load(file, weights_only=True)  # torch-fidelity itself would run any pickle
    except Exception as error:  # whatever the unpickling of a wrong file raises
        reason = error.strerror if isinstance(error, OSError) else "it is damaged, or another file"
        raise UserError(f"no weights can be read from {file}: {reason}\nhelp: {advice}") from error
    try:
        network: nn.Module = NoTrainInceptionV3(
            name="inception-v3-compat",
            features_list=[str(INCEPTION_FEATURES)],
            feature_extractor_weights_path=str(file),
        )
    except Exception as error:  # whatever other weights lead to
        reason = escaped(first_line(error)).rstrip(":.") or type(error).__name__
        raise UserError(f"{file} has other weights than Inception's: {reason}\nhelp: {advice}") from error
    return network


def download_inception(file: Path) -> None:
    """Download Inception's weights, unless they are there; of several processes one does, others wait.

    Raises OSError where that is not possible, RuntimeError where something else was downloaded.
    """
    if file.is_file():
        return
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if not file.is_file():
            digest = INCEPTION_FILE.removesuffix(".pth").rpartition("-")[2]
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(file), digest, progress=False)


def features_file(file: Path) -> tuple[nn.Module, str]:
    """The feature network in a local file, and a hash of it.

    DINOv2 from safetensors, any other one as TorchScript: it takes images (B, 3, H, W) in [0, 1], and gives
    features (B, d). Raises UserError where the file has no such network.
    """
    file = expand(file)
    if not file.is_file():
        raise UserError(f"evaluation.features: {file} is not a file\nhelp: {FEATURES_ADVICE}")
    try:
        is_tensors = file.suffix == ".safetensors"
        network = DinoV2.of(load_file(file)) if is_tensors else _torchscript(file)
        found = network(torch.zeros(2, 3, SIDE, SIDE))
        if not (isinstance(found, Tensor) and found.ndim == 2 and len(found) == 2):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"for 2 images it gives {shape}, not features of shape (2, d)")
    except Exception as error:  # whatever another file, or another network, leads to
        reason = escaped(first_line(error)).rstrip(":.") or type(error).__name__
        raise UserError(
            f"evaluation.features: no feature network is in {file}: {reason}\nhelp: {FEATURES_ADVICE}"
        ) from error
    return network, hashlib.sha256(file.read_bytes()).hexdigest()


def _torchscript(file: Path) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # what others publish stays in this format
        network: nn.Module = torch.jit.load(str(file), "cpu").eval()
    return network


def weights_file(features: str | Path, inception_weights: Path | None) -> Path | None:
    """The local file that a feature network is read from; None for the one that comes with the program."""
    if isinstance(features, Path):
        return expand(features)
    return inception_file(inception_weights) if features == "inception" else None


def check_features(features: str | Path, inception_weights: Path | None) -> None:
    """Raise UserError unless the feature network can be had; so that training need not find out."""
    if features != "small":
        FeatureExtractor(features, inception_weights, "cpu")


def fingerprint(network: nn.Module) -> str:
    """A hash of a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class FeatureExtractor:
    """A feature network, and the form in which it takes images."""

    def __init__(
        self, features: str | Path, inception_weights: Path | None, device: torch.device | str
    ) -> None:
        """features: "small", "inception", whose local weights file may be given, or a network's own file.

        Raises UserError where the network cannot be had.
        """
        self.name = features.name if isinstance(features, Path) else features
        self._batch, self._convert = BATCH, _to_unit
        if isinstance(features, Path):
            network, self._hash = features_file(features)
            self._batch, self._convert = BATCH_OF_LARGE, _to_colours
        elif features == "small":
            network = small_features()
            self._hash = fingerprint(network)
        else:
            network = inception_features(inception_weights)
            self._hash, self._convert = fingerprint(network), _to_bytes
        self.network, self.device = network.to(device), torch.device(device)

    def batches(self, images: Tensor) -> Iterator[Tensor]:
        """Images (N, C, H, W) in [-1, 1] as the network takes them, on its device.

        Inception takes bytes in three channels, the small network [0, 1]; one in a file [0, 1] in three.
        """
        for batch in images.split(self._batch):
            yield self._convert(batch.to(self.device))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features (N, d), on the network's device, of images (N, C, H, W) in [-1, 1].

        Raises DivergedError where the images are not finite.
        """
        return torch.cat([self._of_batch(batch) for batch in self.batches(finite(images))])

    def _of_batch(self, batch: Tensor) -> Tensor:
        """Features that do not depend on the rest of the batch: a lone image would be rounded otherwise."""
        found: Tensor = self.network(batch.repeat(2, 1, 1, 1) if len(batch) == 1 else batch)
        return found[: len(batch)]

    def key(self, images: Tensor) -> str:
        """Identifies images (N, C, H, W) as the network sees them, the network, and its weights."""
        digest = hashlib.sha256(self.name.encode() + self._hash.encode())
        digest.update(str(tuple(images.shape)).encode())
        for batch in self.batches(images):
            digest.update(batch.cpu().numpy().tobytes())
        return f"{self.name}-{digest.hexdigest()[:32]}"


def finite(samples: Tensor) -> Tensor:
    """The samples; raises DivergedError unless they are finite."""
    if not torch.isfinite(samples).all():
        raise DivergedError("the samples were not finite")
    return samples


def _to_unit(images: Tensor) -> Tensor:
    return images.clamp(-1, 1) / 2 + 0.5


def _to_colours(images: Tensor) -> Tensor:
    return _to_unit(images).expand(-1, 3, -1, -1)


def _to_bytes(images: Tensor) -> Tensor:
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
