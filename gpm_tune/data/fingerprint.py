"""What a data set held when it was read: a digest of its samples, to which all that is kept is bound."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gpm_tune.data.dataset import Dataset
from gpm_tune.errors import UserError

if TYPE_CHECKING:
    from gpm_tune.data import DataConfig

IRREGULAR = -2
CHUNK = 4096  # samples that are hashed at a time
ATTEMPTS = 3  # the first may download or decode, which changes the files

_known: dict[tuple[str, str], str] = {}  # fingerprints by configuration and state of the files


class File(NamedTuple):
    """A file as its folder lists it."""

    name: str  # relative to the folder, with / between its parts
    size: int  # in bytes; -1 where the file cannot be reached, -2 where it is a pipe, socket or device
    modified: int  # in ns since the epoch
    changed: int  # likewise; not even a copy that keeps the time of modification can set it


def list_files(
    folder: Path, *, visible: bool = False, onerror: Callable[[OSError], object] | None = None
) -> Iterator[File]:
    """The files in a folder and in nested ones.

    visible: without hidden ones, and without folders that are links. onerror: is told of folders that
    cannot be read, which else count as empty.
    """
    seen = set()  # links may lead in a circle
    for place, inner, names in os.walk(folder, onerror=onerror, followlinks=not visible):
        real = os.path.realpath(place)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        if visible:
            inner[:] = [name for name in inner if not name.startswith(".")]
        within = "" if place == str(folder) else f"{Path(place).relative_to(folder).as_posix()}/"
        for name in names:
            if not (visible and name.startswith(".")):
                yield _look(f"{place}{os.sep}{name}", within + name)


def _look(path: str, name: str) -> File:
    """Paths are strings here: of hundreds of thousands of files."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:  # a link to nowhere: what reads it says so
        return File(name, -1, 0, 0)
    if not stat.S_ISREG(found.st_mode):
        return File(name, IRREGULAR, 0, 0)
    return File(name, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def digest(plain: object) -> str:
    """16 hexadecimal digits that tell plain data from others."""
    return hashlib.sha256(repr(plain).encode()).hexdigest()[:16]


def fingerprint(config: DataConfig) -> str:
    """16 hexadecimal digits that tell a data set's samples from others; the same for every seed.

    Of all samples, in the order of seed 0. A data set that is drawn, and not read, may have a method
    `fingerprint()` instead. The same files are read once per process.
    Raises UserError where the data cannot be had.
    """
    if hasattr(config, "fingerprint"):
        own: str = config.fingerprint()
        return own
    return _known.get(_key(config)) or read(config, 0)[1]


def read(config: DataConfig, seed: int) -> tuple[Dataset, str]:
    """The data set, split by a seed, and the fingerprint of what was read.

    Raises UserError where the data cannot be had, or change while they are read.
    """
    for _ in range(ATTEMPTS):
        key = _key(config)
        data = load(config, seed)
        if hasattr(config, "fingerprint"):
            return data, config.fingerprint()
        found = _known.get(key) or _digest(data if seed == 0 else config.load(0))
        if not key[1]:
            return data, found
        if key == _key(config):
            _known[key] = found
            return data, found
    raise UserError(f"{described(config)} change while they are read\nhelp: wait until they are complete")


def load(config: DataConfig, seed: int) -> Dataset:
    """The data set, split by a seed. Raises UserError where it, maybe a plug-in's, is not what it says."""
    data: object = config.load(seed)
    expected = f"a gpm_tune.data.Dataset with samples of shape {tuple(config.shape)}"
    if not isinstance(data, Dataset):
        found = f"a {type(data).__name__}"
    else:
        shapes = {tuple(split.shape[1:]) for split in (data.train, data.validation, data.test)}
        if shapes == {tuple(config.shape)}:
            return data
        found = f"samples of shape {', '.join(map(str, sorted(shapes)))}"
    whose = f"the data set '{config.name}' ({type(config).__module__})"
    raise UserError(f"{whose} gives {found}, expected {expected}")


def described(config: DataConfig) -> str:
    """The data set as the subject of a sentence, in the plural."""
    files = getattr(config, "files", None)
    return f"the data '{config.name}'" if files is None else f"the data under {files}"


def _key(config: DataConfig) -> tuple[str, str]:
    """The configuration, and the state of its files: empty for a data set without."""
    files: Path | None = getattr(config, "files", None)
    state = "" if files is None else digest((str(files), sorted(list_files(files))))
    return config.model_dump_json(), state


def _digest(data: Dataset) -> str:
    """Of all samples, split by split."""
    found = hashlib.sha256()
    for samples in (data.train, data.validation, data.test):
        found.update(str((tuple(samples.shape), samples.dtype)).encode())
        for chunk in samples.split(CHUNK):
            found.update(chunk.cpu().contiguous().numpy())
    return found.hexdigest()[:16]
