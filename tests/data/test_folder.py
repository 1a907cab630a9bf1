"""Folders of pictures, as people have them."""

import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from gpm_tune.data import FolderConfig
from gpm_tune.data.folder import _extensions, bring_forward
from gpm_tune.data.images import decode
from gpm_tune.errors import UserError

COUNT = 30
RED, WHITE = (255, 0, 0), (255, 255, 255)
LOAD = (
    "import sys; from gpm_tune.data import FolderConfig; "
    "data = FolderConfig(name='folder', root=sys.argv[1]).load(0); print(data.train.long().sum().item())"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where arrays are kept."""
    monkeypatch.setenv("GPM_TUNE_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache" / "folders"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Thirty pictures of one grey each, in two nested folders, and things that are no pictures."""
    folder = tmp_path / "pictures"
    for number in range(COUNT):
        place = folder / ("a" if number % 2 else "b/c")
        place.mkdir(parents=True, exist_ok=True)
        Image.new("L", (40, 30), 8 * number).save(place / f"{number:02d}.{'png' if number % 3 else 'BMP'}")
    for name in ("labels.csv", ".hidden.png", "README", ".thumbnails/x.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("no picture")
    return folder


def config(root: Path, **changes: object) -> FolderConfig:
    return FolderConfig.model_validate({"name": "folder", "root": root, "channels": 1, **changes})


def greys(images: torch.Tensor) -> list[int]:
    """Of pictures of one grey each: which."""
    assert (images == images[..., :1, :1]).all()
    return images[:, 0, 0, 0].tolist()


def arrays(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.npy"))


def test_every_picture_is_in_one_of_the_splits(root: Path) -> None:
    data = config(root).load(seed=0)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [24, 3, 3]
    assert data.train.shape[1:] == config(root).shape == (1, 32, 32)
    assert data.train.dtype == torch.uint8
    found = [grey for split in (data.train, data.validation, data.test) for grey in greys(split)]
    assert sorted(found) == [8 * number for number in range(COUNT)]
    assert config(root).validation_samples == 3


def test_the_split_follows_the_seed_and_tests_do_not(root: Path, tmp_path: Path) -> None:
    one, again, other = (config(root).load(seed) for seed in (1, 1, 2))
    assert torch.equal(one.train, again.train)
    assert torch.equal(one.validation, again.validation)
    assert not torch.equal(one.validation, other.validation)
    assert torch.equal(one.test, other.test)
    everything = {grey for seed in range(40) for grey in greys(config(root).load(seed).validation)}
    assert len(everything) == 27, "each but those for tests is in some validation set"
    moved = root.rename(tmp_path / "elsewhere")
    for file in moved.rglob("*.png"):
        os.utime(file, (0, 0))
    there = config(moved).load(seed=1)
    assert torch.equal(there.train, one.train), "neither the place nor the time matters"
    assert torch.equal(there.test, one.test)


def test_the_classes_of_nested_folders_are_all_among_the_tests(tmp_path: Path) -> None:
    for number in range(200):
        place = tmp_path / "classes" / str(number % 2)
        place.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 200 * (number % 2)).save(place / f"{number}.png")
    assert set(greys(config(tmp_path / "classes", size=4).load(seed=0).test)) == {0, 200}


@pytest.mark.parametrize("chosen", [[], [0, 1], [1, 0], [5, 3], [3, 0], [2, 5, 1, 0]])
def test_what_is_chosen_is_brought_forward(chosen: list[int]) -> None:
    images = torch.arange(6)
    bring_forward(images, torch.tensor(chosen, dtype=torch.long))
    assert set(images[: len(chosen)].tolist()) == set(chosen)
    assert sorted(images.tolist()) == list(range(6))


def odd_pictures() -> Iterator[tuple[str, Image.Image, dict[str, object], tuple[int, int, int]]]:
    """Name, picture, how it is saved, and the colour that is expected in its centre."""
    rgb, size = Image.new("RGB", (50, 20), RED), (50, 20)
    yield "plain.png", rgb, {}, RED
    yield "compressed.jpg", rgb, {}, RED
    yield "photo.JPEG", rgb, {}, RED
    yield "modern.webp", rgb, {"lossless": True}, RED
    yield "print.tif", rgb.convert("CMYK"), {}, RED
    yield "video.jpg", rgb.convert("YCbCr"), {}, RED
    yield "palette.gif", rgb.quantize(4), {}, RED
    yield "icon.png", rgb.quantize(4), {}, RED
    yield "see_through.png", Image.new("RGBA", size, (*RED, 0)), {}, WHITE
    yield "half.png", Image.new("RGBA", size, (*RED, 128)), {}, (255, 127, 127)
    yield "grey_alpha.png", Image.new("LA", size, (0, 0)), {}, WHITE
    yield "keyed.png", rgb, {"transparency": RED}, WHITE
    yield "keyed_palette.gif", Image.new("P", size, 3), {"transparency": 3}, WHITE
    yield "bits.png", Image.new("1", size, 1), {}, WHITE
    yield "deep.png", Image.fromarray(np.full((20, 50), 257 * 100, np.uint16)), {}, (100, 100, 100)
    yield "deep.tif", Image.fromarray(np.full((20, 50), 257 * 100, np.uint16)), {}, (100, 100, 100)
    yield "lab.tif", Image.new("LAB", size, (255, 128, 128)), {}, WHITE
    yield "pixel.png", Image.new("RGB", (1, 1), RED), {}, RED


@pytest.mark.parametrize(
    ("name", "picture", "how", "colour"), [pytest.param(*odd, id=odd[0]) for odd in odd_pictures()]
)
def test_odd_pictures(
    tmp_path: Path, name: str, picture: Image.Image, how: dict[str, object], colour: tuple[int, int, int]
) -> None:
    picture.save(tmp_path / name, **how)
    pixels = decode(tmp_path / name, channels=3, side=8)
    assert pixels.shape == (3, 8, 8)
    assert np.abs(pixels.reshape(3, -1).T.astype(int) - colour).max() <= 3
    grey = decode(tmp_path / name, channels=1, side=8)
    assert grey.shape == (1, 8, 8)
    assert np.abs(grey.astype(int) - np.dot(colour, [0.299, 0.587, 0.114])).max() <= 3


def test_the_central_square_is_kept_upright(tmp_path: Path) -> None:
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, :20] = pixels[:, 40:] = (0, 255, 0)  # cut off
    pixels[:10, 20:40] = RED
    image = Image.fromarray(pixels)
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a turn by 90 degrees clockwise
    image.save(tmp_path / "upright.png")
    turned.save(tmp_path / "turned.png", exif=exif)
    upright = decode(tmp_path / "upright.png", channels=3, side=20)
    assert np.array_equal(upright, pixels[:, 20:40].transpose(2, 0, 1))
    assert np.array_equal(decode(tmp_path / "turned.png", channels=3, side=20), upright)


def test_pictures_are_decoded_once_and_then_mapped(root: Path, cache: Path) -> None:
    config(root).prepare()
    (array,) = arrays(cache)
    before = array.stat().st_mtime_ns
    train = config(root).load(seed=0).train
    assert array.stat().st_mtime_ns == before
    assert str(array) in Path("/proc/self/maps").read_text(), "the array is mapped, not read"
    content = array.read_bytes()
    train[:] = 0
    assert array.read_bytes() == content
    assert not list(cache.rglob("*.partial"))
    assert len(list(root.iterdir())) == 6, "nothing is written into the folder"


def test_a_changed_folder_is_read_anew_and_its_old_array_dropped(root: Path, cache: Path) -> None:
    config(root).prepare()
    config(root, size=16).prepare()
    small, large = sorted(arrays(cache), key=lambda array: array.stat().st_size)
    file = root / "a" / "01.png"
    Image.new("L", (40, 30), 251).save(file)
    os.utime(file, (1, 1))
    data = config(root).load(seed=0)
    assert 251 in [*greys(data.train), *greys(data.validation), *greys(data.test)]
    assert small.exists(), "of another form"
    assert not large.exists()
    file.unlink()
    assert sum(map(len, vars(config(root).load(seed=0)).values())) == COUNT - 1
    assert len(arrays(cache)) == 2


def test_what_a_killed_process_left_is_never_taken_for_whole(root: Path, cache: Path) -> None:
    expected = config(root).load(seed=0).train.clone()
    (array,) = arrays(cache)
    whole = array.read_bytes()
    for damaged in (whole[:-1], whole[:50], b"", b"no array"):
        array.unlink()  # not overwritten: it is mapped
        array.write_bytes(damaged)
        array.with_suffix(".partial").write_bytes(damaged)
        assert torch.equal(config(root).load(seed=0).train, expected)
        assert array.read_bytes() == whole


def test_several_processes_decode_once(root: Path, cache: Path) -> None:
    for number in range(300):
        Image.new("L", (200, 200), number % 256).save(root / f"more_{number}.png")
    command = [sys.executable, "-c", LOAD, str(root)]
    loading = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    sums = [process.communicate(timeout=100)[0] for process in loading]
    assert [process.returncode for process in loading] == [0, 0]
    assert sums[0] == sums[1] != ""
    assert len(arrays(cache)) == 1
    assert not list(cache.rglob("*.partial"))


def test_a_process_that_is_killed_while_it_decodes_does_no_harm(root: Path, cache: Path) -> None:
    for number in range(200):
        Image.new("RGB", (800, 800), (number, 0, 0)).save(root / f"more_{number}.png", compress_level=1)
    process = subprocess.Popen([sys.executable, "-c", LOAD, str(root)], stdout=subprocess.PIPE)
    while not (halfway := list(cache.rglob("*.partial"))) and process.poll() is None:
        pass
    process.kill()
    process.communicate()
    assert halfway
    assert not arrays(cache)
    assert len(FolderConfig(name="folder", root=root).load(seed=0).train) == 230 - 46
    assert not list(cache.rglob("*.partial"))


def test_unreadable_pictures_are_named(root: Path, cache: Path) -> None:
    whole = (root / "a" / "01.png").read_bytes()
    (root / "a" / "01.png").write_bytes(whole[: len(whole) // 2])
    (root / "b" / "text.jpg").write_text("no picture")
    (root / "nowhere.png").symlink_to(root / "gone.png")
    Image.new("F", (4, 4), 0.5).save(root / "float.tiff")
    with pytest.raises(UserError) as error:
        config(root).prepare()
    text = str(error.value)
    assert text.startswith("4 of 33 pictures cannot be read")
    for file in ("a/01.png", "b/text.jpg", "nowhere.png", "float.tiff"):
        assert f"{root / file}: cannot be read as an image" in text
    assert not arrays(cache)
    for number in range(20):
        (root / f"bad_{number}.png").touch()
    with pytest.raises(UserError, match=r"24 of 53 pictures(.*\n){11}and 14 more\nhelp: "):
        config(root).prepare()


def test_folders_that_are_missing_or_too_small_are_refused(root: Path, tmp_path: Path) -> None:
    missing = config(tmp_path / "nowhere")
    file = config(root / "labels.csv")
    for read in (missing.prepare, lambda: missing.load(0), lambda: missing.validation_samples):
        with pytest.raises(UserError, match=r"nowhere cannot be read as a folder: No such file.*data.root"):
            read()
    with pytest.raises(UserError, match="Not a directory"):
        file.prepare()
    with pytest.raises(UserError, match=r"b has 15 pictures, but at least 20 are needed"):
        config(root / "b").prepare()
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_nested_folder_that_cannot_be_read_is_no_empty_one(root: Path) -> None:
    (root / "a").chmod(0)
    with pytest.raises(UserError, match=r"/a cannot be read as a folder: Permission denied"):
        config(root).prepare()
    (root / "a").chmod(0o700)


def test_where_arrays_cannot_be_kept_is_said(root: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"decoded pictures cannot be kept there.*GPM_TUNE_DATA"):
        config(root).prepare()


def test_a_relative_path_stays_the_same_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    here = config(Path("pictures"))
    monkeypatch.chdir(root)
    assert here.validation_samples == 3
    assert FolderConfig.model_validate(here.model_dump(mode="json")) == here
    monkeypatch.setenv("HOME", str(root.parent))
    assert config(Path("~/pictures")).validation_samples == 3
    with pytest.raises(ValidationError):
        config(Path("~nobody_of_this_name/pictures"))


@pytest.mark.parametrize("changes", [{"size": 3}, {"size": 2000}, {"channels": 2}, {"mode": "RGB"}])
def test_impossible_forms_are_refused(root: Path, changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        config(root, **changes)


def test_only_what_pillow_itself_decodes_is_taken_and_the_rest_is_counted(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("data.h5", "film.mpg", "print.eps", "more.h5"):
        (root / name).write_bytes(b"no picture")
    os.mkfifo(root / "pipe.png")
    assert sum(map(len, vars(config(root).load(seed=0)).values())) == COUNT
    assert "has 30 pictures; left out" in caplog.text
    for counted in ("2 .h5", "1 .mpg", "1 .eps", "1 .csv", "1 without a suffix", "1 special files"):
        assert counted in caplog.text
    (root / "b" / "x.txt").touch()
    with pytest.raises(UserError, match=r"has 15 pictures.*left out.*1 \.txt"):
        config(root / "b").prepare()


def test_pillow_decodes_what_it_writes_in_every_format_that_is_taken(tmp_path: Path) -> None:
    writable = {".bmp", ".dds", ".gif", ".ico", ".im", ".jpg", ".jp2", ".mpo", ".pcx", ".png", ".ppm", ".qoi"}
    writable |= {".sgi", ".tga", ".tif", ".webp"} | ({".avif"} & set(_extensions()))
    assert writable <= _extensions()
    for suffix in writable:
        Image.new("RGB", (32, 32), RED).save(tmp_path / f"x{suffix}")
        pixels = decode(tmp_path / f"x{suffix}", channels=3, side=8)
        assert np.abs(pixels[:, 4, 4].astype(int) - RED).max() <= 10, suffix
    assert not _extensions() & {
        ".h5",
        ".hdf",
        ".mpg",
        ".mpeg",
        ".eps",
        ".ps",
        ".grib",
        ".bufr",
        ".wmf",
        ".pdf",
    }


def test_a_pipe_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(ValueError, match="no regular file"):
        decode(tmp_path / "x.png", channels=3, side=8)


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF data of these fields: tag, type, count and value."""
    fields = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + fields + bytes(4)


SIDEWAYS = (0x0112, 3, 1, struct.pack("<HH", 6, 0))  # shown after a turn by 90 degrees clockwise
BROKEN = {
    "text for a ratio": (exif(SIDEWAYS, (0x011A, 2, 4, b"abc\0")), True),
    "text for a number": (exif(SIDEWAYS, (0x0100, 2, 4, b"abc\0")), True),
    "text for a folder of fields": (exif(SIDEWAYS, (0x8825, 2, 4, b"abc\0")), True),
    "text for the orientation": (exif((0x0112, 2, 2, b"6\0\0\0")), False),
    "cut off": (exif(SIDEWAYS)[:20], False),
    "no EXIF data": (b"Exif\0\0garbage", False),
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("fault", BROKEN)
def test_broken_exif_data_are_no_reason_to_refuse_a_picture(tmp_path: Path, fault: str, suffix: str) -> None:
    data, is_turned = BROKEN[fault]
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:, :20] = 255
    Image.fromarray(pixels).save(tmp_path / f"x.{suffix}", exif=data)
    decoded = decode(tmp_path / f"x.{suffix}", channels=1, side=4)[0]
    assert (
        (decoded > 127).tolist() == [[True, True, False, False]] * 4
        if not is_turned
        else (decoded[:2] > 127).all() and (decoded[2:] < 127).all()
    )


def test_both_ways_with_unreadable_pictures_are_kept(root: Path, cache: Path) -> None:
    ways = [config(root), config(root, skip_unreadable=True)]
    for way in ways:
        way.prepare()
    kept = arrays(cache)
    times = [array.stat().st_mtime_ns for array in kept]
    for way in ways:
        way.prepare()
    assert len(kept) == 2
    assert [array.stat().st_mtime_ns for array in kept] == times, "neither is decoded again"
    assert ways[0].packed != ways[1].packed


def test_unreadable_pictures_may_be_left_out_and_are_listed_for_xargs(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [root / "a" / "with blank.png", root / "b" / "two\nlines.jpg", root / "'quoted\".gif"]
    for file in bad:
        file.write_text("no picture")
    with pytest.raises(UserError) as error:
        config(root).prepare()
    command = re.search(r"`(.*)` lists them all", str(error.value))
    assert command is not None
    assert "skip_unreadable" in str(error.value)
    assert all(line.isprintable() for line in str(error.value).splitlines())
    listed = subprocess.run(
        command[1].replace("xargs -0 ls", "xargs -0 -n 1 basename -z"),
        shell=True,
        capture_output=True,
        check=True,
    )
    assert {Path(os.fsdecode(name)).name for name in listed.stdout.split(b"\0")[:-1]} == {f.name for f in bad}

    skipping = config(root, skip_unreadable=True)
    assert skipping.validation_samples == 3
    assert "3 of 33 pictures cannot be read and are left out" in caplog.text
    data = skipping.load(seed=0)
    found = [grey for split in (data.train, data.validation, data.test) for grey in greys(split)]
    assert sorted(found) == [8 * number for number in range(COUNT)]
    caplog.clear()
    skipping.load(seed=1)
    assert not caplog.text, "it is decoded, and said, once"
    for file in (root / "a").iterdir():
        file.write_text("no picture")
    with pytest.raises(UserError, match="has 15 pictures, but at least 20 are needed"):
        config(root, skip_unreadable=True).prepare()
