"""Data sets: one file each. Whole sets live as tensors on the training device."""

from typing import Annotated

from gpm_tune.data.celeba import CelebAConfig
from gpm_tune.data.dataset import Dataset, to_float
from gpm_tune.data.digits import DigitsConfig
from gpm_tune.data.folder import FolderConfig
from gpm_tune.data.gaussians import GaussiansConfig
from gpm_tune.data.mnist import MNISTConfig
from gpm_tune.plugins import Extensible

DataConfig = Annotated[
    GaussiansConfig | DigitsConfig | MNISTConfig | CelebAConfig | FolderConfig, Extensible("gpm_tune.data")
]

__all__ = [
    "CelebAConfig",
    "DataConfig",
    "Dataset",
    "DigitsConfig",
    "FolderConfig",
    "GaussiansConfig",
    "MNISTConfig",
    "to_float",
]
