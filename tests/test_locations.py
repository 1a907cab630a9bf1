"""Places in a folder, and in a bucket."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpm_tune import locations
from gpm_tune.errors import UserError


def test_what_is_no_storage_is_said() -> None:
    with pytest.raises(UserError, match=r"storage ftp://host/x: .* Give s3://BUCKET/PREFIX"):
        locations.exists("ftp://host/x")


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_files_come_back_as_they_were_written(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    root = str(tmp_path / "shared") if kind == "folder" else request.getfixturevalue("bucket")
    locations.write(f"{root}/a/b/one.bin", b"\x00one")
    locations.write(f"{root}/a/two.bin", b"two")
    assert locations.read(f"{root}/a/b/one.bin") == b"\x00one"
    assert locations.children(f"{root}/a") == ["b", "two.bin"]
    assert locations.children(f"{root}/nothing") == []
    locations.copy(f"{root}/a", str(tmp_path / "copy"))
    assert (tmp_path / "copy" / "b" / "one.bin").read_bytes() == b"\x00one"
    local = locations.local(f"{root}/a", tmp_path / "cache")
    assert (local / "two.bin").read_bytes() == b"two"
    locations.delete(f"{root}/a")
    assert not locations.exists(f"{root}/a/two.bin")
    locations.delete(f"{root}/a")  # again, it changes nothing
