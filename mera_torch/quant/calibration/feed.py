"""What users have as calibration data (arrays, data loaders, folders, files), as batches of a model's inputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from mera_torch.converters.model import TensorInfo
from mera_torch.errors import CalibrationError, ConfigError, InvalidModelError, nearest
from mera_torch.samples import PRESETS, Preprocess, Samples, Spec
from mera_torch.samples import preprocess as read_preprocess

from ..graphs.run import Inputs
from .data import check_finite, items_of, length_of

Pick = Callable[[Any], Any] | str | int | Sequence[str | int] | None


class Feed:
    """Calibration data as batches of exactly the model's input shapes, read one item at a time.

    Args:
        data: A list, generator, data set or DataLoader of items; one array or tensor of all samples, or a dict of them
            by input; or a path: a .npy or .npz file, or a folder of images, .npy or .npz files
            (:class:`mera_torch.samples.Samples`).
        infos: The model's inputs.
        pick: How the inputs are found in an item; see :meth:`ModelQuantizer.calibrate`.
        preprocess: How images become inputs: a :class:`mera_torch.samples.Preprocess`, a preset's name, or a list of
            what ``--preprocess`` takes. For paths alone.
        what: How messages call the data.
        limit: No more batches are given than so many samples fill, but one at least; 0: all.

    Attributes:
        source: What is read.
        left_over: How many samples filled no batch, once all were read.

    An item may be a whole batch, a batch of another size (batches are divided and joined; samples that do not fill the
    last one are left out: `left_over`), or one sample without the batch dimension. Floating-point arrays of any width,
    and integers that lose nothing, are converted to the input's dtype.

    Raises:
        CalibrationError: an item that is unlike the inputs or not finite (says which item, which input).
        ConfigError: `pick` or `preprocess` is none.
    """

    def __init__(
        self,
        data: Any,
        infos: Sequence[TensorInfo],
        pick: Pick = None,
        preprocess: Preprocess | str | Sequence[str] | None = None,
        *,
        what: str = "calibration",
        limit: int = 0,
    ) -> None:
        self.infos, self.left_over, self._what = list(infos), 0, what
        self._pick = pick
        self._size = _batch_size(infos)
        self._most = max(1, limit // max(1, self._size)) if limit else 0  # batches
        if isinstance(data, str | os.PathLike):
            specs = [Spec(i.name, i.shape, str(i.dtype).removeprefix("torch.")) for i in infos]
            how = _preprocess(preprocess)
            try:
                data = Samples(data, specs, how)
            except InvalidModelError as error:
                raise CalibrationError(f"{what} data: {error}") from error
        elif preprocess is not None:
            raise ConfigError("preprocess says how images in a folder become inputs: give the folder as the data")
        self.source = self._iterable(data)

    @property
    def once(self) -> bool:
        """Whether the data can be read once only."""
        return isinstance(self.source, Iterator)

    @property
    def total(self) -> int | None:
        """About how many batches there are, where that is known before reading them."""
        count, size = length_of(self.source), getattr(self.source, "batch_size", None)  # of a DataLoader
        count = count * size // self._size if count is not None and isinstance(size, int) and self._size else count
        return min(count, self._most) if count is not None and self._most else count

    def __iter__(self) -> Iterator[Inputs]:
        return islice(self._batches(), self._most or None)

    def _batches(self) -> Iterator[Inputs]:
        held: list[list[torch.Tensor]] = [[] for _ in self.infos]
        samples = 0
        for index, item in enumerate(self._items()):
            tensors, exact = self._tensors(index, item)
            if exact and not samples:
                yield tuple(tensors)
                continue
            for parts, tensor in zip(held, tensors, strict=True):
                parts.append(tensor)
            samples += len(tensors[0])
            if samples >= self._size:
                joined = [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in held]
                whole = samples - samples % self._size
                for begin in range(0, whole, self._size):
                    yield tuple(tensor[begin : begin + self._size] for tensor in joined)
                held = [[tensor[whole:]] if samples > whole else [] for tensor in joined]
                samples -= whole
            held = [[*parts[:-1], parts[-1].clone()] if parts else [] for parts in held]  # the next may overwrite it
        self.left_over = samples + getattr(self.source, "left_over", 0)  # of files, which come as batches already

    def _items(self) -> Iterator[Any]:
        """What is wrong with a file of arrays is wrong with the data."""
        try:
            yield from items_of(self.source)
        except InvalidModelError as error:
            raise CalibrationError(f"{self._what} data: {error}") from error

    def _iterable(self, data: Any) -> Any:
        if isinstance(data, Mapping):
            return [data]
        if isinstance(data, np.ndarray | torch.Tensor):
            shape = tuple(data.shape)
            if len(self.infos) == 1 and len(shape) == len(self.infos[0].shape) and shape[1:] == self.infos[0].shape[1:]:
                return [data]  # all samples as one array
            if len(self.infos) != 1 or shape[1:] != self.infos[0].shape:
                raise CalibrationError(
                    f"{self._what} data is one array of shape {list(shape)}; it must hold samples of {self._wanted()}, "
                    "or be a list of inputs"
                )
        if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
            raise CalibrationError(
                f"{self._what} data must be a list, generator, DataLoader, array or path of inputs, got "
                f"{type(data).__name__}"
            )
        return data

    # ---- one item ----

    def _tensors(self, index: int, item: Any) -> tuple[list[torch.Tensor], bool]:
        """The item's inputs, [samples, ...] each, and whether they are exactly one batch."""
        picked = self._picked(index, item)
        tensors = [self._tensor(index, info, value) for info, value in zip(self.infos, picked, strict=True)]
        shapes = [tuple(tensor.shape) for tensor in tensors]
        if shapes == [info.shape for info in self.infos]:
            return tensors, True
        if self._size and shapes == [info.shape[1:] for info in self.infos]:
            return [tensor[None] for tensor in tensors], self._size == 1
        for info, shape in zip(self.infos, shapes, strict=True):
            if not self._size or len(shape) != len(info.shape) or shape[1:] != info.shape[1:]:
                raise self._wrong(index, info, f"shape {list(shape)}, but the model takes {list(info.shape)}")
        if len({shape[0] for shape in shapes}) != 1:
            raise CalibrationError(f"{self._what} item {index}: its inputs are batches of unlike sizes: {shapes}")
        return tensors, False

    def _picked(self, index: int, item: Any) -> list[Any]:
        """The values of the model's inputs within an item."""
        if self._pick is not None:
            item = self._by_key(index, item)
        if isinstance(item, Mapping):
            names = [info.name for info in self.infos]
            missing = [name for name in names if name not in item]
            if missing:
                raise CalibrationError(
                    f"{self._what} item {index} is a dict without input {missing[0]!r}: "
                    f"{nearest(missing[0], map(str, item))}; name its inputs, such as pick={list(map(str, item))[:1]}"
                )
            return [item[name] for name in names]
        if not isinstance(item, tuple | list):
            item = (item,)
        if len(item) < len(self.infos):
            raise CalibrationError(
                f"{self._what} item {index}: {len(item)} inputs, but the model takes {self._wanted()}"
            )
        for extra in item[len(self.infos) :]:
            if any(self._fits(extra, info) for info in self.infos):
                raise CalibrationError(
                    f"{self._what} item {index}: {len(item)} inputs, but the model takes {self._wanted()}; pick= says "
                    "which of them are meant"
                )
        return list(item[: len(self.infos)])

    def _by_key(self, index: int, item: Any) -> Any:
        pick = self._pick
        if callable(pick):
            return pick(item)
        keys = [pick] if isinstance(pick, str | int) else pick if isinstance(pick, list | tuple) else None
        if keys is None:
            raise ConfigError(f"pick must be a function, a key or an index, or a list of these, got {pick!r:.80}")
        try:
            return tuple(item[key] for key in keys)
        except (KeyError, IndexError, TypeError) as error:
            where = f"{self._what} item {index}"
            raise CalibrationError(f"{where}: pick={pick!r} finds nothing in it: {error!r}") from error

    def _fits(self, value: Any, info: TensorInfo) -> bool:
        """Whether what stands beside the inputs might be one."""
        if not isinstance(value, np.ndarray | torch.Tensor) or not info.dtype.is_floating_point:
            return False
        floating = torch.as_tensor(value).is_floating_point()
        return floating and tuple(value.shape)[-len(info.shape) + 1 :] == info.shape[1:] and len(info.shape) > 1

    def _tensor(self, index: int, info: TensorInfo, value: Any) -> torch.Tensor:
        if not isinstance(value, torch.Tensor):
            if not isinstance(value, np.ndarray | np.generic) and not hasattr(value, "__array__"):
                raise self._wrong(index, info, f"must be an array or a tensor, got {type(value).__name__}")
            try:
                value = torch.from_numpy(np.array(value, order="C"))
            except TypeError as error:
                raise self._wrong(index, info, f"dtype {np.asarray(value).dtype} is none of a network's") from error
        if value.layout != torch.strided:
            raise self._wrong(index, info, f"must be a dense tensor, got {value.layout}")
        tensor: torch.Tensor = value.detach().contiguous()
        if tensor.dtype != info.dtype:
            floats = tensor.is_floating_point() and info.dtype.is_floating_point
            if not floats and not _widens(tensor.dtype, info.dtype):
                hint = "; scale and normalize images first" if info.dtype.is_floating_point else ""
                wanted = f"but the model takes {_plain(info.dtype)}{hint}"
                raise self._wrong(index, info, f"dtype {_plain(tensor.dtype)}, {wanted}")
            tensor = tensor.to(info.dtype)
        check_finite(f"{self._what} item {index}: the input {info.name!r}", tensor)
        return tensor

    def _wrong(self, index: int, info: TensorInfo, what: str) -> CalibrationError:
        return CalibrationError(f"{self._what} item {index}, input {info.name!r}: {what}")

    def _wanted(self) -> str:
        rows = [f"{info.name!r} {_plain(info.dtype)}{list(info.shape)}" for info in self.infos]
        return f"{len(rows)} ({', '.join(rows)})" if len(rows) > 1 else f"one, {rows[0]}"


def _batch_size(infos: Sequence[TensorInfo]) -> int:
    """The size of the first dimension that all inputs share; 0 if they share none, or it is 0."""
    sizes = {info.shape[0] if info.shape else 0 for info in infos}
    return sizes.pop() if len(sizes) == 1 else 0


def _widens(given: torch.dtype, wanted: torch.dtype) -> bool:
    """Whether every integer of the one dtype is one of the other."""
    if given.is_floating_point or wanted.is_floating_point or torch.bool in (given, wanted):
        return False
    return torch.promote_types(given, wanted) == wanted


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _preprocess(given: Preprocess | str | Sequence[str] | None) -> Preprocess | None:
    if given is None or isinstance(given, Preprocess):
        return given
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, list | tuple) or not all(isinstance(text, str) for text in given):
        raise ConfigError(f"preprocess must be a Preprocess, or a preset: {', '.join(PRESETS)}; got {given!r:.80}")
    return read_preprocess(given)
