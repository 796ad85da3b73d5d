"""Inputs of networks from files: .npy, .npz, and images by a preprocessing spec; one sample after the other, however
large the files are. Needs numpy alone; images need Pillow, too."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import Array as Array
from .arrays import Spec as Spec
from .arrays import listed, load_array, read_npz
from .errors import (
    ConfigError,
    CorruptFileError,
    InvalidModelError,
    MeraError,
    StorageError,
    UnsupportedError,
    nearest,
)

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
ARRAYS = (".npy", ".npz")


# ---- preprocessing of images ----


@dataclass(frozen=True)
class Preprocess:
    """From an image to an input: resize, crop, scale to [0, 1], subtract the mean, divide by the standard deviation.

    resize: (0, side): the shorter side becomes `side`; (height, width): exactly that; None: not resized, and if the
    input's size is another, to that size. crop: of the centre, (height, width). scale: what a byte is multiplied with.
    mean, std: one value, or one a channel, after scaling. layout: NCHW, NHWC, or "" for whichever the input's shape
    tells. channels: RGB, BGR or gray.
    """

    resize: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str = ""
    channels: str = "RGB"


PRESETS: dict[str, Preprocess] = {
    "imagenet": Preprocess((0, 256), (224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "unit": Preprocess(),
    "symmetric": Preprocess(mean=(0.5,), std=(0.5,)),
    "raw": Preprocess(scale=1.0),
}
"""imagenet: torchvision's; unit: [0, 1]; symmetric: [-1, 1]; raw: bytes as they are."""


def preprocess(given: Sequence[str]) -> Preprocess | None:
    """What `--preprocess` says, each a preset, KEY=VALUE, or a TOML file of these keys; later ones win. None if empty.

    Raises ConfigError for an unknown preset or key and for values out of range.
    """
    found: Preprocess | None = None
    for text in given:
        key, equals, value = text.partition("=")
        if equals:
            found = _with(found or Preprocess(), {key: value}, "preprocess")
        elif text.endswith(".toml"):
            values = dict(_toml(text))
            preset = values.pop("preset", None)
            found = _with(_preset(str(preset)) if preset else found or Preprocess(), values, text)
        else:
            found = _preset(text)
    return found


def _preset(name: str) -> Preprocess:
    if name not in PRESETS:
        raise ConfigError(
            f"preprocess is a preset, KEY=VALUE or a .toml file; there is no preset {name!r}: {nearest(name, PRESETS)}"
        )
    return PRESETS[name]


def _toml(path: str) -> Mapping[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        found: Mapping[str, Any] = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"{path!r} cannot be read: {error.strerror}") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path!r} is not TOML: {error}") from error
    return found


def _with(base: Preprocess, values: Mapping[str, Any], where: str) -> Preprocess:
    known = list(Preprocess.__dataclass_fields__)
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}: {nearest(key, known)}")
        base = replace(base, **{key: _value(where, key, value)})
    return base


def _value(where: str, key: str, value: Any) -> Any:
    if key in ("layout", "channels"):
        choices = ("NCHW", "NHWC") if key == "layout" else ("RGB", "BGR", "gray")
        if value not in choices:
            raise ConfigError(f"{where}: {key} must be {' or '.join(choices)}, got {value!r}")
        return value
    texts = str(value).replace("x", ",").split(",") if isinstance(value, str) else np.ravel(value).tolist()
    try:
        numbers = tuple(float(text) for text in texts)
    except ValueError:
        raise ConfigError(f"{where}: {key} must be numbers, such as {_EXAMPLES[key]}, got {value!r}") from None
    if key in ("resize", "crop"):
        if len(numbers) not in (1, 2) or any(n != int(n) or not 1 <= n <= 65535 for n in numbers):
            raise ConfigError(f"{where}: {key} must be one or two sizes, such as {_EXAMPLES[key]}, got {value!r}")
        sizes = tuple(int(n) for n in numbers)
        return sizes if len(sizes) == 2 else (0 if key == "resize" else sizes[0], sizes[0])
    if not all(map(math.isfinite, numbers)) or (key == "std" and 0 in numbers):
        raise ConfigError(f"{where}: {key} must be finite numbers{', not 0' if key == 'std' else ''}, got {value!r}")
    if key == "scale":
        if len(numbers) != 1:
            raise ConfigError(f"{where}: scale must be one number, got {value!r}")
        return numbers[0]
    return numbers


_EXAMPLES = {"resize": "256 or 256x256", "crop": "224", "scale": "0.00392", "mean": "0.5,0.5,0.5", "std": "0.5,0.5,0.5"}


def image(path: Path, spec: Spec, how: Preprocess | None) -> Array:
    """An image as a batch of one for the input. Raises ConfigError if the spec leaves open how, CorruptFileError for a
    file that is no image."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise MeraError("images need Pillow: pip install pillow, or give .npy files") from None
    dtype = np.dtype(spec.dtype)
    if how is None:
        if dtype != np.uint8:
            raise ConfigError(
                f"images for {spec} need preprocess= (--preprocess): {', '.join(PRESETS)}, KEY=VALUE or a .toml file"
            )
        how = PRESETS["raw"]
    layout, height, width, depth = _geometry(spec, how)
    if depth not in (1, 3) or (how.channels == "gray") != (depth == 1):
        raise ConfigError(f"input {spec} has {depth} channels, preprocess channels={how.channels} gives another number")
    try:
        with Image.open(path) as opened:
            if opened.mode.startswith(("I", "F")):
                held = "floats" if opened.mode == "F" else "more than 8 bits a pixel"
                raise UnsupportedError(
                    f"{str(path)!r} holds {held}: scale it to 8 bits, or give it as .npy, preprocessed"
                )
            loaded = opened.convert("L" if depth == 1 else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CorruptFileError(f"{str(path)!r} cannot be read as an image: {error}") from error
    loaded = _cropped(_resized(loaded, how, (height, width)), how, path)
    if loaded.size != (width, height):
        raise ConfigError(
            f"{str(path)!r} is {loaded.height}x{loaded.width} after preprocessing, input {spec} takes {height}x{width}"
        )
    pixels = np.asarray(loaded, np.float64).reshape(height, width, depth)
    if how.channels == "BGR":
        pixels = pixels[:, :, ::-1]
    for name, given in (("mean", how.mean), ("std", how.std)):
        if len(given) not in (1, depth):
            raise ConfigError(f"preprocess: {name} must have 1 or {depth} values, got {len(given)}")
    values: Array = (pixels * how.scale - np.array(how.mean)) / np.array(how.std)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return np.ascontiguousarray((values if layout == "NHWC" else values.transpose(2, 0, 1))[None].astype(dtype))


def _geometry(spec: Spec, how: Preprocess) -> tuple[str, int, int, int]:
    """Layout, height, width, channels of an image input."""
    if len(spec.shape) != 4:
        raise ConfigError(f"input {spec} takes no images: its rank is {len(spec.shape)}, not 4")
    _, a, b, c = spec.shape
    layout = how.layout or ("NCHW" if a in (1, 3) or c not in (1, 3) else "NHWC")
    return (layout, b, c, a) if layout == "NCHW" else (layout, a, b, c)


def _resized(picture: Any, how: Preprocess, wanted: tuple[int, int]) -> Any:
    from PIL import Image

    size = how.resize
    if size is None and how.crop is None:
        size = wanted
    if size is None:
        return picture
    height, width = size
    if height == 0:
        short = min(picture.size)
        height, width = (max(1, round(side * width / short)) for side in (picture.height, picture.width))
    return picture.resize((width, height), Image.Resampling.BILINEAR)


def _cropped(picture: Any, how: Preprocess, path: Path) -> Any:
    if how.crop is None:
        return picture
    height, width = how.crop
    if picture.height < height or picture.width < width:
        raise ConfigError(
            f"{str(path)!r} is {picture.height}x{picture.width}, too small to crop {height}x{width} of it"
        )
    top, left = round((picture.height - height) / 2), round((picture.width - width) / 2)
    return picture.crop((left, top, left + width, top + height))


# ---- files ----


def read_inputs(paths: Sequence[Path], specs: Sequence[Spec], how: Preprocess | None = None) -> list[Array]:
    """One run's inputs: a file for each input in order (.npy or an image), or one .npz with all of them by name.

    Raises InvalidModelError for a wrong count, shape or dtype, StorageError, CorruptFileError, ConfigError.
    """
    if len(paths) == 1 and paths[0].suffix.lower() == ".npz":
        return [_fitting(array, spec) for array, spec in zip(read_npz(paths[0], specs), specs, strict=True)]
    if len(paths) != len(specs):
        raise InvalidModelError(f"the model takes {len(specs)} inputs ({listed(specs)}), got {len(paths)} files")
    return [
        image(path, spec, how) if path.suffix.lower() in IMAGES else _fitting(load_array(path), spec)
        for path, spec in zip(paths, specs, strict=True)
    ]


def _fitting(array: Array, spec: Spec) -> Array:
    if tuple(array.shape) != spec.shape or str(array.dtype) != spec.dtype:
        raise InvalidModelError(
            f"input {spec.name!r} must be {spec.dtype}{list(spec.shape)}, got {array.dtype}{list(array.shape)}"
        )
    return np.array(array, order="C")


def random_inputs(specs: Sequence[Spec], seed: int = 0) -> list[Array]:
    """Standard normal floats; 8- and 16-bit integers from their whole range, wider ones and bools from 0 to 1."""
    rng = np.random.default_rng(seed)
    return [_random(spec, rng) for spec in specs]


def _random(spec: Spec, rng: np.random.Generator) -> Array:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return rng.standard_normal(spec.shape).astype(dtype)
    if dtype.kind in "iu" and dtype.itemsize <= 2:
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max + 1, spec.shape).astype(dtype)
    return rng.integers(0, 2, spec.shape).astype(dtype)


# ---- many samples ----


class Samples:
    """A set of samples for a network, read one batch at a time: iterating gives tuples of arrays of the specs' shapes.

    path: a .npy file (of one input: [samples, ...]), a .npz file (an array [samples, ...] an input, by name), or a
    folder of images, .npy or .npz files, in order of name. Samples that do not fill a batch at the end are left out
    (`left_over`, known after iterating). limit: at most so many batches. len() is the number of batches.

    Raises InvalidModelError for what does not fit the specs, StorageError, CorruptFileError, ConfigError.
    """

    def __init__(
        self, path: str | os.PathLike[str], specs: Sequence[Spec], how: Preprocess | None = None, limit: int = 0
    ) -> None:
        self.path, self.specs, self.how, self.limit = Path(path), list(specs), how, limit
        self.left_over = 0
        self._kept: tuple[Path, list[Array]] | None = None
        self._files = _files_of(self.path)
        if len(specs) != 1 and any(file.suffix.lower() != ".npz" for file in self._files):
            raise InvalidModelError(
                f"{str(path)!r}: the model takes {len(specs)} inputs ({listed(specs)}); give .npz files of them all"
            )

    def __len__(self) -> int:
        """Batches. Reads headers only, where the files are .npy or images."""
        count = sum(1 if file.suffix.lower() in IMAGES else self._count(file) for file in self._files)
        batches = count // self._batch
        return min(batches, self.limit) if self.limit else batches

    def __iter__(self) -> Iterator[tuple[Array, ...]]:
        held: list[list[Array]] = []  # single samples, [1, ...] each
        given = 0
        for sample in self._singles():
            held.append(sample)
            if len(held) == self._batch:
                yield tuple(
                    np.concatenate(arrays) if len(held) > 1 else arrays[0] for arrays in zip(*held, strict=True)
                )
                held, given = [], given + 1
                if given == self.limit:
                    return
        self.left_over = len(held)

    @property
    def _batch(self) -> int:
        return self.specs[0].shape[0] if self.specs[0].shape else 1

    def _singles(self) -> Iterator[list[Array]]:
        for file in self._files:
            if file.suffix.lower() in IMAGES:
                yield [image(file, self.specs[0], self.how)]
                continue
            arrays = [self._rows(array, spec, file) for array, spec in zip(self._arrays(file), self.specs, strict=True)]
            if len({len(array) for array in arrays}) != 1:
                raise InvalidModelError(f"{str(file)!r}: its arrays hold different numbers of samples")
            for index in range(len(arrays[0])):
                rows = zip(arrays, self.specs, strict=True)
                yield [np.array(array[index : index + 1], spec.dtype) for array, spec in rows]

    def _arrays(self, file: Path) -> list[Array]:
        """Of a file; those of the newest .npz file are kept, since they may be unpacked to the disk."""
        if file.suffix.lower() != ".npz":
            return [load_array(file)]
        if self._kept is None or self._kept[0] != file:
            self._kept = None
            self._kept = file, read_npz(file, self.specs)
        return self._kept[1]

    def _count(self, file: Path) -> int:
        return len(self._rows(self._arrays(file)[0], self.specs[0], file))

    def _rows(self, array: Array, spec: Spec, file: Path) -> Array:
        """The array as [samples, ...]."""
        floats = array.dtype.kind == "f" == np.dtype(spec.dtype).kind
        if str(array.dtype) != spec.dtype and not floats:
            raise InvalidModelError(f"{str(file)!r}: input {spec.name!r} must be {spec.dtype}, got {array.dtype}")
        one = spec.shape[1:]
        if array.shape == one:
            return array[None]
        if array.ndim == len(spec.shape) and array.shape[1:] == one:
            return array
        if array.ndim == len(spec.shape) + 1 and array.shape[1:] == spec.shape:
            return array.reshape(-1, *one)
        raise InvalidModelError(
            f"{str(file)!r}: input {spec.name!r} takes samples of shape {list(one)}, got an array {list(array.shape)}"
        )


def _files_of(path: Path) -> list[Path]:
    if not path.exists():
        raise StorageError(f"{str(path)!r} does not exist")
    if path.is_file():
        if path.suffix.lower() not in (*ARRAYS, *IMAGES):
            raise InvalidModelError(f"{str(path)!r} is no .npy or .npz file, and no image")
        return [path]
    try:
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in (*ARRAYS, *IMAGES))
    except OSError as error:
        raise StorageError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    if not files:
        raise InvalidModelError(f"{str(path)!r} holds no .npy or .npz file, and no image (folders in it are not read)")
    return files
