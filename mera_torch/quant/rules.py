"""What may differ from operator to operator, and the rules that say where."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from torch.fx import Graph, Node

from mera_torch.errors import ConfigError, nearest

from .graphs import operators as ops
from .graphs.patterns import argument, module_path, value_of
from .options import Accepts, check, check_keys, flag, integer, number, one_of, option

Dtype = Literal["int8", "bf16", "float"]
ActivationObserver = Literal[
    "auto", "histogram", "mean", "minmax", "headroom", "moving_average", "percentile", "entropy"
]
OBSERVERS: tuple[str, ...] = get_args(ActivationObserver)
WeightObserver = Literal["minmax", "mse"]
Scheme = Literal["affine", "symmetric"]

SELECTORS = ("op", "module", "node")


@dataclass(frozen=True)
class Settings:
    """How one operator is quantized; the fields that a :class:`Rule` may set."""

    activation_observer: ActivationObserver = option(
        "auto",
        one_of(*OBSERVERS),
        "how the range of an activation is found: `auto` tries several and takes the one that changes the network's "
        "outputs least, `histogram` clips where the mean squared error is least, `mean` is the mean of each batch's "
        "extremes, `minmax` the extremes seen, `headroom` these and a quarter more, `moving_average` the exponential "
        "average of each batch's extremes, "
        "`percentile` all but the rarest extremes, `entropy` where least information is lost (KL). QAT always takes "
        "the moving average",
    )
    output_observer: ActivationObserver = option(
        "headroom",
        one_of(*OBSERVERS),
        "the same for what leaves the network for good: where the largest logits are clipped, they tie, and new data "
        "goes beyond what calibration saw",
    )
    histogram_bins: int = option(
        2048, integer(128, 65536), "bins on each side of zero, for `histogram`, `percentile` and `entropy`"
    )
    averaging_constant: float = option(
        0.01, number(0, 1, above=True), "weight of the newest batch in a moving average"
    )  # fmt: skip
    percentile: float = option(
        99.99,
        number(50, 100, above=True),
        "per cent of the values within the range that `percentile` finds; what is left is clipped in equal parts below "
        "and above (symmetric: by magnitude)",
    )
    activation_scheme: Scheme = option(
        "affine",
        one_of("affine", "symmetric"),
        "zero point of an activation: any, or 0 (operators of a known range keep theirs, see `fixed_ranges`)",
    )
    weight_observer: WeightObserver = option(
        "minmax",
        one_of("minmax", "mse"),
        "range of weights: their extremes, or clipped where their mean squared error is least. QAT always takes the "
        "extremes",
    )
    per_channel_weights: bool = option(True, flag(), "one weight scale an output channel, or one a tensor")
    weight_scheme: Scheme = option(
        "symmetric",
        one_of("symmetric", "affine"),
        "zero point of weights: 0, or any. Levels less their zero point may need 9 bits, which cost the DNA twice the "
        "multiplications of that operator",
    )
    fixed_ranges: bool = option(
        True,
        flag(),
        "sigmoid, hardsigmoid and softmax have the range [0, 1], tanh [-1, 1], whatever was seen; False: as observed",
    )
    dtype: Dtype = option(
        "int8",
        one_of("int8", "bf16", "float"),
        "what the operator computes in: int8 on the DNA, or bfloat16 or float32 (on the host, so far)",
    )


@dataclass(frozen=True)
class Rule:
    """Settings for the operators that match all the patterns given (:mod:`fnmatch`); later rules win over earlier ones.

    An activation's settings are those of the operator that makes it; the network's inputs are of the class ``"input"``.
    Values that have one quantization (a concat's inputs and output) have one set of settings: a rule for any of them
    holds for all.

    Args:
        op: Operator class: ``"conv2d"``, ``"depthwise_conv2d"`` (also a conv2d), ``"linear"``, ``"add"``, ...: the
            aten operator's name.
        module: Path of the module in the model, such as ``"layer1.*.conv1"``; what is inside it matches, too.
        node: Name of the node in the exported graph, such as ``"conv2d_3"``.
        required: False: no error where nothing matches, for a configuration that serves several networks.

    All other fields are those of :class:`Settings`; None leaves a setting as it is.

    Raises:
        ConfigError: no pattern, no setting, or a value outside its range.
    """

    op: str | None = None
    module: str | None = None
    node: str | None = None
    required: bool = True
    activation_observer: ActivationObserver | None = None
    output_observer: ActivationObserver | None = None
    histogram_bins: int | None = None
    averaging_constant: float | None = None
    percentile: float | None = None
    activation_scheme: Scheme | None = None
    weight_observer: WeightObserver | None = None
    per_channel_weights: bool | None = None
    weight_scheme: Scheme | None = None
    fixed_ranges: bool | None = None
    dtype: Dtype | None = None

    def __post_init__(self) -> None:
        where = f"quantization rule for {self.selection() or 'nothing'}"
        for name in SELECTORS:
            if (pattern := getattr(self, name)) is not None and (not isinstance(pattern, str) or not pattern):
                raise ConfigError(f"{where}: {name} must be a pattern such as 'head.*', got {pattern!r}")
        if not self.selection():
            raise ConfigError(f"quantization rule: needs at least one of {', '.join(SELECTORS)} to say where it holds")
        if not isinstance(self.required, bool):
            raise ConfigError(f"{where}: required must be True or False, got {self.required!r}")
        for each in fields(Settings):
            if (value := getattr(self, each.name)) is not None:
                check(where, each, value)
        if not self.overrides:
            names = ", ".join(each.name for each in fields(Settings))
            raise ConfigError(f"{where}: sets nothing; give one of {names}")

    @property
    def overrides(self) -> dict[str, Any]:
        """The settings that the rule changes."""
        held = {each.name: getattr(self, each.name) for each in fields(Settings)}
        return {name: value for name, value in held.items() if value is not None}

    def selection(self) -> str:
        """The patterns as a message names them: ``op='conv2d', module='head.*'``."""
        return ", ".join(f"{name}={held!r}" for name in SELECTORS if (held := getattr(self, name)) is not None)

    def to_dict(self) -> dict[str, Any]:
        """Only what is set."""
        patterns = {name: held for name in SELECTORS if (held := getattr(self, name)) is not None}
        return {**patterns, **({} if self.required else {"required": False}), **self.overrides}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Rule:
        """Raises ConfigError for an unknown key (naming the nearest) or value."""
        if not isinstance(given, Mapping):
            raise ConfigError(f"quantization rule must be a Rule or a dict, got {type(given).__name__}")
        check_keys("quantization rule", given, [each.name for each in fields(cls)])
        return cls(**given)

    def matches(self, node: Node) -> bool:
        return (
            (self.op is None or any(fnmatchcase(name, self.op) for name in operator_classes(node)))
            and (self.module is None or any(fnmatchcase(path, self.module) for path in module_paths(node)))
            and (self.node is None or fnmatchcase(node.name, self.node))
        )


def rule_list() -> Accepts:
    """What the field `rules` accepts, once they are made of dicts."""
    return Accepts("a tuple of rules", lambda value: all(isinstance(rule, Rule) for rule in value))


def operator_classes(node: Node) -> tuple[str, ...]:
    """The names under which a rule's `op` finds a node: that of its aten operator, whatever its spelling; none for
    constants and outputs."""
    if node.op == "placeholder":
        return ("input",)
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None:
        return ()
    name = schema.name.partition("::")[2].strip("_")
    if name == "convolution":
        name = "conv_transpose2d" if node.args[6] else "conv2d"
    if name in ("mm", "addmm", "matmul"):
        return (name, "linear")
    return (name, "depthwise_conv2d") if name == "conv2d" and _is_depthwise(node) else (name,)


def _is_depthwise(node: Node) -> bool:
    groups = argument(node, 8 if node.target is ops.aten.convolution.default else 6, "groups", 1)
    x = value_of(node.args[0]) if isinstance(node.args[0], Node) else None
    return x is not None and x.dim() > 1 and groups == x.shape[1] and groups != 1


def module_paths(node: Node) -> list[str]:
    """Path of the module that a node came from, and of all modules around it: a.b.c, a.b, a."""
    parts = module_path(node).split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1) if parts[0]]


class Resolver:
    """The settings of every operator of one graph.

    Args:
        base: What holds where no rule does.
        rules: In order; later ones win.
        graph: Exported and canonicalized.

    Raises:
        ConfigError: a rule matches nothing in the graph; the message names the nearest that there is.
    """

    def __init__(self, base: Settings, rules: Iterable[Rule], graph: Graph) -> None:
        self._base = Settings(**{each.name: getattr(base, each.name) for each in fields(Settings)})
        self._rules: list[tuple[Rule, set[Node]]] = []
        for rule in rules:
            matching = {node for node in graph.nodes if operator_classes(node) and rule.matches(node)}
            if not matching and rule.required:
                raise ConfigError(_no_match(rule, graph))
            self._rules.append((rule, matching))

    def settings(self, *nodes: Node) -> Settings:
        """Those of one operator; or of several whose values have one quantization."""
        found = self._base
        for rule, matching in self._rules:
            if not matching.isdisjoint(nodes):
                found = replace(found, **rule.overrides)
        return found

    def dtype(self, node: Node) -> Dtype:
        """What `node` computes in: as the rules say; a clamp as the one before it does, into which it is fused."""
        own = self.settings(node).dtype
        before = node.args[0] if node.op == "call_function" and node.target in ops.CLAMP else None
        if own == "int8" and isinstance(before, Node) and len(before.users) == 1 and before.target in ops.TAKES_CLAMP:
            return self.dtype(before)
        return own


def _no_match(rule: Rule, graph: Graph) -> str:
    """The message about a rule that matches nothing: which of its patterns is to blame, and what comes nearest."""
    nodes = [node for node in graph.nodes if operator_classes(node)]
    names: dict[str, Callable[[Node], Iterable[str]]] = {
        "op": operator_classes, "module": module_paths, "node": lambda node: [node.name],
    }  # fmt: skip
    for selector, names_of in names.items():
        pattern = getattr(rule, selector)
        known = {name for node in nodes for name in names_of(node)}
        if pattern is not None and not any(fnmatchcase(name, pattern) for name in known):
            return (
                f"quantization rule for {rule.selection()}: the model has no {_NOUNS[selector]} {pattern!r}; "
                f"{nearest(pattern, known) if known else 'it has none at all'}"
            )
    return f"quantization rule for {rule.selection()}: no operator matches all of these patterns at once"


_NOUNS = {"op": "operator of the class", "module": "module", "node": "node"}
