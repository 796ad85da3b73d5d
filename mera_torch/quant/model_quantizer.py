"""ModelQuantizer: a float model of any format, calibrated on data of any size, quantized in as many ways as wanted."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from mera_torch.errors import CalibrationError
from mera_torch.fingerprint import graph_hash, weights_hash
from mera_torch.samples import Preprocess
from mera_torch.targets import Layout

from . import pipeline
from .calibration.calibrate import ProgressOption, bar
from .calibration.checkpoint import Checkpoint, Position
from .calibration.data import EMPTY, Batches, Seen, take_first
from .calibration.feed import Feed, Pick
from .calibration.observers import collected, restore
from .calibration.statistics import Statistics
from .config import QuantConfig
from .findings import Finding
from .float_model import open_float
from .graphs.run import Inputs
from .quantized_model import QuantizedModel


class ModelQuantizer:
    """Quantizes a float model after training.

    Args:
        model: A path (TorchScript, .pt2, ONNX, TFLite, Keras), an nn.Module, a ScriptModule, an ExportedProgram, or a
            model from :class:`mera_torch.ModelLoader`.
        input_shape: One shape or a list of them, batch included, each maybe with its dtype: ``((1, 16), "int64")``; or
            a dict of these by name (of modules: of the arguments of forward(), or any names, in their order). Modules
            and TorchScript need it; of ONNX and .pt2 files it sets sizes that the file
            leaves open. Its order of dimensions is `layout`'s.
        layout: How images lie in the arrays that you give and get, ``NHWC`` or ``NCHW``. None: as the file says; for
            PyTorch models, whichever of the two fits `input_shape` (N, C, H, W where both do).
        config: A :class:`QuantConfig`, a dict, a preset's name or a TOML file.
        model_name: Default: the file's stem.

    Raises:
        InvalidModelError: no such file, no `input_shape` where one is needed, one that does not fit, or a model that is
            quantized already.
        CorruptFileError, UnsupportedError: of the importers; a model that is not in float32.
        ConfigError: of the configuration.
    """

    def __init__(
        self,
        model: Any,
        input_shape: Any = None,
        layout: Layout | str | None = None,
        config: QuantConfig | Mapping[str, Any] | str | Path | None = None,
        *,
        model_name: str | None = None,
    ) -> None:
        self.config = QuantConfig.of(config)
        self._model = open_float(model, input_shape, layout, model_name)
        self._examples = self._model.examples()
        self._parts: list[Batches] = []  # one a call of calibrate()
        self._feeds: list[Feed] = []
        self._seen = Seen()
        self._first: list[Inputs] = []
        self._findings: dict[tuple[QuantConfig, int], list[Finding]] = {}
        self._statistics: dict[str, Statistics] = {}
        self._subject = ""  # of these statistics
        self._ready: tuple[QuantConfig, pipeline.Prepared] | None = None  # calibrated, not used up yet

    @property
    def info(self) -> Any:
        """The model's inputs and outputs: names, shapes, dtypes, layouts."""
        return self._model.info

    # ---- calibration ----

    def calibrate(
        self,
        data: Any,
        progress: ProgressOption = True,
        checkpoint: str | os.PathLike[str] | None = None,
        *,
        pick: Pick = None,
        preprocess: Preprocess | str | Sequence[str] | None = None,
    ) -> ModelQuantizer:
        """Runs the model on typical inputs and remembers the ranges of its values; called again, it adds to them.

        Memory holds one item and the statistics, however much data there is.

        Args:
            data: A list, generator, data set or DataLoader of items; an array or tensor of all samples; the path of a
                .npy or .npz file, or of a folder of images, .npy or .npz files. 8 to 64 typical samples usually
                suffice. What can be read once only (a generator) is kept on the disk for later passes.
            progress: Show a bar on a terminal; or a function called with (stage, done, total).
            checkpoint: A file that keeps the state every few seconds. If it exists, calibration over the same data
                goes on where it stopped; the result is the same, byte for byte. One file a call.
            pick: How the model's inputs are found in an item: a function of the item, or keys or indices of it. None:
                an array or tensor is the input; of a tuple or list the first elements are, in order, and labels may
                follow; of a dict the values named like the inputs.
            preprocess: Of images in a folder: a :class:`Preprocess`, or a preset such as ``"imagenet"``.

        An item may be a batch of any size, or one sample without batch dimension: batches are divided and joined to the
        model's own batch size. Random numbers that a DataLoader draws begin at the configuration's seed.

        Returns:
            This object.

        Raises:
            CalibrationError: no data; an item of wrong count, shape or dtype, or with NaN or infinity (the message says
                which item and input); nothing but zeros; a checkpoint of other data, or of another model.
            CorruptFileError: a damaged checkpoint or data file.
            StorageError: a file cannot be read or written.
            UnsupportedError: the model contains nothing that can be quantized.
        """
        feed = data if isinstance(data, Feed) else Feed(data, self._model.info.inputs, pick, preprocess)
        batches = Batches(feed, self._examples, self._names, seed=self.config.seed, once=feed.once)
        reading = iter(batches)
        first = take_first(reading, self._first)
        new = chain(first[len(self._first) :], reading)
        before = dict(self.__dict__)
        self._first, self._parts, self._feeds = first, [*self._parts, batches], [*self._feeds, feed]
        self._seen = self._seen.copy()
        try:
            self._collect(new, feed.total, progress, checkpoint)
            if self._seen.batches == before["_seen"].batches:
                raise CalibrationError(self._nothing(feed))
            self._seen.check()
        except BaseException:
            self.__dict__.update(before)
            raise
        return self

    def _collect(
        self, new: Iterator[Inputs], total: int | None, progress: ProgressOption, path: str | os.PathLike[str] | None
    ) -> None:
        """Adds the statistics of the newest part of the data; of all of it, where the transforms, which now see more of
        it, make another network than before."""
        begin, digest = self._seen.batches, self._seen.digest
        prepared, subject = self._prepared(self.config, self._parts[:-1], progress)
        checkpoint = Checkpoint(path, subject)
        kept = checkpoint.load(begin, digest)
        done = Position(begin, digest, begin, digest)
        whole = True  # whether the statistics are those of all batches up to `done`
        with torch.no_grad(), bar("calibrating", total, progress) as advance:
            batches = self._seen.watch(new)
            if kept is not None:
                done = kept[0]
                self._skip(batches, done, advance)
                if missing := restore(prepared.model, kept[1]):
                    raise CalibrationError(f"checkpoint {str(path)!r} lacks the value {missing[0]!r}: delete it")
            try:
                for batch in batches:
                    whole = False
                    prepared.model(*batch)
                    done = replace(done, batches=self._seen.batches, digest=self._seen.digest)
                    whole = True
                    advance()
                    if checkpoint.due():
                        checkpoint.write(done, collected(prepared.model))
            except BaseException:
                if whole and done.batches > begin:
                    checkpoint.write(done, collected(prepared.model))
                raise
        checkpoint.write(done, collected(prepared.model))
        self._statistics, self._subject = collected(prepared.model), subject
        self._ready = self.config, prepared

    def _prepared(
        self, config: QuantConfig, parts: Sequence[Batches], progress: ProgressOption
    ) -> tuple[pipeline.Prepared, str]:
        """The network with observers that know `parts`: from the statistics if they hold for it, else by reading the
        data again. And its subject, the sha256 of all that decides over statistics but for the data."""
        known = self._findings.get((config, len(self._first)))
        prepared = pipeline.prepare(self._model.original, self._first, config, progress, check=known is None)
        prepared.findings = self._findings.setdefault((config, len(self._first)), known or prepared.findings)
        network = pipeline.without_observers(prepared.model)
        settings = [config.histogram_bins, config.averaging_constant, config.seed]
        subject = hashlib.sha256(f"{graph_hash(network)} {weights_hash(network)} {settings}".encode()).hexdigest()
        if subject == self._subject and set(collected(prepared.model)) <= set(self._statistics):
            restore(prepared.model, self._statistics)
        else:
            total = sum(feed.total or 0 for feed in self._feeds[: len(parts)]) or None
            with torch.no_grad(), bar("calibrating", total, progress) as advance:
                for batch in chain.from_iterable(parts):
                    prepared.model(*batch)
                    advance()
        return prepared, subject

    def _skip(self, batches: Iterator[Inputs], kept: Position, advance: Any) -> None:
        """Reads over the batches whose statistics are kept. Raises CalibrationError if they are not the same."""
        for _ in islice(batches, kept.batches - kept.begin):
            advance()
        if (self._seen.batches, self._seen.digest) != (kept.batches, kept.digest):
            raise CalibrationError(
                f"the checkpoint was made of {kept.batches - kept.begin} other batches than the data begins with now: "
                "give the same data in the same order, or delete the checkpoint"
            )

    # ---- quantization ----

    def quantize(
        self, config: QuantConfig | Mapping[str, Any] | str | Path | None = None, progress: ProgressOption = True
    ) -> QuantizedModel:
        """The quantized model, by `config` (default: the one given before). Calibration need not be repeated for
        another one: where its float transforms change the values, the data is read once more.

        Raises:
            CalibrationError: calibrate() was not called.
            ConfigError: of the configuration.
            UnsupportedError: nothing is left to quantize.
        """
        if not self._parts:
            raise CalibrationError("the model was not calibrated: call calibrate() with typical inputs first")
        options = self.config if config is None else QuantConfig.of(config)
        if self._ready is not None and self._ready[0] == options:
            prepared = self._ready[1]
        else:
            prepared, _ = self._prepared(options, self._parts, progress)
        self._ready = None
        reference, module = pipeline.finish(prepared, self._first, options, progress)
        return QuantizedModel(
            module, self._model.info, options, reference=reference, original=self._model.original,
            findings=prepared.findings, calibration=self.calibration, name=self._model.name,
        )  # fmt: skip

    @property
    def calibration(self) -> dict[str, Any]:
        """What was seen: batches, samples, left_over (samples that did not fill the last batch), sha256 of the data,
        and the lowest and highest value of each floating-point input."""
        shape = self._model.info.inputs[0].shape
        return {
            "batches": self._seen.batches,
            "samples": self._seen.batches * (shape[0] if shape else 1),
            "left_over": sum(feed.left_over for feed in self._feeds),
            "sha256": self._seen.digest,
            "inputs": {self._names[i]: list(extremes) for i, extremes in sorted(self._seen.ranges.items())},
        }

    @property
    def _names(self) -> list[str]:
        return [info.name for info in self._model.info.inputs]

    def _nothing(self, feed: Feed) -> str:
        if feed.left_over:
            size = self._model.info.inputs[0].shape[0]
            return f"calibration has {feed.left_over} samples, which do not fill a batch of the model's size, {size}"
        return EMPTY

    def __repr__(self) -> str:
        return f"ModelQuantizer({self._model.name!r}, {self._seen.batches} calibration batches)"
