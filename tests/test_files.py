"""What counts as a plain file in a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpm_tune.files import is_plain


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("planted")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "secret").write_text("planted")
    home = tmp_path / "home"
    (home / "a").mkdir(parents=True)
    (home / "a" / "plain").touch()
    (home / "a" / "link").symlink_to(tmp_path / "secret")
    (home / "a" / "link_within").symlink_to(home / "a" / "plain")
    (home / "a" / "dangling").symlink_to(tmp_path / "nothing")
    (home / "linked").symlink_to(tmp_path / "folder")
    os.mkfifo(home / "a" / "pipe")
    return home


@pytest.mark.parametrize(
    "path",
    [
        "a",
        "a/link",
        "a/link_within",
        "a/dangling",
        "a/nothing",
        "a/pipe",
        "linked/secret",
        "../secret",
        "a/../../secret",
    ],
)
def test_what_is_elsewhere_or_no_file_is_not_plain(home: Path, path: str) -> None:
    assert not is_plain(home / path, home)


def test_a_file_below_the_folder_is_plain_however_the_folder_is_reached(home: Path, tmp_path: Path) -> None:
    assert is_plain(home / "a" / "plain", home)
    (tmp_path / "way").symlink_to(home)
    assert is_plain(tmp_path / "way" / "a" / "plain", tmp_path / "way")
    assert not is_plain(tmp_path / "secret", home)
