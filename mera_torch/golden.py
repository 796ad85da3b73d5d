"""The golden pair of a deployment: inputs, and the outputs that they gave when it was exported. Needs numpy alone.

golden.npz holds input_0, input_1, ... and output_0, ..., numbered as the manifest's inputs and outputs are; what is no
tensor is left out.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import CorruptFileError

FILE = "golden.npz"
ROUNDING, REQUANTIZED = 1e-5, 0.02
"""By how much an output may differ, as a part of its largest magnitude (integers: the part of the elements): behind a
float operator of the host, whose last bits vary with the CPU and the version of PyTorch; and where such a result was
quantized again, so that a last bit can become a whole step."""

# Host operators that give the same bits everywhere: they move, compare or round values, or are one IEEE operation.
EXACT = frozenset({
    "abs", "add", "alias", "amax", "amin", "argmax", "argmin", "bitwise_and", "bitwise_not", "bitwise_or", "cat",
    "ceil", "channel_shuffle", "chunk", "clamp", "clamp_max", "clamp_min", "clone", "constant_pad_nd", "contiguous",
    "copy", "dequantize_per_channel", "dequantize_per_tensor", "detach", "div", "embedding", "eq", "expand", "flatten",
    "flip", "floor", "full", "full_like", "gather", "ge", "getitem", "gt", "hardtanh", "index", "index_select", "le",
    "leaky_relu", "logical_and", "logical_not", "logical_or", "lt", "masked_fill", "max", "max_pool1d", "max_pool2d",
    "maximum", "min", "minimum", "mul", "narrow", "ne", "neg", "ones", "ones_like", "pad", "permute", "pixel_shuffle",
    "pixel_unshuffle", "prelu", "quantize_per_channel", "quantize_per_tensor", "reflection_pad2d", "relu", "relu6",
    "repeat", "replication_pad2d", "reshape", "roll", "round", "rsub", "scalar_tensor", "select", "sign", "slice",
    "sort", "split", "split_with_sizes", "squeeze", "stack", "sub", "t", "tile", "to", "topk", "transpose", "unbind",
    "unflatten", "unsqueeze", "upsample_nearest2d", "view", "where", "zeros", "zeros_like", "_to_copy", "_unsafe_view",
})  # fmt: skip

Array = npt.NDArray[Any]
Row = Mapping[str, Any]


def name_of(dtype: Any) -> str | None:
    """ "float32" of the manifest's {"torch": "float32"}; None of null, which is no tensor."""
    return None if dtype is None else str(dtype["torch"])


def golden_inputs(rows: Sequence[Row], seed: int = 0) -> dict[str, Array]:
    """Inputs by name (input_0, ...): floats over the range that was calibrated (without one, standard normal), 8- and
    16-bit integers over their whole range, wider ones 0 or 1, as indices are. The same for the same rows."""
    rng = np.random.default_rng(seed)
    return {
        f"input_{index}": _input(row, np.dtype(name), rng)
        for index, row in enumerate(rows)
        if (name := name_of(row["dtype"])) is not None
    }


def _input(row: Row, dtype: np.dtype[Any], rng: np.random.Generator) -> Array:
    shape, quantization = tuple(row["shape"]), row["quantization"]
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        low, high = (limits.min, limits.max) if dtype.itemsize <= 2 else (0, 1)
        return rng.integers(low, high, shape, dtype, endpoint=True)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    if quantization is None:
        return rng.standard_normal(shape).astype(dtype)
    limits = np.iinfo(np.dtype(name_of(quantization["dtype"])))
    low, high = ((limit - quantization["zero_point"]) * quantization["scale"] for limit in (limits.min, limits.max))
    drawn: Array = (low + (high - low) * rng.random(shape)).astype(dtype)
    return drawn


# ---- the file ----


def pack(arrays: Mapping[str, Array]) -> bytes:
    """The arrays as the bytes of an .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **dict(arrays))
    return buffer.getvalue()


def unpack(data: bytes, inputs: Sequence[Row], outputs: Sequence[Row]) -> tuple[list[Any], list[Any]]:
    """The flat inputs and outputs, arrays and constants, in the manifest's order.

    Raises CorruptFileError if the file is no .npz or its arrays are not those that the manifest describes.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as held:
            return tuple(  # type: ignore[return-value]
                [_array(held, f"{side}_{index}", row) for index, row in enumerate(rows)]
                for side, rows in (("input", inputs), ("output", outputs))
            )
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptFileError(f"{FILE} cannot be read: {error}") from error


def _array(held: Any, name: str, row: Row) -> Any:
    kind = name_of(row["dtype"])
    if kind is None:
        return row["constant"]
    with held.zip.open(f"{name}.npy") as file:  # its header first: a hostile one asks for all memory
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    if list(shape) != list(row["shape"]) or dtype != np.dtype(kind):
        raise ValueError(f"{name} is {dtype}{list(shape)}, the manifest says {kind}{list(row['shape'])}")
    return held[name]


# ---- how exactly it must come out again ----


def tolerances(manifest: Row) -> list[float]:
    """For each output the part by which it may differ: 0, or ROUNDING or REQUANTIZED where a float operator of the
    host that is not in EXACT, or a region behind one, has a part in it."""
    host = manifest["host"]
    loose: dict[str, float] = {}
    for step in host["steps"]:
        if "region" in step:
            ports = manifest["regions"][step["region"]]
            found = REQUANTIZED if any(loose.get(port["value"]) for port in ports["inputs"]) else 0.0
            loose.update((port["value"], found) for port in ports["outputs"])
            continue
        found = max((loose.get(name, 0.0) for name in _refs([step["args"], step["kwargs"]])), default=0.0)
        name = step["target"].split(".")[1] if "." in step["target"] else step["target"]
        if name not in EXACT:
            found = max(found, ROUNDING)
        elif name.startswith("quantize_per") and found:
            found = REQUANTIZED
        loose[step["name"]] = found
    return [max((loose.get(name, 0.0) for name in _refs(output)), default=0.0) for output in host["outputs"]]


def _refs(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [str(value["ref"])] if "ref" in value else [name for held in value.values() for name in _refs(held)]
    return [name for held in value for name in _refs(held)] if isinstance(value, list) else []
