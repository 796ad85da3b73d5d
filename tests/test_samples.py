"""Reading inputs: arrays, archives, images with their preprocessing; many of them, one batch at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mera_torch import arrays, samples
from mera_torch.arrays import read_npz
from mera_torch.errors import (
    ConfigError,
    CorruptFileError,
    InvalidModelError,
    MeraError,
    StorageError,
    UnsupportedError,
)
from mera_torch.samples import PRESETS, Preprocess, Samples, Spec, image, preprocess, random_inputs, read_inputs

NCHW = Spec("x", (1, 3, 4, 6), "float32")
NHWC = Spec("x", (1, 4, 6, 3), "uint8")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """8 rows of 12 pixels; red is the row, green the column, times 10."""
    rows, columns = np.mgrid[0:8, 0:12]
    pixels = np.stack([rows * 10, columns * 10, np.full((8, 12), 7)], 2).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_presets_keys_and_files(tmp_path: Path) -> None:
    assert preprocess([]) is None
    assert preprocess(["imagenet"]) == PRESETS["imagenet"]
    assert preprocess(["imagenet", "crop=200x100", "mean=1,2,3"]) == Preprocess(
        (0, 256), (200, 100), mean=(1.0, 2.0, 3.0), std=(0.229, 0.224, 0.225)
    )
    (tmp_path / "how.toml").write_text('preset = "symmetric"\nresize = [32, 48]\nlayout = "NHWC"\n')
    assert preprocess([str(tmp_path / "how.toml")]) == Preprocess((32, 48), mean=(0.5,), std=(0.5,), layout="NHWC")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("imagenot", "did you mean 'imagenet'"),
        ("rezise=4", "unknown key 'rezise': did you mean 'resize'"),
        ("resize=a", "resize must be numbers"),
        ("crop=1,2,3", "crop must be one or two sizes"),
        ("std=0", "not 0"),
        ("mean=nan", "finite"),
        ("layout=CHWN", "layout must be NCHW or NHWC"),
        ("scale=1,2", "scale must be one number"),
    ],
)
def test_preprocessing_that_is_none(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        preprocess([text])


@pytest.mark.parametrize(("dtype", "suffix"), [(np.uint16, "png"), (np.int32, "tif"), (np.float32, "tif")])
def test_images_of_more_than_8_bits_are_told(dtype: type, suffix: str, tmp_path: Path) -> None:
    """Pillow would clip their values to 255."""
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(np.ones((4, 6), dtype)).save(path)
    with pytest.raises(UnsupportedError, match=r"scale it to 8 bits, or give it as \.npy"):
        image(path, NCHW, PRESETS["unit"])


def test_archives_larger_than_the_scratch_folder_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "large.npz", x=np.zeros((40, 3, 4, 6), np.float32))
    monkeypatch.setattr(arrays, "_LARGE", 1000)
    read = Samples(tmp_path / "large.npz", [NCHW])
    assert len(read) == len(list(read)) == 40
    full = shutil.disk_usage(tmp_path)._replace(free=1 << 10)
    monkeypatch.setattr(arrays.shutil, "disk_usage", lambda path: full)
    with pytest.raises(StorageError, match=r"array 'x' takes .* set TMPDIR"):
        len(Samples(tmp_path / "large.npz", [NCHW]))


def test_archives_are_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(5 * 72, dtype=np.float32).reshape(5, 3, 4, 6))
    read: list[Path] = []
    monkeypatch.setattr(samples, "read_npz", lambda path, specs: read.append(path) or read_npz(path, specs))
    several = Samples(tmp_path / "a.npz", [NCHW])
    assert len(several) == len(list(several)) == len(list(several)) == 5 and len(read) == 1


def test_files_of_preprocessing_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        preprocess([str(tmp_path / "no.toml")])
    (tmp_path / "bad.toml").write_text("=")
    with pytest.raises(ConfigError, match="is not TOML"):
        preprocess([str(tmp_path / "bad.toml")])


def test_an_image_is_cropped_scaled_and_laid_out(picture: Path) -> None:
    how = preprocess(["crop=4x6", "scale=0.1", "mean=0,1,0.7", "std=1,2,1"])
    found = image(picture, NCHW, how)
    assert found.shape == NCHW.shape and found.dtype == np.float32
    rows, columns = np.mgrid[2:6, 3:9]
    assert np.allclose(found[0, 0], rows) and np.allclose(found[0, 1], (columns - 1) / 2)
    assert np.allclose(found[0, 2], 0, atol=1e-6)
    swapped = image(picture, NCHW, preprocess(["crop=4x6", "scale=0.1", "channels=BGR"]))
    assert np.allclose(swapped[0, 2], rows) and np.allclose(swapped[0, 1], columns)


def test_bytes_need_no_preprocessing_and_keep_their_layout(picture: Path) -> None:
    found = image(picture, NHWC, None)
    assert found.dtype == np.uint8 and found.shape == (1, 4, 6, 3)  # resized to fit
    whole = image(picture, Spec("x", (1, 8, 12, 3), "uint8"), None)
    assert whole[0, 5, 9].tolist() == [50, 90, 7]
    signed = image(picture, Spec("x", (1, 3, 8, 12), "int8"), preprocess(["raw", "mean=128"]))
    assert signed[0, :, 5, 9].tolist() == [-78, -38, -121]
    grey = image(picture, Spec("x", (1, 1, 8, 12), "float32"), preprocess(["unit", "channels=gray"]))
    assert grey.shape == (1, 1, 8, 12) and 0 < grey.max() < 1


def test_resize_keeps_the_aspect_or_not(picture: Path) -> None:
    assert image(picture, Spec("x", (1, 3, 4, 4), "float32"), preprocess(["unit", "resize=4", "crop=4"])).shape[2:] == (
        4,
        4,
    )
    with pytest.raises(ConfigError, match="is 4x6 after preprocessing"):
        image(picture, Spec("x", (1, 3, 4, 4), "float32"), preprocess(["resize=4"]))
    with pytest.raises(ConfigError, match="too small to crop"):
        image(picture, NCHW, preprocess(["crop=40"]))


def test_images_that_do_not_fit(picture: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"need preprocess= \(--preprocess\): imagenet"):
        image(picture, NCHW, None)
    with pytest.raises(ConfigError, match="its rank is 2"):
        image(picture, Spec("x", (1, 5), "float32"), PRESETS["unit"])
    with pytest.raises(ConfigError, match="channels"):
        image(picture, Spec("x", (1, 7, 8, 12), "float32"), PRESETS["unit"])
    with pytest.raises(ConfigError, match="mean must have 1 or 3 values, got 2"):
        image(picture, NCHW, preprocess(["mean=1,2"]))
    (tmp_path / "no.png").write_bytes(b"no picture")
    with pytest.raises(CorruptFileError, match="cannot be read as an image"):
        image(tmp_path / "no.png", NCHW, PRESETS["unit"])


def test_one_run_from_files(tmp_path: Path) -> None:
    specs = [Spec("a", (1, 2), "float32"), Spec("b", (1, 3), "int64")]
    given = random_inputs(specs, 3)
    for spec, array in zip(specs, given, strict=True):
        np.save(tmp_path / f"{spec.name}.npy", array)
    np.savez(tmp_path / "both.npz", b=given[1], a=given[0], c=np.zeros(3))
    for paths in ([tmp_path / "a.npy", tmp_path / "b.npy"], [tmp_path / "both.npz"]):
        assert all(map(np.array_equal, read_inputs(paths, specs), given))
    with pytest.raises(InvalidModelError, match="takes 2 inputs .* got 1 files"):
        read_inputs([tmp_path / "a.npy"], specs)
    with pytest.raises(InvalidModelError, match=r"input 'b' must be int64\[1, 3\], got float32\[1, 2\]"):
        read_inputs([tmp_path / "a.npy"] * 2, specs)
    np.savez(tmp_path / "half.npz", a=given[0])
    with pytest.raises(InvalidModelError, match="has no array 'b'"):
        read_inputs([tmp_path / "half.npz"], specs)
    (tmp_path / "no.npy").write_bytes(b"no array")
    with pytest.raises(CorruptFileError, match="is no .npy"):
        read_inputs([tmp_path / "no.npy"], specs[:1])
    with pytest.raises(StorageError, match="cannot be read"):
        read_inputs([tmp_path / "nothing.npy"], specs[:1])
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(CorruptFileError, match="is no .npy"):
        read_inputs([tmp_path / "objects.npy"], specs[:1])


def test_random_inputs_have_a_seed() -> None:
    specs = [Spec("a", (50,), "int8"), Spec("b", (50,), "int64"), Spec("c", (5,), "float32"), Spec("d", (9,), "bool")]
    a, b = random_inputs(specs, 1), random_inputs(specs, 1)
    assert all(map(np.array_equal, a, b)) and not np.array_equal(a[0], random_inputs(specs, 2)[0])
    assert a[0].min() < -50 and set(a[1]) == {0, 1} and [str(x.dtype) for x in a] == [s.dtype for s in specs]


# ---- many samples ----


def test_samples_of_one_array(tmp_path: Path) -> None:
    data = np.arange(7 * 24, dtype=np.float32).reshape(7, 2, 12)
    np.save(tmp_path / "x.npy", data)
    for batch, batches in ((1, 7), (2, 3), (7, 1), (8, 0)):
        samples = Samples(tmp_path / "x.npy", [Spec("x", (batch, 2, 12), "float32")])
        found = list(samples)
        assert len(samples) == len(found) == batches and samples.left_over == 7 % batch
        if found:
            assert np.array_equal(np.concatenate([x for (x,) in found]), data[: batch * batches])
    assert len(list(Samples(tmp_path / "x.npy", [Spec("x", (1, 2, 12), "float32")], limit=4))) == 4


def test_an_array_of_batches_and_single_samples(tmp_path: Path) -> None:
    spec = Spec("x", (1, 4), "float32")
    np.save(tmp_path / "batches.npy", np.ones((3, 1, 4), np.float32))
    assert len(list(Samples(tmp_path / "batches.npy", [spec]))) == 3
    folder = tmp_path / "folder"
    folder.mkdir()
    for index in range(3):
        np.save(folder / f"{2 - index}.npy", np.full(4, 2 - index, np.float32))
    (folder / "notes.txt").write_text("left alone")
    assert [float(x[0, 0]) for (x,) in Samples(folder, [spec])] == [0, 1, 2]


def test_archives_of_several_inputs(tmp_path: Path) -> None:
    specs = [Spec("a", (2, 2), "float32"), Spec("b", (2, 1), "int64")]
    np.savez(tmp_path / "x.npz", b=np.arange(4).reshape(4, 1), a=np.ones((4, 2), np.float32))
    found = list(Samples(tmp_path / "x.npz", specs))
    assert [b.ravel().tolist() for _, b in found] == [[0, 1], [2, 3]]
    np.savez(tmp_path / "uneven.npz", b=np.arange(3).reshape(3, 1), a=np.ones((4, 2), np.float32))
    with pytest.raises(InvalidModelError, match="different numbers of samples"):
        list(Samples(tmp_path / "uneven.npz", specs))
    np.save(tmp_path / "x.npy", np.ones((4, 2), np.float32))
    with pytest.raises(InvalidModelError, match="give .npz files"):
        Samples(tmp_path / "x.npy", specs)


def test_a_folder_of_images(tmp_path: Path) -> None:
    for index in range(5):
        Image.fromarray(np.full((6, 6, 3), index * 10, np.uint8)).save(tmp_path / f"{index}.png")
    samples = Samples(tmp_path, [Spec("x", (2, 3, 4, 4), "float32")], PRESETS["raw"])
    found = [x for (x,) in samples]
    assert len(samples) == len(found) == 2 and samples.left_over == 1
    assert [float(x[i].mean()) for x in found for i in range(2)] == [0, 10, 20, 30]


@pytest.mark.parametrize(
    ("name", "sentence", "error"),
    [
        ("nothing", "does not exist", StorageError),
        ("empty", "holds no .npy", InvalidModelError),
        ("text.txt", "is no .npy or .npz file", InvalidModelError),
        ("wrong.npy", r"takes samples of shape \[4\], got an array \[3, 5\]", InvalidModelError),
        ("bytes.npy", "must be float32, got uint8", InvalidModelError),
    ],
)
def test_samples_that_are_none(name: str, sentence: str, error: type[MeraError], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no")
    np.save(tmp_path / "wrong.npy", np.ones((3, 5), np.float32))
    np.save(tmp_path / "bytes.npy", np.ones((3, 4), np.uint8))
    with pytest.raises(error, match=sentence):
        list(Samples(tmp_path / name, [Spec("x", (1, 4), "float32")]))


def test_large_arrays_of_npz_files_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether packed or not, a large array is not read whole; a narrow or wide float becomes the input's."""
    monkeypatch.setattr("mera_torch.arrays._LARGE", 100)
    spec = Spec("x", (1, 4), "float32")
    values = np.arange(80, dtype=np.float64).reshape(20, 4)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", x=values, label=np.zeros(20))
        assert isinstance(read_npz(tmp_path / "x.npz", [spec])[0], np.memmap)
        samples = [sample for (sample,) in Samples(tmp_path / "x.npz", [spec])]
        assert {sample.dtype.name for sample in samples} == {"float32"}
        assert np.array_equal(np.concatenate(samples), values)


@pytest.mark.parametrize("damage", [lambda d: d[:200], lambda d: d[:60] + b"????" + d[64:], lambda d: b""])
def test_damaged_npz_files(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", x=np.ones((20, 4), np.float32))
    (tmp_path / "x.npz").write_bytes(damage((tmp_path / "whole.npz").read_bytes()))
    with pytest.raises(CorruptFileError, match=r"x\.npz"):
        list(Samples(tmp_path / "x.npz", [Spec("x", (1, 4), "float32")]))


def test_an_npy_file_under_another_name(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((20, 4), np.float32))
    (tmp_path / "x.npy").rename(tmp_path / "x.npz")
    with pytest.raises(CorruptFileError, match="rename it"):
        list(Samples(tmp_path / "x.npz", [Spec("x", (1, 4), "float32")]))
