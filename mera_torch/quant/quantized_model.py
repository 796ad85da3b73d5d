"""A quantized network with its float twins: callable, storable as a .mera file, measurable."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from mera_torch.converters import ImportedModel, ModelInfo, TensorInfo
from mera_torch.converters.files import Source, describe
from mera_torch.errors import ConfigError, CorruptFileError, InvalidModelError, StateError
from mera_torch.samples import Preprocess
from mera_torch.versions import tool_versions

from .calibration.calibrate import ProgressOption
from .calibration.feed import Feed, Pick
from .config import QuantConfig
from .files.mera_file import read_mera, tensor_row, write_mera
from .findings import Finding
from .graphs.capture import twin

if TYPE_CHECKING:
    from .quality.result import Quality


class QuantizedModel(torch.nn.Module):
    """What :class:`ModelQuantizer` makes and a .mera file holds. Called with the model's inputs, as tensors or arrays,
    it gives the quantized network's outputs.

    Attributes:
        module: The quantized network: aten and ``quantized_decomposed`` operators, for ``mera_torch.export`` and all
            else that takes modules (which take this object, too).
        config: How it was quantized.
        findings: What the linter said.
        calibration: What was seen: batches, samples, left_over, sha256 (of the data), inputs (lowest and highest value
            of each).
        info: Its inputs and outputs.
        name: Of the model.
    """

    def __init__(
        self,
        module: GraphModule,
        info: ModelInfo,
        config: QuantConfig,
        *,
        reference: GraphModule | None = None,
        original: GraphModule | None = None,
        findings: Sequence[Finding] = (),
        calibration: Mapping[str, Any] | None = None,
        name: str = "model",
    ) -> None:
        super().__init__()
        self.module = module
        module.meta["mera_model"] = info
        self.info, self.config, self.name = info, config, name
        self.findings = list(findings)
        self.calibration = dict(calibration or {})
        self._float = (original, reference)  # no submodules: their weights are not this network's
        self.training = False

    def forward(self, *inputs: Any) -> Any:
        """The network's results, as the float network gave them.

        Args:
            inputs: Tensors or numpy arrays as `info` says; floating-point ones of any width, batches of any size as far
                as the network itself computes them.

        Raises:
            InvalidModelError: another number of inputs, or one of another dtype, rank or shape.
        """
        leaves, spec = pytree.tree_flatten(inputs)
        if len(leaves) != len(self.info.inputs):
            names = ", ".join(info.name for info in self.info.inputs)
            raise InvalidModelError(f"{self.name!r} takes {len(self.info.inputs)} inputs ({names}), got {len(leaves)}")
        return self.module(*pytree.tree_unflatten(list(map(_as_input, leaves, self.info.inputs)), spec))

    def train(self, mode: bool = True) -> QuantizedModel:
        """A quantized network is for evaluation only: train(True) raises StateError."""
        if mode:
            raise StateError("a quantized network cannot be trained; docs/quantization.md shows training before it")
        return self

    @property
    def original(self) -> GraphModule:
        """The float network as it was given. Raises StateError if the file was saved without it."""
        return self._float_network(0)

    @property
    def reference(self) -> GraphModule:
        """The float twin of `module`: the same nodes with the same names, nothing rounded. Raises StateError if the
        file was saved without it."""
        return self._float_network(1)

    def _float_network(self, index: int) -> GraphModule:
        found = self._float[index]
        if found is None:
            raise StateError(
                f"{self.name!r} was saved without its float networks (with_float=False): quantize it again to measure "
                "quality"
            )
        return found

    def example_inputs(self, seed: int = 0) -> tuple[torch.Tensor, ...]:
        """Random inputs of the right shapes and dtypes."""
        found: tuple[torch.Tensor, ...] = self.imported().example_inputs(seed)
        return found

    def imported(self) -> ImportedModel:
        """`module` as the importers give models: for :class:`ModelLoader`, compilers and comparisons."""
        if isinstance(self.module, ImportedModel):
            return self.module
        found = ImportedModel(self.module, twin(self.module).graph, class_name="ImportedModel")
        found.meta["mera_model"] = self.info
        return found

    # ---- files ----

    def save(self, path: str | os.PathLike[str], *, with_float: bool = True) -> None:
        """Writes a .mera file, whole or not at all: the same network gives the same bytes.

        Args:
            path: By custom it ends in ``.mera``.
            with_float: Keep the float networks too, which take some 8 times the space, for
                :meth:`measure_quantization_quality` and :meth:`report` after loading.

        Raises:
            UnsupportedError: the network has operators of another library, or results in a class
                that mera_torch.pytrees does not know.
            StorageError: the file cannot be written.
        """
        graphs = {"module": self.module}
        if with_float and None not in self._float:
            graphs |= {"reference": self.reference, "original": self.original}
        manifest = {
            "versions": tool_versions(),
            "name": self.name,
            "source": self.info.format,
            "inputs": [tensor_row(info) for info in self.info.inputs],
            "outputs": [tensor_row(info) for info in self.info.outputs],
            "config": self.config.to_dict(),
            "calibration": self.calibration,
            "findings": [asdict(finding) for finding in self.findings],
        }
        write_mera(path, manifest, graphs)

    @classmethod
    def load(cls, source: Source) -> QuantizedModel:
        """Reads a .mera file (its path or bytes). Nothing in it is run.

        Raises:
            InvalidModelError: there is no such file.
            UnsupportedError: a .mera file of EdgeCortix's MERA, which is a pickle.
            CorruptFileError: truncated, altered, hostile, or of a newer version.
        """
        manifest, graphs = read_mera(source)
        try:
            config = QuantConfig.from_dict(manifest.config)
            findings = [Finding(**row) for row in manifest.findings]
        except (ConfigError, TypeError) as error:
            raise CorruptFileError(f"{describe(source)}: mera.json: {error}") from error
        return cls(
            graphs["module"], manifest.info, config, reference=graphs.get("reference"), original=graphs.get("original"),
            findings=findings, calibration=manifest.calibration, name=manifest.name,
        )  # fmt: skip

    # ---- quality ----

    def measure_quantization_quality(
        self,
        data: Any,
        debug_mode: bool = False,
        target: str | None = None,
        *,
        pick: Pick = None,
        preprocess: Preprocess | str | Sequence[str] | None = None,
        **options: Any,
    ) -> Quality:
        """How far the quantized network is from the float one: see :func:`mera_torch.quant.quality.measure.measure`.

        Args:
            data: Inputs to measure with, in any form that :meth:`ModelQuantizer.calibrate` takes.
            debug_mode: Every node, too, not the outputs alone.
            target: What runs: "InterpreterHw", "Simulator" or "IP"; None: the q/dq module in PyTorch.
            pick, preprocess: As of :meth:`ModelQuantizer.calibrate`.
            options: Of ``measure``: progress, platform, ...

        Raises:
            CalibrationError: `data` is empty or unlike the inputs.
            StateError: the file was saved without the float networks.
        """
        from .quality.measure import measure

        batches = Feed(data, self.info.inputs, pick, preprocess, what="evaluation")
        return measure(
            self.original, self.reference, self.module, batches, debug_mode=debug_mode, target=target, **options
        )

    def report(
        self,
        path: str | os.PathLike[str],
        data: Any = None,
        *,
        quality: Quality | None = None,
        title: str | None = None,
        curve: Any = None,
        progress: ProgressOption = True,
    ) -> Path:
        """Writes one page of HTML, which opens offline, and returns its path: see
        :func:`mera_torch.quant.quality.report.report`.

        Args:
            path: The file, ``report.html``.
            data: Inputs to measure every operator with; or
            quality: what was measured already.
            title: Of the page; default: the model's name.
            curve: What a mixed-precision search found.
            progress: Of measuring.

        Raises:
            ConfigError: neither `data` nor `quality` is given.
        """
        from .quality.report import report

        if quality is None and data is None:
            raise ConfigError("report: give data to measure with, or what measure_quantization_quality found")
        if quality is None:
            quality = self.measure_quantization_quality(data, debug_mode=True, progress=progress)
        seen = self.calibration
        facts = {"calibration": f"{seen['samples']} samples in {seen['batches']} batches"} if seen else {}
        return report(
            quality, path, title=title or f"{self.name} in int8", findings=self.findings, config=self.config,
            curve=curve, facts=facts,
        )  # fmt: skip

    def __repr__(self) -> str:
        shapes = ", ".join(f"{info.name} {list(info.shape)}" for info in self.info.inputs)
        return f"QuantizedModel({self.name!r}, {shapes})"


def _as_input(value: Any, info: TensorInfo) -> Any:
    """The value as the tensor that an input takes."""
    value = torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
    wanted = f"input {info.name!r} must be {str(info.dtype).removeprefix('torch.')}{list(info.shape)}"
    if not isinstance(value, torch.Tensor):
        raise InvalidModelError(f"{wanted}, got {type(value).__name__}")
    if value.dim() != len(info.shape) or tuple(value.shape[1:]) != info.shape[1:]:
        raise InvalidModelError(f"{wanted}, got the shape {list(value.shape)}")
    if value.dtype != info.dtype:
        if not (value.is_floating_point() and info.dtype.is_floating_point):
            raise InvalidModelError(f"{wanted}, got {str(value.dtype).removeprefix('torch.')}")
        value = value.to(info.dtype)
    return value


def quantized_model(model: Any) -> QuantizedModel:
    """`model` itself, or read from a .mera file. Raises InvalidModelError for anything else."""
    if isinstance(model, QuantizedModel):
        return model
    if isinstance(model, str | os.PathLike | bytes):
        return QuantizedModel.load(model)
    raise InvalidModelError(f"must be a QuantizedModel or a .mera file, got {type(model).__name__}")
