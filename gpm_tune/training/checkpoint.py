"""Checkpoints on disk: safetensors for weights, tensors and JSON for the rest, never a pickle.

weights.safetensors   last, average and best weights, prefixed with these words
state.pt              optimiser, random state, running sums; read with weights_only=True
checkpoint.json       format, step, best metrics, the experiment, size and CRC-32 of the two; written last

A folder is a
checkpoint only where `checkpoint.json` vouches for the files beside it: one that is half written, or
half copied, is none.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError, model_validator
from pydantic_core import from_json
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from gpm_tune.errors import DISK_FAILS, MIGRATE, UserError, is_full
from gpm_tune.training.objectives import Measured

FORMAT = 4  # raised by what changes the meaning of weights, too, as 3 did: of U-Nets that pool first
VOUCHED = ("weights.safetensors", "state.pt")
CHUNK = 2**20
Weights = dict[str, dict[str, Tensor]]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Fingerprint(_Part):
    """Size in bytes and CRC-32 of a file."""

    size: NonNegativeInt
    crc32: NonNegativeInt


class Best(Measured):
    """The best evaluation so far."""

    step: NonNegativeInt


class Record(_Part):
    """What `checkpoint.json` holds: nothing else, nothing less, and every value of its type."""

    format: int
    files: dict[str, Fingerprint]
    experiment: dict[str, Any]
    data: str  # their fingerprint
    step: NonNegativeInt
    evaluated_step: NonNegativeInt
    seconds: float
    joules: float = 0.0
    is_end: bool  # of a training of so many steps: such a checkpoint is kept when it is trained further
    judge: str  # by what the best evaluation was chosen
    best: Best | None

    @model_validator(mode="after")
    def _check(self) -> Record:
        if set(self.files) != set(VOUCHED):
            raise ValueError(f"files: expected {' and '.join(VOUCHED)}")
        if not isinstance(self.experiment.get("data"), dict):
            raise ValueError("experiment: expected its data")
        if not (self.best.step if self.best else 0) <= self.evaluated_step <= self.step:
            raise ValueError("the steps are not in their order")
        return self


def write(
    folder: Path,
    weights: Weights,
    state: Mapping[str, Any],
    record: Mapping[str, Any],
) -> None:
    """Write a checkpoint. `checkpoint.json` comes last: where it is, the checkpoint is whole.

    Raises OSError where the disk does not take it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "checkpoint.json").unlink(missing_ok=True)  # of an earlier one, which is no longer whole
    flat = {
        f"{group}/{name}": tensor.contiguous()
        for group, tensors in weights.items()
        for name, tensor in tensors.items()
    }
    with _disk_errors(folder):
        (folder / "weights.safetensors").write_bytes(save(flat))  # save_file: mode 0600, whatever the umask
        torch.save(dict(state), folder / "state.pt")
    partial = folder / "checkpoint.json.partial"
    files = {name: _fingerprint(folder / name).model_dump() for name in VOUCHED}
    partial.write_text(json.dumps({"format": FORMAT, "files": files, **record}, indent=2, allow_nan=False))
    partial.replace(folder / "checkpoint.json")


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Raise what the libraries say of a disk that takes no more as OSError, which it is."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        if not DISK_FAILS.search(str(error)):
            raise
        code = errno.ENOSPC if is_full(error, folder) else errno.EIO
        raise OSError(code, os.strerror(code), str(folder)) from error


def read(folder: Path, device: torch.device) -> tuple[Weights, dict[str, Any], Record]:
    """The weights by group, the state and the record of a checkpoint.

    Raises UserError where the folder holds no whole checkpoint of this format.
    """
    record = read_record(folder)
    weights: Weights = {}
    try:
        _check(folder, record, by_content=True)
        for key, tensor in load_file(str(folder / "weights.safetensors"), str(device)).items():
            group, name = key.split("/", 1)
            weights.setdefault(group, {})[name] = tensor
        state = torch.load(folder / "state.pt", map_location=device, weights_only=True)
    except (OSError, RuntimeError, SafetensorError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise damaged(folder, error) from error
    return weights, state, record


def damaged(folder: object, reason: object) -> UserError:
    """The error of a checkpoint that is there and cannot be used: the one before it is taken instead."""
    return UserError(f"{folder}: the checkpoint is damaged: {reason}")


def read_record(folder: Path) -> Record:
    """The JSON part of a checkpoint: its step, metrics and experiment.

    Raises UserError where the folder holds no whole checkpoint of this format.
    """
    try:
        content = (folder / "checkpoint.json").read_bytes()
    except OSError as error:
        raise UserError(f"{folder}: no whole checkpoint is here: {error}") from error
    return parse_record(content, folder)


def parse_record(content: bytes, folder: object) -> Record:
    """The record in the bytes of a `checkpoint.json`, read from the folder, which errors name.

    Raises UserError where it is damaged, or of another format.
    """
    try:
        plain = from_json(content)
    except ValueError as error:
        raise UserError(f"{folder}: no whole checkpoint is here: checkpoint.json: {error}") from error
    if isinstance(plain, dict) and isinstance(plain.get("format"), int) and plain["format"] != FORMAT:
        raise UserError(
            f"{folder}: checkpoint format {plain['format']}, this version reads {FORMAT}: it was written by "
            "another version\n"
            + (MIGRATE if plain["format"] == 3 else "help: use that version, or train again")
        )
    try:
        return Record.model_validate(plain)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("checkpoint.json", *first["loc"])))
        raise damaged(folder, f"{where}: {first['msg'].removeprefix('Value error, ')}") from error


def is_whole(folder: Path) -> bool:
    """Whether the folder holds a checkpoint of this format with all its files at their full size."""
    try:
        _check(folder, read_record(folder), by_content=False)
    except (UserError, OSError):
        return False
    return True


def _check(folder: Path, record: Record, *, by_content: bool) -> None:
    """Raise UserError where a file is not the one that was written."""
    for name, written in record.files.items():
        file = folder / name
        size = file.stat().st_size
        if size != written.size:
            raise damaged(folder, f"{name} has {size} bytes of {written.size}")
        if by_content and _fingerprint(file) != written:
            raise damaged(folder, f"{name} is not what was written")


def _fingerprint(file: Path) -> Fingerprint:
    crc = 0
    with file.open("rb") as content:
        while chunk := content.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return Fingerprint(size=file.stat().st_size, crc32=crc)
