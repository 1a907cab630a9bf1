"""Checkpoints on disk: safetensors for weights, tensors and JSON for the rest, never a pickle.

weights.safetensors   last, average and best weights, prefixed with these words
state.pt              optimiser, random state, running sums; read with weights_only=True
checkpoint.json       format, step, best metrics, the experiment; written last
samples.png, best.png the pictures of the last and the best evaluation
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpm_tune.errors import UserError

FORMAT = 2
KEPT = 2
Weights = dict[str, dict[str, Tensor]]


def write(
    folder: Path,
    weights: Weights,
    state: Mapping[str, Any],
    record: Mapping[str, Any],
    pictures: Mapping[str, bytes],
) -> None:
    """Write a checkpoint. `checkpoint.json` comes last: where it is, the checkpoint is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    flat = {
        f"{group}/{name}": tensor.contiguous()
        for group, tensors in weights.items()
        for name, tensor in tensors.items()
    }
    save_file(flat, str(folder / "weights.safetensors"))
    torch.save(dict(state), folder / "state.pt")
    for name, png in pictures.items():
        (folder / f"{name}.png").write_bytes(png)
    partial = folder / "checkpoint.json.partial"
    partial.write_text(json.dumps({"format": FORMAT, **record}, indent=2))
    partial.replace(folder / "checkpoint.json")


def read(
    folder: Path, device: torch.device
) -> tuple[Weights, dict[str, Any], dict[str, Any], dict[str, bytes]]:
    """The weights by group, the state, the record and the pictures of a checkpoint.

    Raises UserError where the folder holds no whole checkpoint of this format.
    """
    record = read_record(folder)
    weights: Weights = {}
    try:
        for key, tensor in load_file(str(folder / "weights.safetensors"), str(device)).items():
            group, name = key.split("/", 1)
            weights.setdefault(group, {})[name] = tensor
        state = torch.load(folder / "state.pt", map_location=device, weights_only=True)
    except (OSError, RuntimeError, SafetensorError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{folder}: the checkpoint is damaged: {error}") from error
    pictures = {path.stem: path.read_bytes() for path in folder.glob("*.png")}
    return weights, state, record, pictures


def read_record(folder: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint: its step, metrics and experiment.

    Raises UserError where the folder holds no whole checkpoint of this format.
    """
    try:
        record: dict[str, Any] = json.loads((folder / "checkpoint.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no whole checkpoint is here: {error}") from error
    if record.get("format") != FORMAT:
        raise UserError(f"{folder}: checkpoint format {record.get('format')}, this version reads {FORMAT}")
    return record


def next_folder(run: Path, step: int) -> Path:
    """Where, in the folder of a run, its checkpoint at a step belongs."""
    return run / "checkpoints" / f"step_{step:09d}"


def latest(run: Path) -> Path | None:
    """The newest whole checkpoint in the folder of a run, or None."""
    found = sorted(run.glob("checkpoints/step_*/checkpoint.json"))
    return found[-1].parent if found else None


def prune(run: Path) -> None:
    """Drop a run's checkpoints that are no longer needed."""
    for old in sorted(run.glob("checkpoints/step_*"))[:-KEPT]:
        shutil.rmtree(old)
