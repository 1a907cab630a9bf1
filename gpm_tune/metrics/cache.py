"""Tensors on disk that can be computed again, shared safely between processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor


def cached(
    file: Path | None, names: Sequence[str], compute: Callable[[], Mapping[str, Tensor]]
) -> Mapping[str, Tensor]:
    """The tensors of these names from the file; computed and kept there where it is not whole.

    Of several processes that want them one computes, while the others wait. file: None to compute them, and
    keep nothing.
    """
    if file is None:
        return compute()
    found: Mapping[str, Tensor] | None = _load(file, names)
    if found is not None:
        return found
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        found = _load(file, names)  # another process may have been faster
        if found is None:
            found = compute()
            _store(file, found)
    return found


def _load(file: Path, names: Sequence[str]) -> dict[str, Tensor] | None:
    """The tensors of these names; None where there is no such file, or it is damaged."""
    try:
        found = load_file(file)
        return {name: found[name] for name in names}
    except (OSError, KeyError, SafetensorError):
        return None


def _store(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the file, as open to others as the umask says. Readers see all of it or nothing."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    partial.write_bytes(save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}))
    partial.replace(file)
