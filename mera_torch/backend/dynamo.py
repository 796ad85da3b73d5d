"""torch.compile(model, backend="mera"): supported regions on the DNA target, the rest in PyTorch.

The entry point `mera` makes the name known to Dynamo. Its options: platform, target, mode, build_config.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils import _pytree as pytree

from ..errors import ConfigError, nearest
from ..platform import Platform
from .capture import Captured, InputSpec
from .region import COMPILED_TARGETS
from .runtime import last_uses, on, run_steps

Function = Callable[..., Any]
OPTIONS = ("platform", "target", "mode", "build_config")


class MeraWarning(UserWarning):
    """A model given to torch.compile(backend="mera") runs on the host, wholly or for now."""


def mera(gm: fx.GraphModule, example_inputs: Sequence[Any], **given: Any) -> Function:
    """The backend: Dynamo calls it with each graph and its inputs."""
    options = dict(given.pop("options", None) or {})
    options.update(given)
    for key in options:
        if key not in OPTIONS:
            raise ConfigError(f'torch.compile(backend="mera"): unknown option {key!r}: {nearest(key, OPTIONS)}')
    return mera_backend(**options)(gm, example_inputs)


def mera_backend(
    platform: str | os.PathLike[str] | Platform = "SAKURA_1",
    target: str = "Simulator",
    build_config: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[[fx.GraphModule, Sequence[Any]], Function]:
    """A backend with options: torch.compile(model, backend=mera_backend(target="InterpreterHw")).

    mode is short for build_config's scheduler_config mode. Raises ConfigError for an unknown platform, target or key.
    """
    from ..compile import settings_of

    if mode is not None:
        config = dict(build_config or {})
        build_config = {**config, "scheduler_config": {**config.get("scheduler_config", {}), "mode": mode}}
    settings = settings_of(platform, target, build_config)

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Function:
        if torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in example_inputs):
            _warn(
                "gradients are wanted, and the DNA has none: this graph runs in PyTorch; call it under torch.no_grad()"
            )
            return gm.forward
        if any(isinstance(x, torch.SymInt) or _is_dynamic(x) for x in example_inputs):
            _warn("its shapes are dynamic: this graph runs in PyTorch; use torch.compile(..., dynamic=False)")
            return gm.forward
        return _Compiled(gm, example_inputs, settings)

    return backend


def _is_dynamic(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and any(not isinstance(s, int) for s in x.shape)


def _warn(message: str) -> None:
    warnings.warn(f'torch.compile(backend="mera"): {message}', MeraWarning, stacklevel=3)


class _Compiled:
    """One graph of Dynamo's. Parameters and buffers are constants of the program; if one is changed in place, the
    graph is compiled anew."""

    def __init__(self, gm: fx.GraphModule, example_inputs: Sequence[Any], settings: Any) -> None:
        self.gm, self.settings = gm, settings
        self.fixed = {i: x for i, x in enumerate(example_inputs) if _is_parameter(x)}
        self._compile(example_inputs)

    def __call__(self, *inputs: Any) -> Any:
        if self._versions(inputs) != self.versions:
            self._compile(inputs)
        return self.function(*inputs)

    def _versions(self, inputs: Sequence[Any]) -> list[tuple[int, int]]:
        return [(id(inputs[i]), _version(inputs[i])) for i in self.fixed]

    def _compile(self, inputs: Sequence[Any]) -> None:
        self.fixed = {i: inputs[i] for i in self.fixed}
        self.versions = self._versions(inputs)
        compiler = aot_autograd(fw_compiler=self._inference, inference_compiler=self._inference)
        with torch.no_grad():
            self.function = compiler(self.gm, list(inputs))

    def _inference(self, gm: fx.GraphModule, fake_inputs: Sequence[Any]) -> Function:
        """gm: functional aten, parameters as placeholders."""
        from ..compile import build

        with unset_fake_temporarily():  # constants are computed with, for real
            built = build(_captured(gm, self.fixed), self.settings)
        if self.settings.target in COMPILED_TARGETS:
            for region in built.regions:
                region.compile()
        if not built.regions:
            _warn(built.explanation.why_nothing_runs())
        runtime_inputs = [i for i, _ in enumerate(fake_inputs) if i not in self.fixed]
        dead = last_uses(built.graph, built.regions)

        def run(inputs: list[Any]) -> list[Any]:
            given = [inputs[i] for i in runtime_inputs]
            inputs.clear()
            return run_steps(built.graph, built.regions, on(self.settings.target), given, dead)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run


def _is_parameter(x: Any) -> bool:
    """Parameters and buffers of the module; Dynamo marks both as static."""
    return isinstance(x, torch.nn.Parameter) or getattr(x, "_dynamo_static_input_type", None) is not None


def _version(x: torch.Tensor) -> int:
    return 0 if x.is_inference() else x._version


def _captured(gm: fx.GraphModule, fixed: Mapping[int, torch.Tensor]) -> Captured:
    """The graph with its parameters as constants."""
    flat = fx.GraphModule(gm, fx.Graph())
    values: dict[fx.Node, fx.Node] = {}
    inputs: list[InputSpec] = []
    for index, node in enumerate(gm.graph.nodes):
        if node.op == "placeholder" and index in fixed:
            name = f"_mera_parameter_{index}"
            flat.register_buffer(name, fixed[index].detach(), persistent=False)
            values[node] = flat.graph.get_attr(name)
            values[node].meta["val"] = node.meta["val"]
            continue
        values[node] = flat.graph.node_copy(node, values.__getitem__)
        if node.op == "get_attr":
            values[node].meta.setdefault("val", getattr(gm, str(node.target)))
        if node.op == "placeholder":
            inputs.append(InputSpec(node.name))
    flat.recompile()
    return Captured(flat, inputs, pytree.tree_structure(((), {})), pytree.tree_structure(()))
