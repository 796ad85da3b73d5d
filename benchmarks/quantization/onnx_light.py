"""The nine whole networks that the onnx package brings for its tests, with random weights in place of constant ones.

As shipped, every weight of a layer is one constant, made by ConstantOfShape: all channels are alike, the outputs do not
depend on the image, and noise against them says nothing. Here each such constant becomes seeded random numbers of the
same shape (He initialization for weights), and BatchNorm statistics are set from inputs; the final softmax is left out,
since 1,000 nearly equal probabilities would hide the logits. The architectures are real, the accuracy is not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, numpy_helper
from torch import Tensor, nn
from torch.fx import GraphModule

from mera_torch.converters import load_model
from mera_torch.quant.graphs.patterns import attribute
from mera_torch.quant.graphs.run import OperatorRun

NAMES = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)
FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
SEED = 0


def network(name: str, inputs: list[Tensor]) -> nn.Module:
    """One of NAMES as a module: float32 [1, 3, 224, 224] -> logits; BatchNorm statistics are those of `inputs`."""
    model = onnx.load(FOLDER / f"light_{name}.onnx")
    model.ir_version = max(model.ir_version, 4)  # before, initializers had to be inputs too
    randomize(model)
    drop_softmax(model)
    module: GraphModule = load_model(model.SerializeToString()).eval()
    set_statistics(module, inputs)
    return module


def randomize(model: ModelProto) -> None:
    """Every ConstantOfShape becomes an initializer of random numbers that suit its reader."""
    random = np.random.default_rng(SEED)
    graph = model.graph
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "ConstantOfShape"]:
        values = _random(graph.node, node.output[0], tuple(shapes[node.input[0]]), random)
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), node.output[0]))
        graph.node.remove(node)


def _random(nodes: Any, name: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    reader = next(node for node in nodes if name in node.input)
    while reader.op_type == "Unsqueeze":  # a scale or shift of each channel
        name = reader.output[0]
        reader = next(node for node in nodes if name in node.input)
    place = list(reader.input).index(name)
    kind = (reader.op_type, place)
    if kind in (("Conv", 1), ("Gemm", 1)):
        return random.standard_normal(shape) * np.sqrt(2 / _fan_in(reader, shape))
    if kind in (("BatchNormalization", 1), ("Mul", 1)):
        return random.uniform(0.5, 1.5, shape)
    if kind == ("BatchNormalization", 4):
        return np.ones(shape)
    return 0.1 * random.standard_normal(shape)


def _fan_in(node: NodeProto, shape: tuple[int, ...]) -> int:
    if node.op_type == "Gemm":
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        return shape[1] if transposed else shape[0]
    return int(np.prod(shape[1:]))


def drop_softmax(model: ModelProto) -> None:
    """A last softmax becomes an identity."""
    last = model.graph.node[-1]
    if last.op_type == "Softmax":
        last.op_type = "Identity"
        del last.attribute[:]


def set_statistics(module: GraphModule, inputs: list[Tensor]) -> None:
    """Running mean and variance of every batch normalization: those of its own input over `inputs`."""
    run = OperatorRun(module, [(x,) for x in inputs])
    for node in run:
        for reader in node.users:
            if "batch_norm" in str(reader.target):
                seen = torch.cat(run.values[node])
                mean, variance = (attribute(module, str(source.target)) for source in reader.args[3:5])
                mean.copy_(seen.mean((0, 2, 3)))
                variance.copy_(seen.var((0, 2, 3)))
