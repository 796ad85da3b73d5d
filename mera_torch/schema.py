"""The schema of a deployment's manifest (deployment.json), as pydantic models: what is written is checked against it,
and `mera verify` checks what it reads. The runtime install has no pydantic: its readers check by hand what they use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import CorruptFileError
from .files import FORMAT

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=0)]
FileName = Annotated[str, Field(pattern=r"^[^/\x00]+$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Dtype(_Strict):
    """{"torch": "float32"}."""

    torch: str


class Quantization(_Strict):
    """real = scale * (q - zero_point), q of that dtype."""

    scale: Annotated[float, Field(gt=0)]
    zero_point: int
    dtype: Dtype


class Output(_Strict):
    """dtype null: no tensor but a constant."""

    name: str
    shape: list[Size]
    dtype: Dtype | None
    constant: Any
    layout: Literal["NCHW", "NHWC", ""]
    quantization: Quantization | None


class Input(Output):
    """source_name: in the file that the model was imported from."""

    source_name: str | None


class Port(_Strict):
    """A border of a region; see mera_torch.backend.region.Port."""

    value: str
    shape: list[Size]
    sizes: list[Size]
    dims: list[list[Count]]
    dna: Annotated[list[Size], Field(min_length=4, max_length=4)]
    scale: Annotated[float, Field(gt=0)]
    zero_point: int
    real: bool


class Region(_Strict):
    """rows: DNA node -> operator, module path, line of the source; lower_bound: macs and bytes."""

    name: str
    inputs: list[Port]
    outputs: list[Port]
    output_index: list[Count]
    options: dict[str, int]
    rows: dict[str, Annotated[list[str], Field(min_length=3, max_length=3)]]
    lower_bound: dict[str, int]


class RegionStep(_Strict):
    region: Count
    name: str


class HostStep(_Strict):
    """target: "aten.add.Tensor", ...; {"ref": NAME} in the arguments: another step's result; source: "model.py:12"."""

    name: str
    target: str
    args: list[Any]
    kwargs: dict[str, Any]
    source: str = ""


class Host(_Strict):
    inputs: list[str]
    steps: list[RegionStep | HostStep]
    outputs: list[Any]


class Source(_Strict):
    """What was compiled; format: pytorch, pt2, tflite, onnx, torchscript, keras, ..."""

    format: str
    graph_sha256: Sha256
    weights_sha256: Sha256


class Golden(_Strict):
    """tolerances: see mera_torch.golden.tolerances. file null: there is no pair, and reason says why."""

    file: FileName | None
    tolerances: list[Annotated[float, Field(ge=0)]] = []
    reason: str = ""


class Compile(_Strict):
    """The compiler's result; null where there is no program."""

    regions: Count
    host_operators: Count
    transposes: Count
    macs: Count
    lower_bound_cycles: Count
    cycles: Count | None
    instructions: Count | None


class Platform(_Strict):
    """See mera_torch.Platform."""

    name: str
    units: int
    array: int
    clock_mhz: float
    sram_bytes: int
    dram_gbps: float
    bf16: bool
    sram_banks: int
    dram_latency_cycles: int


class Manifest(_Strict):
    """deployment.json, version 2; files: name -> sha256 of every file but deployment.json and metrics.json, which carry
    their own."""

    format: Literal["mera_torch deployment"]
    version: Literal[2]
    versions: dict[str, str]
    platform: Platform
    target: str
    source: Source
    inputs: list[Input]
    outputs: list[Output]
    in_spec: str
    out_spec: str
    host: Host
    regions: Annotated[list[Region], Field(min_length=1)]
    build_config: dict[str, Any]
    compile: Compile
    explanation: str
    golden: Golden
    files: dict[FileName, Sha256]


def check(manifest: Mapping[str, Any]) -> None:
    """Raises CorruptFileError naming the first key that is missing, unknown or ill-valued."""
    try:
        Manifest.model_validate(_as_lists(manifest))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CorruptFileError(f"{FORMAT}: {where}: {first['msg']}") from error


def json_schema() -> dict[str, Any]:
    """The same as a JSON Schema, for readers in other languages."""
    return Manifest.model_json_schema()


def _as_lists(value: Any) -> Any:
    """Tuples as JSON has them."""
    if isinstance(value, Mapping):
        return {key: _as_lists(held) for key, held in value.items()}
    return [_as_lists(held) for held in value] if isinstance(value, list | tuple) else value
