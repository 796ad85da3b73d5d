"""ModelLoader: models of every format, as MERA's loader takes them, for Deployer.deploy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .assemble import joined, prequantized, relaid
from .converters import (
    ImportedModel,
    ModelInfo,
    TensorInfo,
    from_keras,
    from_onnx,
    from_pt2,
    from_tflite,
    from_torchscript,
    info_of,
    unwrapped,
)
from .converters.exported import save_pt2
from .errors import InvalidModelError, MeraError, UnsupportedError, nearest
from .input_desc import InputDescription, InputDescriptionContainer
from .ops.common import DEQUANTIZE_OPS, QUANTIZE_OPS
from .project_folder import plain_name
from .targets import Layout

if TYPE_CHECKING:
    from .deployer import Deployer

FOR_QUANTIZING = "mera_torch.quantize(model.module, model.example_inputs(), calibration) and ModelLoader.from_module"


class MeraModel:
    """A loaded model.

    module: the network as an ordinary torch module, whose inputs and outputs are those of input_desc and output_desc;
    input_desc: name -> (shape, dtype); layout: of its images; quantized: whether it computes in int8 (else in float).
    """

    def __init__(
        self, module: ImportedModel, model_name: str, layout: Layout | None, use_prequantize_input: bool = False
    ) -> None:
        self.module, self.model_name, self.layout = module, model_name, layout
        self.use_prequantize_input = use_prequantize_input
        self.input_desc = _described(module.info.inputs)
        self.output_desc = _described(module.info.outputs)

    def get_input_shape(self, input_name: str | None = None) -> tuple[int, ...]:
        """The shape of an input; the name may be left out where there is one. Raises InvalidModelError."""
        names = list(self.input_desc)
        if input_name is None:
            if len(names) != 1:
                raise InvalidModelError(f"model {self.model_name!r} has {len(names)} inputs: say which of {names}")
            return self.input_desc[names[0]].input_shape
        if input_name not in self.input_desc:
            raise InvalidModelError(
                f"model {self.model_name!r} has no input {input_name!r}: {nearest(str(input_name), names)}"
            )
        return self.input_desc[input_name].input_shape

    @property
    def quantized(self) -> bool:
        found = QUANTIZE_OPS | DEQUANTIZE_OPS
        return any(node.target in found for node in self.module.graph.nodes)

    def example_inputs(self, seed: int = 0) -> tuple[torch.Tensor, ...]:
        """Random inputs of the right shapes and dtypes."""
        found: tuple[torch.Tensor, ...] = self.module.example_inputs(seed)
        return found

    def describe(self) -> dict[str, Any]:
        """What project.json says of the model."""
        return {
            "format": self.module.info.format, "quantized": self.quantized, "layout": self.layout and self.layout.value,
            "use_prequantize_input": self.use_prequantize_input, "inputs": _plain(self.input_desc),
            "outputs": _plain(self.output_desc),
        }  # fmt: skip

    def __repr__(self) -> str:
        kind = "quantized" if self.quantized else "float"
        return f"MeraModel({self.model_name!r}, {kind}, {self.input_desc.to_dict()})"


class ModelLoader:
    """Loads models; with a deployer, a copy of each goes into its project.

    All methods take model_name=, by default the file's stem. Raises of all: InvalidModelError (no such file, shapes
    that do not fit), CorruptFileError, UnsupportedError (an operator that there is no conversion for), ConfigError.
    """

    def __init__(self, deployer: Deployer | None = None) -> None:
        self._deployer = deployer

    def from_pytorch(
        self, model_path: Any, input_desc: Any, model_name: str | None = None,
        layout: Layout | str = Layout.NHWC, use_prequantize_input: bool = False,
    ) -> MeraModel:  # fmt: skip
        """A TorchScript file (or module, or bytes), float or quantized by PyTorch.

        A TorchScript file runs code of its author when it is loaded: load only files that you trust.
        input_desc: {name: (shape, dtype)}, or a list of such pairs. layout: of the arrays that you give and get, and of
        input_desc's shapes; only arrays of four dimensions have one. PyTorch itself computes in NCHW. With NHWC, which
        is the default, the DNA reads your arrays as they are. use_prequantize_input: see from_tflite.
        """
        wanted = Layout(layout)
        desc = InputDescriptionContainer(input_desc)
        nchw = {name: (_nchw(found.input_shape, wanted), found.input_type) for name, found in desc.items()}

        def load() -> ImportedModel:
            try:
                return from_torchscript(model_path, nchw)
            except MeraError as error:
                if wanted is Layout.NHWC and any(len(found.input_shape) == 4 for found in desc.values()):
                    hint = "layout is NHWC: are the shapes of input_desc N, H, W, C? Else give layout=Layout.NCHW"
                    raise type(error)(f"{error} ({hint})") from error
                raise

        return self._loaded(load, model_path, model_name, wanted, use_prequantize_input)

    def from_tflite(
        self, model_path: Any, model_name: str | None = None, use_prequantize_input: bool = False,
        layout: Layout | str | None = None,
    ) -> MeraModel:  # fmt: skip
        """A TFLite file (or its bytes).

        layout: of the arrays that you give and get; default: NHWC, the file's own. use_prequantize_input: the model's
        float inputs come as the integers to which the model would quantize them first; input_desc then tells dtype,
        scale and zero point. Inputs that are integers in the file stay as they are.
        """
        return self._loaded(lambda: from_tflite(model_path), model_path, model_name, layout, use_prequantize_input)

    def from_onnx(
        self, model_path: Any, model_name: str | None = None, layout: Layout | str | None = None, batch_num: int = 1,
        shape_mapping: Mapping[str, Any] | None = None,
    ) -> MeraModel:  # fmt: skip
        """An ONNX file (or its bytes, or a ModelProto).

        layout: of the arrays that you give and get; default: the file's own, which for images is NCHW. batch_num: the
        size of an unknown first dimension. shape_mapping: sizes of symbolic dimensions by name, or shapes by input.
        """

        def load() -> ImportedModel:
            return from_onnx(model_path, shape_mapping=shape_mapping, batch_num=batch_num)

        return self._loaded(load, model_path, model_name, layout)

    def from_keras(
        self, model_path: Any, model_name: str | None = None, layout: Layout | str | None = None, batch_num: int = 1
    ) -> MeraModel:
        """A .keras or .h5 file, a SavedModel folder, or a keras.Model. Its own layout is NHWC."""
        return self._loaded(lambda: from_keras(model_path, batch_num), model_path, model_name, layout)

    def from_pt2(self, model_path: Any, model_name: str | None = None) -> MeraModel:
        """A .pt2 file of torch.export.save (or its bytes, or an ExportedProgram), float or quantized."""
        return self._loaded(lambda: from_pt2(model_path), model_path, model_name, None)

    def from_module(self, module: torch.nn.Module, input_desc: Any = None, model_name: str = "model") -> MeraModel:
        """A module in memory, float or quantized (as mera_torch.quantize gives it).

        input_desc: name -> (shape, dtype) of its inputs, as the module takes them; not needed for what was loaded
        and, maybe, quantized since.
        """
        return self._loaded(lambda: _imported(module, input_desc), None, model_name, None)

    def from_quantized_mera(self, model_path: Any, model_name: str | None = None) -> MeraModel:
        """A .mera file of :class:`mera_torch.ModelQuantizer` (or its bytes, or the QuantizedModel itself).

        Those of EdgeCortix's MERA are pickles, which could run any code: an UnsupportedError says what to do instead.
        """
        from .quant.quantized_model import quantized_model

        return self._loaded(lambda: quantized_model(model_path).imported(), model_path, model_name, None)

    def fuse_models(
        self, mera_models: Sequence[MeraModel], share_input: bool = False, fused_model_name: str | None = None
    ) -> MeraModel:
        """Several models as one, from whatever formats: see mera_torch.fuse_models.

        Inputs are named `<name>_<index of the model>`, outputs follow in the order of the models. share_input: each
        model has exactly one input, all of one dtype and, but for the layout, shape. Raises InvalidModelError.
        """
        models = list(mera_models) if isinstance(mera_models, list | tuple) else []
        if len(models) < 2 or not all(isinstance(model, MeraModel) for model in models):
            raise InvalidModelError("fuse_models takes a list of two or more models from a ModelLoader")
        names = [model.model_name for model in models]
        module = joined([model.module for model in models], names, share_input)
        layouts = {model.layout for model in models}
        fused = MeraModel(
            module, plain_name(fused_model_name or "fused_" + "_".join(names), "fused_model_name"),
            layouts.pop() if len(layouts) == 1 else None, any(model.use_prequantize_input for model in models),
        )  # fmt: skip
        if self._deployer is not None:
            self._deployer.add_model(fused.model_name, {**fused.describe(), "fused": names, "share_input": share_input})
        return fused

    def _loaded(
        self, load: Callable[[], ImportedModel], source: Any, model_name: str | None, layout: Layout | str | None,
        use_prequantize_input: bool = False,
    ) -> MeraModel:  # fmt: skip
        wanted = None if layout is None else Layout(layout)
        name = plain_name(model_name or _stem(source), "model_name")
        module = load()
        if use_prequantize_input:
            module = prequantized(module)
        if wanted is not None:
            module = relaid(module, wanted.value)
        model = MeraModel(module, name, wanted or _own_layout(module), use_prequantize_input)
        if self._deployer is not None:
            name_in_folder = _file_name(source)
            row = {"file": name_in_folder, **model.describe()}
            self._deployer.add_model(name, row, lambda folder: _copy(source, module, folder / name_in_folder))
        return model


def _described(infos: Sequence[TensorInfo]) -> InputDescriptionContainer:
    return InputDescriptionContainer([
        InputDescription(info.name, info.shape, info.dtype, scale=info.scale, zero_point=info.zero_point)
        for info in infos
    ])  # fmt: skip


def _plain(desc: InputDescriptionContainer) -> list[dict[str, Any]]:
    return [
        {
            "name": name, "shape": list(found.input_shape), "dtype": found.input_type, "scale": found.scale,
            "zero_point": found.zero_point,
        }
        for name, found in desc.items()
    ]  # fmt: skip


def _own_layout(module: ImportedModel) -> Layout | None:
    found = {info.layout for info in module.info.inputs if info.layout}
    return Layout(found.pop()) if len(found) == 1 else None


def _nchw(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    return (shape[0], shape[3], *shape[1:3]) if layout is Layout.NHWC and len(shape) == 4 else shape


def _imported(module: Any, input_desc: Any) -> ImportedModel:
    module = unwrapped(module)
    if isinstance(module, ImportedModel):
        return module
    if not isinstance(module, torch.nn.Module) or isinstance(module, torch.jit.ScriptModule):
        raise InvalidModelError(
            f"from_module takes an nn.Module, got {type(module).__name__}; from_pytorch takes TorchScript"
        )
    info = info_of(module)
    if input_desc is not None:
        desc = InputDescriptionContainer(input_desc)
    elif info is not None:
        desc = _described(info.inputs)
    else:
        raise InvalidModelError("from_module: give input_desc, {name: (shape, dtype)}, for the inputs of the module")
    inputs = tuple(torch.zeros(found.input_shape, dtype=getattr(torch, found.input_type)) for found in desc.values())
    try:
        with torch.no_grad():
            program = torch.export.export(module, inputs)
    except MeraError:
        raise
    except Exception as error:  # torch.export has no common base of its errors
        raise UnsupportedError(f"torch.export cannot capture {type(module).__name__}: {error}") from error
    model = from_pt2(program)
    return _renamed(model, list(desc), info)


def _renamed(model: ImportedModel, names: list[str], info: ModelInfo | None) -> ImportedModel:
    if len(names) != len(model.info.inputs):
        raise InvalidModelError(f"input_desc has {len(names)} inputs, the module {len(model.info.inputs)}")
    inputs = [replace(found, name=name) for found, name in zip(model.info.inputs, names, strict=True)]
    single = len(model.info.outputs) == 1
    outputs = [replace(o, name="output" if single else f"output_{i}") for i, o in enumerate(model.info.outputs)]
    if info is not None and len(info.outputs) == len(outputs):
        outputs = [replace(o, name=k.name, layout=k.layout) for o, k in zip(outputs, info.outputs, strict=True)]
        inputs = [replace(i, layout=k.layout) for i, k in zip(inputs, info.inputs, strict=True)]
    model.meta["mera_model"] = ModelInfo("module", tuple(inputs), tuple(outputs))
    return model


# ---- files ----


def _stem(source: Any) -> str:
    return Path(source).stem if isinstance(source, str | os.PathLike) else "model"


def _file_name(source: Any) -> str:
    """Of the copy in the project: the file's own, or model.pt2 for what is in memory."""
    return Path(source).resolve().name if isinstance(source, str | os.PathLike) else "model.pt2"


def _copy(source: Any, module: ImportedModel, path: Path) -> None:
    if not isinstance(source, str | os.PathLike):
        save_pt2(module, module.example_inputs(), path)
    elif Path(source).is_dir():
        shutil.copytree(source, path)
    else:
        shutil.copyfile(source, path)
