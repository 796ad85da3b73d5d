"""One row: one network quantized by one method, and how far its outputs are from float's and from the labels."""

from __future__ import annotations

import hashlib
import resource
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mera_torch import zoo
from mera_torch.atomic import atomic_file
from mera_torch.errors import UnsupportedError
from mera_torch.progress import progress_bar

from . import metrics
from .data import Samples
from .methods import METHODS, Method, Run
from .networks import NETWORKS, Network

Row = dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """How much data is used: None is all of it."""

    calibration: int | None = None
    evaluation: int | None = None


def measure(network_name: str, method_name: str, effort: Effort | None = None) -> Row:
    """The row of one network and one method; where the tool is missing or fails, its `failed` says so."""
    network, method, effort = NETWORKS[network_name], METHODS[method_name], effort or Effort()
    row, model = head(network_name, method_name), network.model()
    calibration = network.calibration(effort.calibration or network.inputs[0])
    try:
        run, cost = _quantized(method, model, calibration)
        return row | cost | _evaluated(network, model, run, effort)
    except UnsupportedError as error:
        return row | {"failed": _one_line(error)}
    except Exception as error:  # another tool's errors have no common base, and one failure must not end the run
        return row | {"failed": f"{type(error).__name__}: {_one_line(error)}"}


def head(network_name: str, method_name: str) -> Row:
    """What is known of a row before it is measured."""
    network, method = NETWORKS[network_name], METHODS[method_name]
    row: Row = {"network": network.name, "kind": network.kind, "method": method.name, "tool": method.tool}
    return row | {"version": method.version, "options": dict(method.options), "per_tensor": method.per_tensor}


def _quantized(method: Method, model: nn.Module, calibration: list[Tensor]) -> tuple[Run, Row]:
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
    run = method.run(model, calibration)
    seconds = time.perf_counter() - start
    user = resource.getrusage(resource.RUSAGE_SELF).ru_utime - before
    return run, {"calibration_inputs": len(calibration), "seconds": round(seconds, 2), "user_seconds": round(user, 2)}


def _evaluated(network: Network, model: nn.Module, run: Run, effort: Effort) -> Row:
    samples = network.evaluation(effort.evaluation or network.inputs[1])
    reference = float_outputs(network.name, model, samples.inputs)
    outputs = outputs_of(run, samples.inputs, network.name)
    row: Row = {"inputs": len(samples), "groups": int(samples.groups.max()) + 1}
    row |= metrics.noise(reference, outputs)
    if network.kind == "outputs":
        return row | {"psnr_each": metrics.psnr_each(reference, outputs)}
    row |= _answers(reference, outputs, samples)
    if network.labelled is not None:
        photos = network.labelled()
        reference = float_outputs(network.name, model, photos.inputs)
        outputs = outputs_of(run, photos.inputs, network.name)
        row["photos"] = {"inputs": len(photos), **_answers(reference, outputs, photos)}
    return row


def _answers(reference: Tensor, outputs: Tensor, samples: Samples) -> Row:
    """Which top-1 answers are float's, and, with labels, which are right; the counts, and the items packed."""
    agrees = outputs.argmax(1) == reference.argmax(1)
    row: Row = {"agree": int(agrees.sum()), "agrees": metrics.packed(agrees)}
    if samples.labels is not None:
        right = outputs.argmax(1) == samples.labels
        row |= {"float_right": int((reference.argmax(1) == samples.labels).sum()), "right": int(right.sum())}
        row["rights"] = metrics.packed(right)
    return row


def outputs_of(run: Run, inputs: Tensor, title: str) -> Tensor:
    """The outputs of all inputs, computed one by one."""
    found = []
    with torch.no_grad(), progress_bar(True, title) as progress:
        for index, x in enumerate(inputs.split(1)):
            found.append(run(x).detach().clone())
            if progress:
                progress("evaluation", index + 1, len(inputs))
    return torch.cat(found)


def float_outputs(name: str, model: nn.Module, inputs: Tensor) -> Tensor:
    """The model's own outputs; kept in the zoo's cache under its name and a digest of weights and inputs."""
    digest = _digest([*model.state_dict().values(), inputs])
    path = zoo.cache_dir() / "float_outputs" / f"{name}-{digest}.safetensors"
    if path.is_file():
        return load_file(path)["outputs"]
    outputs = outputs_of(model, inputs, "float")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as scratch:
        save_file({"outputs": outputs}, scratch)
    return outputs


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256(torch.__version__.encode())
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
