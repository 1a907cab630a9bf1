"""CelebA, on a small folder in its own layout."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gpm_tune.data import CelebAConfig
from gpm_tune.errors import UserError

COUNTS = (7, 3, 2)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve images: red grows with the number; what lies above and below the central square is green."""
    images = tmp_path / "celeba" / "img_align_celeba"
    images.mkdir(parents=True)
    lines = []
    splits = [split for split, count in enumerate(COUNTS) for _ in range(count)]
    for number, split in enumerate(reversed(splits), start=1):
        pixels = np.zeros((218, 178, 3), dtype=np.uint8)
        pixels[..., 0] = 20 * number
        pixels[:18, :, 1] = pixels[-18:, :, 1] = 255
        pixels[20:100, :, 2] = 200  # the upper half is blue
        Image.fromarray(pixels).save(images / f"{number:06d}.jpg", quality=95)
        lines.append(f"{number:06d}.jpg {split}")
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def arrays(root: Path) -> list[Path]:
    return list((root / "celeba").glob("*.npy"))


def test_images_are_cropped_resized_and_partitioned(root: Path) -> None:
    data = CelebAConfig(name="celeba", root=root).load(seed=0)
    sizes = [len(split) for split in (data.train, data.validation, data.test)]
    assert sizes == list(COUNTS)
    assert data.train.shape[1:] == (3, 64, 64)
    assert data.train.dtype == torch.uint8
    red = [split[:, 0].float().mean((1, 2)) / 20 for split in (data.test, data.validation, data.train)]
    torch.testing.assert_close(torch.cat(red), torch.arange(1.0, 13.0), atol=0.2, rtol=0)
    green, blue = data.train[:, 1, 2:-2].float(), data.train[:, 2].float()
    assert green.max() < 60, "the green bands lie outside the central square"
    assert blue[:, 4:26].mean() > 180
    assert blue[:, 34:60].mean() < 20


def test_the_partition_does_not_depend_on_the_seed(root: Path) -> None:
    config = CelebAConfig(name="celeba", root=root)
    assert torch.equal(config.load(seed=0).train, config.load(seed=1).train)


def test_images_are_decoded_once_and_then_mapped(root: Path) -> None:
    config = CelebAConfig(name="celeba", root=root)
    config.prepare()
    (cache,) = arrays(root)
    before = cache.stat().st_mtime_ns
    train = config.load(seed=0).train
    assert cache.stat().st_mtime_ns == before
    assert torch.equal(train, torch.from_numpy(np.load(cache)[:7]))
    assert str(cache) in Path("/proc/self/maps").read_text(), "the array is mapped, not read"
    train[0] = 0  # copy-on-write: the file stays
    assert np.load(cache)[0].any()
    assert not list((root / "celeba").glob("*.partial"))


def test_replaced_images_are_decoded_anew_and_the_old_array_is_dropped(root: Path) -> None:
    config = CelebAConfig(name="celeba", root=root)
    before = config.load(seed=0).test[0].clone()
    (old,) = arrays(root)
    (root / "celeba" / "gpm_tune_64.npy").write_bytes(old.read_bytes())  # of a version that did not look
    images = root / "celeba" / "img_align_celeba"
    images.joinpath("000009.jpg").replace(images / "000001.jpg")
    images.joinpath("000002.jpg").rename(images / "000009.jpg")
    images.joinpath("000003.jpg").rename(images / "000002.jpg")
    Image.new("RGB", (178, 218)).save(images / "000003.jpg")
    assert not torch.equal(config.load(seed=0).test[0], before)
    (new,) = arrays(root)
    assert new != old


def test_an_array_without_its_images_is_taken_as_it_is(root: Path) -> None:
    config = CelebAConfig(name="celeba", root=root)
    train = config.load(seed=0).train.clone()
    (array,) = arrays(root)
    shutil.rmtree(root / "celeba" / "img_align_celeba")
    assert torch.equal(config.load(seed=0).train, train)
    array.rename(root / "celeba" / "gpm_tune_64.npy")
    assert torch.equal(config.load(seed=0).train, train)
    assert len(arrays(root)) == 1


def test_another_partition_of_the_same_sizes_is_decoded_anew(root: Path) -> None:
    config = CelebAConfig(name="celeba", root=root)
    before = config.load(seed=0).test.clone()
    partition = root / "celeba" / "list_eval_partition.txt"
    lines = partition.read_text().splitlines()  # the first two are for tests
    lines[0], lines[-1] = lines[0].replace(" 2", " 0"), lines[-1].replace(" 0", " 2")
    partition.write_text("\n".join(lines))
    after = config.load(seed=0)
    assert [len(split) for split in (after.train, after.validation, after.test)] == list(COUNTS)
    assert not torch.equal(after.test, before)


def test_another_partition_is_decoded_anew(root: Path) -> None:
    config = CelebAConfig(name="celeba", root=root)
    config.prepare()
    partition = root / "celeba" / "list_eval_partition.txt"
    partition.write_text("\n".join(partition.read_text().splitlines()[:-1]))
    data = config.load(seed=0)
    assert len(data.train) + len(data.validation) + len(data.test) == 11


def test_missing_files_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"CelebA is not in .*nowhere.*\nhelp: put .*list_eval_partition.txt"):
        CelebAConfig(name="celeba", root=tmp_path / "nowhere" / "x").prepare()
    (root / "celeba" / "img_align_celeba" / "000004.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 12 images are not in .*, the first: 000004.jpg"):
        CelebAConfig(name="celeba", root=root).prepare()
    assert not arrays(root)


def test_what_is_no_image_is_named(root: Path) -> None:
    (root / "celeba" / "img_align_celeba" / "000002.jpg").write_text("no image")
    with pytest.raises(UserError, match=r"000002.jpg: cannot be read as an image"):
        CelebAConfig(name="celeba", root=root).prepare()


def test_a_malformed_partition_is_refused(root: Path) -> None:
    (root / "celeba" / "list_eval_partition.txt").write_text("000001.jpg train\n")
    with pytest.raises(UserError, match=r"expected lines such as"):
        CelebAConfig(name="celeba", root=root).prepare()
