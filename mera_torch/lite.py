"""Running a deployment without torch: numpy arrays in, numpy arrays out.

For the runtime install, which has numpy and cffi alone. A deployment whose every operator runs on the DNA can be run
so; one with operators on the host needs torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .backend.region import DnaRegion, check_target, metrics
from .errors import CorruptFileError, InvalidModelError, MeraError, UnsupportedError
from .files import MALFORMED, MANIFEST, load_regions, read_files, read_manifest
from .lower_bound import lower_bound_cycles
from .platform import Platform
from .trace import write_trace

Array = npt.NDArray[Any]


class LiteDeployment:
    """A deployment read without torch."""

    def __init__(self, path: Path, manifest: Mapping[str, Any], regions: list[DnaRegion]) -> None:
        self.path, self.manifest, self.regions = path, manifest, regions
        self.platform = Platform(**manifest["platform"])
        self.target: str = manifest["target"]
        self.explanation: str = manifest["explanation"]

    @property
    def lower_bound_cycles(self) -> int:
        """See mera_torch.lower_bound."""
        return sum(lower_bound_cycles(region.lower_bound, self.platform) for region in self.regions)

    def get_runner(self, target: str | None = None) -> LiteRunner:
        """A callable on numpy arrays, on `target` (default: the one exported for)."""
        return LiteRunner(self, check_target(self.target if target is None else target))


class LiteRunner:
    """runner(*arrays) gives the flat outputs: one array if there is one, else a list.

    Arrays have the shapes and dtypes (float32, int8) of the tensors that the original module takes and gives.
    """

    def __init__(self, deployment: LiteDeployment, target: str) -> None:
        self.deployment, self.target = deployment, target
        host = deployment.manifest["host"]
        foreign = [row["target"] for row in host["steps"] if "region" not in row]
        if foreign:
            raise UnsupportedError(f"{', '.join(sorted(set(foreign)))} run on the host in PyTorch: install torch")
        self._order = [int(row["region"]) for row in host["steps"]]
        self._names: list[str] = host["inputs"]
        self._specs: list[dict[str, Any]] = deployment.manifest["inputs"]
        self._outputs: list[Any] = host["outputs"]

    def __call__(self, *inputs: Array) -> Any:
        """Raises InvalidModelError for inputs of another count, shape or dtype."""
        values: dict[str, Array] = {}
        if len(inputs) != len(self._specs):
            raise InvalidModelError(f"the model takes {len(self._specs)} inputs, got {len(inputs)}")
        for index, (name, spec, array) in enumerate(zip(self._names, self._specs, inputs, strict=True)):
            dtype = spec["dtype"]["torch"]
            if not isinstance(array, np.ndarray) or list(array.shape) != spec["shape"] or str(array.dtype) != dtype:
                got = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
                raise InvalidModelError(f"input {index} ({name}) must be {dtype}{spec['shape']}, got {got}")
            values[name] = array
        for index in self._order:
            region = self.deployment.regions[index]
            found = region.run(self.target, [values[port.value] for port in region.inputs])
            values.update((port.value, array) for port, array in zip(region.outputs, found, strict=True))
        outputs = [values[o["ref"]] if isinstance(o, dict) else o for o in self._outputs]
        return outputs[0] if len(outputs) == 1 else outputs

    def metrics(self) -> dict[str, Any]:
        """What one inference costs; see mera_torch.Runner.metrics."""
        d = self.deployment
        return metrics(d.regions, d.platform, self.target, d.lower_bound_cycles)

    def trace(self, path: str | os.PathLike[str]) -> None:
        """Writes a trace; see mera_torch.Runner.trace."""
        write_trace(path, self.deployment.regions, self.deployment.platform)


def load(path: str | os.PathLike[str]) -> LiteDeployment:
    """As mera_torch.project.load, without torch. Raises InvalidModelError, CorruptFileError."""
    folder = Path(path)
    manifest = read_manifest(folder)
    try:
        return LiteDeployment(folder, manifest, load_regions(manifest, read_files(folder, manifest)))
    except MeraError as error:
        raise CorruptFileError(f"deployment {os.fspath(path)!r}: {error}") from error
    except MALFORMED as error:
        raise CorruptFileError(f"deployment {os.fspath(path)!r}: {MANIFEST} is malformed: {error}") from error
