"""Calibration data: any iterable of inputs as checked batches, which can be read as often as passes need them, while
memory holds one batch."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from mera_torch.atomic import storage_error
from mera_torch.errors import CalibrationError

from ..graphs.run import Inputs

FIRST_BATCHES = 128
FIRST_BYTES = 128 << 20
"""So many batches, and bytes of inputs, do transforms and corrections get: they hold activations of all at once."""
EMPTY = "calibration is empty: give at least one input (8 to 64 typical ones usually suffice)"
"""What calibration without data is told."""


def as_inputs(inputs: Any) -> Inputs:
    """`inputs` as the tuple of positional arguments that a model takes."""
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def take_first(batches: Iterator[Inputs], taken: Sequence[Inputs] = ()) -> list[Inputs]:
    """Copies of the first batches of an iterator after those `taken` already: FIRST_BATCHES in all, or as many as
    FIRST_BYTES hold, at least one. (Copies, since a source may fill one buffer again and again.)"""
    first = list(taken)
    size = sum(_bytes(batch) for batch in first)
    while len(first) < FIRST_BATCHES and size < FIRST_BYTES and (batch := next(batches, None)) is not None:
        first.append(tuple(x.clone() if isinstance(x, torch.Tensor) else x for x in batch))
        size += _bytes(batch)
    return first


def _bytes(batch: Inputs) -> int:
    return sum(x.nbytes for x in batch if isinstance(x, torch.Tensor))


def length_of(items: Any) -> int | None:
    """How many items there are, where they say so: a DataLoader has ``__len__`` even if its data set has none."""
    try:
        return len(items)
    except TypeError:
        return None


def items_of(source: Any, what: str = "calibration") -> Iterator[Any]:
    """The items of anything iterable; of a data set with __len__ and __getitem__ alone, as many as it says.

    Raises CalibrationError, which calls the data `what`, if there are none.
    """
    _check_iterable(source, what)
    if hasattr(source, "__iter__") or not hasattr(source, "__len__"):
        return iter(source)
    return (source[index] for index in range(len(source)))


def _check_iterable(source: Any, what: str) -> None:
    if not hasattr(source, "__iter__") and not hasattr(source, "__getitem__"):
        raise CalibrationError(f"{what} data must be an iterable of inputs, got {type(source).__name__}")


def seeded(source: Any, seed: int, what: str = "calibration") -> Iterator[Any]:
    """Its items, drawn as if PyTorch's random numbers (and those of a DataLoader's own generator) began at `seed`: a
    DataLoader then shuffles the same way each time. The caller's random numbers go on undisturbed."""
    generators = [torch.default_generator, *_generators(source)]
    inner = [torch.Generator().manual_seed(seed).get_state() for _ in generators]
    iterator: Iterator[Any] | None = None
    end = object()
    while True:
        outer = [generator.get_state() for generator in generators]
        _set_states(generators, inner)
        try:
            iterator = items_of(source, what) if iterator is None else iterator
            item = next(iterator, end)
        finally:
            inner = [generator.get_state() for generator in generators]
            _set_states(generators, outer)
        if item is end:
            return
        yield item


def _generators(source: Any) -> list[torch.Generator]:
    """Those that a DataLoader and its samplers hold."""
    source = getattr(source, "source", source)  # of a Feed
    sampler, batches = (getattr(source, name, None) for name in ("sampler", "batch_sampler"))
    held = (getattr(each, "generator", None) for each in (source, sampler, batches, getattr(batches, "sampler", None)))
    found = {id(each): each for each in held if isinstance(each, torch.Generator) and each.device.type == "cpu"}
    return list(found.values())


def _set_states(generators: Sequence[torch.Generator], states: Sequence[torch.Tensor]) -> None:
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)


class Batches:
    """Calibration data as tuples of contiguous tensors like the examples, to be iterated any number of times; each pass
    draws the same random numbers, so that a DataLoader shuffles the same way.

    What can be iterated once only (a generator) is kept on the disk as it is read, until this object is gone.

    Args:
        source: An iterable of items, each a tensor or a tuple or list of the model's inputs.
        examples: Example inputs: every item must have their number, dtypes and shapes.
        names: Of the inputs, for messages.
        seed: Where PyTorch's random numbers begin in each pass.
        what: How messages call the data.
        once: Whether `source` can be iterated once only; None: if it is an iterator.

    Raises:
        CalibrationError: `source` is no iterable; while iterating: an item is unlike the examples, or holds NaN or
            infinity (says which).
        StorageError: while iterating: the disk cannot hold what must be kept.
    """

    def __init__(
        self,
        source: Iterable[Any],
        examples: Inputs,
        names: Sequence[str] = (),
        *,
        seed: int = 0,
        what: str = "calibration",
        once: bool | None = None,
    ) -> None:
        if isinstance(source, torch.Tensor):
            raise CalibrationError(
                f"{what} data must be an iterable of inputs, got one tensor of shape {tuple(source.shape)}; "
                "wrap it in a list"
            )
        _check_iterable(source, what)
        self.source, self.examples, self.names = source, examples, names or [str(i) for i in range(len(examples))]
        self.seed, self.what = seed, what
        once = isinstance(source, Iterator) if once is None else once
        self._spool = _Spool(self._pass(), examples) if once else None

    @property
    def total(self) -> int | None:
        """The number of batches, where it is known before reading them."""
        return length_of(self.source)

    def __iter__(self) -> Iterator[Inputs]:
        return iter(self._spool) if self._spool is not None else self._pass()

    def _pass(self) -> Iterator[Inputs]:
        return checked(seeded(self.source, self.seed, self.what), self.examples, self.names, self.what)


def checked(
    items: Iterable[Any], examples: Inputs, names: Sequence[str], what: str = "calibration"
) -> Iterator[Inputs]:
    """Each item as a batch. Raises CalibrationError naming the item and the input that is unlike the example."""
    for i, item in enumerate(items):
        inputs = as_inputs(item)
        if len(inputs) != len(examples):
            raise CalibrationError(f"{what} item {i}: {len(inputs)} inputs, but the model takes {len(examples)}")
        for j, (got, wanted) in enumerate(zip(inputs, examples, strict=True)):
            where = f"{what} item {i}: the input {names[j]!r}"
            _check_input(where, got, wanted)
            if isinstance(wanted, torch.Tensor):
                check_finite(where, got)
        yield tuple(x.contiguous() if isinstance(x, torch.Tensor) else x for x in inputs)


def _check_input(where: str, got: Any, wanted: Any) -> None:
    if not isinstance(wanted, torch.Tensor):
        return
    if not isinstance(got, torch.Tensor):
        raise CalibrationError(f"{where} must be a torch.Tensor, got {type(got).__name__}")
    if got.dtype != wanted.dtype:
        raise CalibrationError(f"{where} has dtype {got.dtype}, but the model takes {wanted.dtype}")
    if got.shape != wanted.shape:
        raise CalibrationError(f"{where} has shape {tuple(got.shape)}, but the model takes {tuple(wanted.shape)}")


def check_finite(where: str, tensor: torch.Tensor) -> None:
    """Raises CalibrationError, beginning with `where`, if the tensor holds NaN or infinity."""
    if not tensor.is_floating_point() or not tensor.numel():
        return
    low, high = (float(v) for v in torch.aminmax(tensor))
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        kind = "NaN" if torch.isnan(tensor).any() else "infinity"
        number = int((~torch.isfinite(tensor)).sum())
        raise CalibrationError(f"{where} holds {kind} in {number} of {tensor.numel()} elements; check the data")


class Seen:
    """What calibration has read so far, without the data.

    Attributes:
        batches: How many.
        digest: sha256 over all of them in their order, hexadecimal; "" before the first.
        ranges: Lowest and highest value of each floating-point input, by its position.
    """

    def __init__(self) -> None:
        self.batches = 0
        self.digest = ""
        self.ranges: dict[int, tuple[float, float]] = {}

    def watch(self, batches: Iterable[Inputs]) -> Iterator[Inputs]:
        """The same batches, each noted when it is taken."""
        for batch in batches:
            self.add(batch)
            yield batch

    def add(self, batch: Inputs) -> None:
        """Notes a batch of contiguous tensors."""
        digest = hashlib.sha256(self.digest.encode())
        for i, x in enumerate(batch):
            if not isinstance(x, torch.Tensor) or not x.numel():
                continue
            digest.update(f"{x.dtype}{list(x.shape)}".encode())
            digest.update(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
            if x.is_floating_point():
                low, high = (float(v) for v in torch.aminmax(x))
                before = self.ranges.get(i, (low, high))
                self.ranges[i] = min(low, before[0]), max(high, before[1])
        self.batches, self.digest = self.batches + 1, digest.hexdigest()

    def copy(self) -> Seen:
        """One that goes on by itself."""
        new = Seen()
        new.batches, new.digest, new.ranges = self.batches, self.digest, dict(self.ranges)
        return new

    def check(self) -> None:
        """Raises CalibrationError if there was no batch, or nothing but zeros."""
        if not self.batches:
            raise CalibrationError(EMPTY)
        if self.ranges and all(extremes == (0.0, 0.0) for extremes in self.ranges.values()):
            raise CalibrationError(
                f"calibration data is degenerate: every element of all {self.batches} batches is zero, which tells no "
                "range; give typical inputs, preprocessed as the network expects them"
            )


class _Spool:
    """The batches of an iterator, each written to a scratch folder when it is first read."""

    def __init__(self, batches: Iterator[Inputs], examples: Inputs) -> None:
        self._batches, self._examples = batches, examples
        self._folder: Path | None = None
        self._stored = 0

    def __iter__(self) -> Iterator[Inputs]:
        for index in count():
            if index < self._stored:
                yield self._load(index)
                continue
            batch = next(self._batches, None)
            if batch is None:
                return
            self._store(batch)
            yield batch

    def _store(self, batch: Inputs) -> None:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="mera-calibration-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        tensors = {str(i): x.clone() for i, x in enumerate(batch) if isinstance(x, torch.Tensor)}
        path = self._folder / f"{self._stored}.safetensors"
        try:
            path.write_bytes(safetensors.torch.save(tensors))
        except OSError as error:
            raise storage_error(path, error) from error
        self._stored += 1

    def _load(self, index: int) -> Inputs:
        tensors = safetensors.torch.load_file(f"{self._folder}/{index}.safetensors")
        return tuple(tensors.get(str(i), example) for i, example in enumerate(self._examples))
