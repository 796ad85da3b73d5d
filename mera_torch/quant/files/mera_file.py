"""The .mera file: a zip archive of JSON and safetensors. Reading one runs no code of the file, and refuses whatever it
does not know.

mera.json            what it is: see Manifest; with the sha256 of its own text and of every other member
module.json          the quantized network (mera_torch.quant.files.graph_file)
weights.safetensors  its tensors
reference.json       its float twin        } optional: for measuring quality
original.json        the float network     }
float.safetensors    their tensors         }
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError
from torch import fx

from mera_torch.atomic import atomic_file
from mera_torch.converters.files import MERA_MANIFEST, Source, describe, read
from mera_torch.converters.model import ImportedModel, ModelInfo, TensorInfo
from mera_torch.errors import CorruptFileError, UnsupportedError
from mera_torch.files import seal, unsealed
from mera_torch.schema import Sha256

from .graph_file import graph_from_json, graph_to_json

FORMAT = "mera_torch quantized model"
VERSION = 1
MANIFEST = MERA_MANIFEST
WEIGHTS = {"module": "weights.safetensors", "reference": "float.safetensors", "original": "float.safetensors"}
"""Each graph and the member that holds its tensors."""
MEMBERS = (MANIFEST, *dict.fromkeys(name for graph, file in WEIGHTS.items() for name in (f"{graph}.json", file)))
LARGEST_JSON = 64 << 20
LARGEST_MANIFEST = 4 << 20
_UNREADABLE = (
    zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError, OSError,
    EOFError, ValueError, OverflowError,
)  # fmt: skip
_OLD_TIME = (1980, 1, 1, 0, 0, 0)
_PICKLE = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_FOREIGN = (
    "is a pickle: .mera files of EdgeCortix's MERA are pickles of TVM programs, which could run any code, and are not "
    "read. Load the float model and quantize it: mera_torch.quantize, or mera_torch.ModelQuantizer"
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Tensor(_Strict):
    """An input or output, as mera_torch.converters.TensorInfo."""

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0)]], FailFast()]
    dtype: str
    layout: Literal["NCHW", "NHWC", ""]


class Manifest(_Strict):
    """mera.json. source: the front end that the float network came from ("pytorch", "tflite", ...).

    config: of QuantConfig. calibration: what was seen. findings: the linter's. files: sha256 of every other member.
    """

    format: Literal["mera_torch quantized model"]
    version: int
    versions: dict[str, str]
    name: str
    source: Annotated[str, Field(pattern="^[a-z0-9_]{1,30}$")]
    inputs: Annotated[list[Tensor], FailFast()]
    outputs: Annotated[list[Tensor], FailFast()]
    config: dict[str, Any]
    calibration: dict[str, Any]
    findings: Annotated[list[dict[str, Any]], FailFast()]
    files: dict[str, Sha256]

    @property
    def info(self) -> ModelInfo:
        """What imported models know of their inputs and outputs."""
        return ModelInfo(self.source, *(tuple(map(_tensor_info, rows)) for rows in (self.inputs, self.outputs)))


def tensor_row(info: TensorInfo) -> dict[str, Any]:
    """The manifest's row of an input or output."""
    dtype = str(info.dtype).removeprefix("torch.")
    return {"name": info.name, "shape": list(info.shape), "dtype": dtype, "layout": info.layout}


def _tensor_info(row: Tensor) -> TensorInfo:
    dtype = getattr(torch, row.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise CorruptFileError(f"{MANIFEST}: tensor {row.name!r} has the unknown dtype {row.dtype!r}")
    return TensorInfo(row.name, tuple(row.shape), dtype, row.layout)


# ---- writing ----


def write_mera(path: str | os.PathLike[str], manifest: Mapping[str, Any], graphs: Mapping[str, fx.GraphModule]) -> None:
    """Writes a .mera file, whole or not at all; the same networks give the same bytes.

    manifest: Manifest's keys but format, version and files. graphs: "module" and, if wanted, "reference", "original".
    Raises UnsupportedError for networks that have no such form, StorageError.
    """
    members = _members(graphs)
    files = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    document = {"format": FORMAT, "version": VERSION, **manifest, "files": files}
    Manifest.model_validate(document)
    with atomic_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, data in {MANIFEST: seal(document, "model"), **members}.items():
            info = zipfile.ZipInfo(name, _OLD_TIME)
            info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED if name.endswith(".json") else zipfile.ZIP_STORED
            archive.writestr(info, data)


def _members(graphs: Mapping[str, fx.GraphModule]) -> dict[str, bytes]:
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    members: dict[str, bytes] = {}
    for name, graph in graphs.items():
        held = tensors.setdefault(WEIGHTS[name], {})
        members[f"{name}.json"] = json.dumps(graph_to_json(graph, f"{name}.", held), indent=0).encode()
    for file, held in tensors.items():
        copies = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in held.items()}
        members[file] = safetensors.torch.save(copies)
    return {name: members[name] for name in MEMBERS if name in members}


# ---- reading ----


def read_mera(source: Source) -> tuple[Manifest, dict[str, fx.GraphModule]]:
    """The manifest and the graphs of a .mera file (its path or bytes); "module" is an ImportedModel.

    Raises InvalidModelError (there is no such file), UnsupportedError (EdgeCortix's own, a pickle), CorruptFileError.
    """
    data, where = read(source), describe(source)
    if data.startswith(_PICKLE):
        raise UnsupportedError(f"{where} {_FOREIGN}")
    members = _unpacked(data, where)
    manifest = _manifest(members.pop(MANIFEST), where)
    if set(manifest.files) != set(members):
        raise CorruptFileError(f"{where} lacks members, or has others than its manifest names")
    for name, digest in manifest.files.items():
        if hashlib.sha256(members[name]).hexdigest() != digest:
            raise CorruptFileError(f"{where}: {name} was altered: its checksum does not match")
    graphs: dict[str, fx.GraphModule] = {}
    tensors = {file: _tensors(members[file], f"{where}: {file}") for file in members if file.endswith(".safetensors")}
    for name, file in WEIGHTS.items():
        if f"{name}.json" not in members:
            continue
        if file not in tensors:
            raise CorruptFileError(f"{where} lacks {file}")
        kind = ImportedModel if name == "module" else fx.GraphModule
        inside = f"{where}: {name}.json"
        graphs[name] = graph_from_json(_json(members[f"{name}.json"], inside), tensors[file], inside, kind)
    if "module" not in graphs or len(graphs) not in (1, 3):
        raise CorruptFileError(f"{where} lacks a network: it must hold module.json, and both float networks or none")
    _check_interface(manifest, graphs, where)
    graphs["module"].meta["mera_model"] = manifest.info
    return manifest, graphs


def _unpacked(data: bytes, where: str) -> dict[str, bytes]:
    """The members by name, each checked before it is read."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            names = [info.filename for info in infos]
            if MANIFEST not in names:
                if any(name.endswith(".pkl") for name in names):
                    raise UnsupportedError(f"{where} holds a pickle and no {MANIFEST}; it {_FOREIGN}")
                raise CorruptFileError(f"{where} is no .mera file: it has no {MANIFEST}")
            for info in infos:
                _check_member(info, names, len(data), where)
            return {info.filename: _content(archive, info, where) for info in infos}
    except (CorruptFileError, UnsupportedError):
        raise
    except _UNREADABLE as error:
        raise CorruptFileError(f"{where} is no .mera file, or a damaged one: {error}") from error


def _check_member(info: zipfile.ZipInfo, names: list[str], size: int, where: str) -> None:
    name = info.filename
    wrong = ""
    if name not in MEMBERS:
        wrong = f"is unknown; a .mera file holds {', '.join(MEMBERS)}"
    elif names.count(name) > 1:
        wrong = "is there twice"
    elif info.flag_bits & 1:
        wrong = "is encrypted"
    elif stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        wrong = "is no regular file"
    elif name.endswith(".json"):
        if info.compress_type not in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
            wrong = f"is compressed by method {info.compress_type}"
        elif info.file_size > (most := LARGEST_MANIFEST if name == MANIFEST else LARGEST_JSON):
            wrong = f"has {info.file_size} bytes, more than the {most} that are read"
    elif info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.file_size > size:
        wrong = "is compressed, or larger than the file"
    if wrong:
        raise CorruptFileError(f"{where}: member {name[:80]!r} {wrong}")


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> bytes:
    with archive.open(info) as file:
        data = file.read(info.file_size + 1)
        more = file.read(1) if len(data) == info.file_size else b"."
    if len(data) != info.file_size or more:
        raise CorruptFileError(f"{where}: member {info.filename!r} is not as large as it says")
    return data


def _manifest(data: bytes, where: str) -> Manifest:
    content = unsealed(data, f"{where}: {MANIFEST}", "model", VERSION)
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        row = error.errors()[0]
        raise CorruptFileError(f"{where}: {MANIFEST}: {'.'.join(map(str, row['loc']))}: {row['msg']}") from error


def _tensors(data: bytes, where: str) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise CorruptFileError(f"{where} is malformed: {error}") from error


def _json(data: bytes, where: str) -> Any:
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{where} is malformed: {error}") from error


def _check_interface(manifest: Manifest, graphs: Mapping[str, fx.GraphModule], where: str) -> None:
    """Raises CorruptFileError unless all networks have the manifest's inputs and outputs."""
    info = manifest.info
    wanted = [[(row.shape, row.dtype) for row in rows] for rows in (info.inputs, info.outputs)]
    for name, graph in graphs.items():
        places = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
        output = next(node for node in graph.graph.nodes if node.op == "output")
        results = [node.meta["val"] for node in output.args[0] if isinstance(node, fx.Node)]
        found = [
            [(tuple(v.shape), v.dtype) for v in values if isinstance(v, torch.Tensor)] for values in (places, results)
        ]
        if found != wanted:
            raise CorruptFileError(f"{where}: {name}.json has other inputs or outputs than {MANIFEST} says")
