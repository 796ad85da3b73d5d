"""QuantConfig, its rules and presets; and that whatever they say still runs bit-exactly on the DNA."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import compiled
import models
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e

import mera_torch
from mera_torch.errors import CalibrationError, ConfigError, StorageError
from mera_torch.quant import MeraQuantizer, QuantConfig, Rule, calibrate, convert, quantize
from mera_torch.quant.calibration.observers import collected, restore
from mera_torch.quant.calibration.statistics import from_arrays, to_arrays
from mera_torch.quant.config import meaning
from mera_torch.quant.options import Accepts
from mera_torch.quant.presets import PRESETS
from mera_torch.quant.rules import Settings

qd: Any = torch.ops.quantized_decomposed
FIELDS = {each.name: each for each in dataclasses.fields(QuantConfig)}


class Net(nn.Module):
    """Two blocks and a head: conv2d, depthwise, add, sigmoid gate, cat, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = models.conv_bn(3, 8)
        self.block = nn.ModuleDict({"wide": models.conv_bn(8, 8, groups=8), "point": nn.Conv2d(8, 8, 1)})
        self.gate = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        z = self.block["point"](self.block["wide"](y)) + y
        z = torch.cat([z * torch.sigmoid(self.gate(z)), y], 1)
        return self.head(F.adaptive_avg_pool2d(z, 1).flatten(1))


def net() -> Net:
    torch.manual_seed(0)
    return models.set_batchnorm_statistics(Net(), torch.randn(8, 3, 12, 12))  # type: ignore[return-value]


def data(count: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, 12, 12, generator=generator) for _ in range(count)]


def prepared(config: Any = None, batches: list[Tensor] | None = None) -> torch.fx.GraphModule:
    module = prepare_pt2e(
        torch.export.export(net().eval(), (data()[0],)).module(check_guards=False), MeraQuantizer(config)
    )
    if batches:
        calibrate(module, [(x,) for x in batches], progress=False)
    return module


def weights(module: torch.fx.GraphModule) -> dict[str, Any]:
    """What dequantizes each convolution's and linear's weight, by the reader's name; None in float."""
    found = {}
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default):
            found[node.name] = node.args[1] if node.args[1].op == "call_function" else None
    return found


def zero_points(module: torch.fx.GraphModule) -> set[int]:
    return {node.args[2] for node in module.graph.nodes if node.target is qd.quantize_per_tensor.default}


# ---- the table of options ----


def samples(name: str) -> st.SearchStrategy[Any]:
    accepts: Accepts = FIELDS[name].metadata["accepts"]
    if accepts.choices:
        return st.sampled_from(accepts.choices)
    return {
        "histogram_bins": st.integers(128, 65536),
        "averaging_constant": st.floats(0, 1, exclude_min=True),
        "percentile": st.floats(50, 100, exclude_min=True),
        "smoothquant": st.one_of(st.none(), st.just("auto"), st.floats(0, 1)),
        "adaround_iterations": st.integers(1, 1_000_000),
        "seed": st.integers(0, 2**63 - 1),
        "exclude": st.lists(st.text(min_size=1)).map(tuple),
        "rules": st.lists(rules, max_size=3).map(tuple),
    }[name]


SETTINGS = [each.name for each in dataclasses.fields(Settings)]
rules = st.builds(
    lambda patterns, overrides, required: Rule(**patterns, **overrides, required=required),
    st.dictionaries(st.sampled_from(["op", "module", "node"]), st.text(min_size=1), min_size=1),
    st.sets(st.sampled_from(SETTINGS), min_size=1).flatmap(
        lambda names: st.fixed_dictionaries({name: samples(name) for name in sorted(names)})
    ),
    st.booleans(),
)
configs = st.sets(st.sampled_from(sorted(FIELDS))).flatmap(
    lambda names: st.fixed_dictionaries({name: samples(name) for name in sorted(names)})
)


@settings(deadline=None, max_examples=80)
@given(configs)
def test_dict_and_toml_give_the_same_configuration(tmp_path_factory: pytest.TempPathFactory, options: Any) -> None:
    config = QuantConfig(**options)
    assert QuantConfig.from_dict(config.to_dict()) == config == QuantConfig.of(config.to_dict())
    path = tmp_path_factory.getbasetemp() / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert QuantConfig.from_toml(path) == config == QuantConfig.of(str(path)) == QuantConfig.of(path)
    assert hash(config) == hash(QuantConfig.from_toml(path))


def test_a_rule_can_set_every_setting_and_nothing_else() -> None:
    own = {each.name for each in dataclasses.fields(Rule)} - {"op", "module", "node", "required"}
    assert own == set(SETTINGS) <= set(FIELDS)


def test_every_field_is_documented_once() -> None:
    table = QuantConfig.describe()
    for name, each in FIELDS.items():
        row = next(line for line in table.splitlines() if line.startswith(f"| `{name}` "))
        assert each.metadata["meaning"] in row and each.metadata["accepts"].text in row
        assert each.metadata["accepts"].holds(each.default)
        assert each.metadata["accepts"].text in meaning(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"equalise": True}, "unknown key 'equalise'; did you mean 'equalize'"),
        ({"activation_observer": "histogramm"}, "activation_observer must be one of .* did you mean 'histogram'"),
        ({"activation_observer": None}, "activation_observer must be one of"),
        ({"percentile": 50}, "percentile must be a number above 50 and at most 100, got 50"),
        ({"percentile": True}, "percentile must be a number"),
        ({"averaging_constant": float("nan")}, "averaging_constant must be"),
        ({"per_channel_weights": 1}, "per_channel_weights must be True or False"),
        ({"smoothquant": "automatic"}, 'smoothquant must be None .* "auto" or a number 0 to 1'),
        ({"seed": -1}, "seed must be an integer"),
        ({"adaround_iterations": 0}, "adaround_iterations must be"),
        ({"exclude": "head"}, "exclude must be a tuple of strings"),
        ({"rules": {"op": "conv2d"}}, "rules must be a tuple of rules"),
        ({"rules": ["conv2d"]}, "must be a Rule or a dict, got str"),
        ({"rules": [{"op": "conv2d"}]}, "sets nothing; give one of"),
        ({"rules": [{"dtype": "float"}]}, "needs at least one of op, module, node"),
        ({"rules": [{"op": "conv2d", "dtyp": "float"}]}, "unknown key 'dtyp'; did you mean 'dtype'"),
        ({"rules": [{"op": "conv2d", "dtype": "int4"}]}, "for op='conv2d': dtype must be one of"),
        ({"rules": [{"node": "", "dtype": "float"}]}, "node must be a pattern"),
        ({"rules": [{"node": 3, "dtype": "float"}]}, "node must be a pattern"),
        ({"preset": "SAKURA"}, "unknown preset 'SAKURA'; did you mean 'DNA_SAKURA_I"),
    ],
)
def test_bad_options_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuantConfig.from_dict(options)


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("equalize = yes")
    with pytest.raises(ConfigError, match="c.toml' is not TOML"):
        QuantConfig.from_toml(path)
    path.write_text("equalizer = true")
    with pytest.raises(ConfigError, match="c.toml'.*did you mean 'equalize'"):
        QuantConfig.of(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(StorageError, match="cannot be read"):
        QuantConfig.from_toml(path)
    with pytest.raises(StorageError, match="cannot be read"):
        QuantConfig.of("there_is_none.toml")
    with pytest.raises(ConfigError, match="got int"):
        QuantConfig.of(3)  # type: ignore[arg-type]


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        QuantConfig().equalize = True  # type: ignore[misc]


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str) -> None:
    config = QuantConfig.preset(name)
    assert config == QuantConfig.of(name) == QuantConfig.of(name.lower()) == QuantConfig.from_dict({"preset": name})
    assert (config == QuantConfig()) == (name == "DEFAULT")
    assert QuantConfig.from_dict({"preset": name, "seed": 7}) == dataclasses.replace(config, seed=7)


# ---- rules ----


def test_later_rules_win_and_patterns_combine() -> None:
    config = QuantConfig(
        rules=(
            Rule(op="conv2d", per_channel_weights=False),
            Rule(op="conv2d", module="block", per_channel_weights=True),
            Rule(op="depthwise_conv2d", weight_scheme="affine"),
            Rule(node="linear", dtype="float"),
        )
    )
    held = weights(convert(prepared(config, data())))
    assert [None if w is None else w.target for w in held.values()] == [
        qd.dequantize_per_tensor.default, qd.dequantize_per_channel.default, qd.dequantize_per_channel.default,
        qd.dequantize_per_tensor.default, None,
    ]  # fmt: skip


def test_the_settings_of_an_activation_are_those_of_its_maker() -> None:
    wide = [x * 10 for x in data()]
    plain = collected(prepared("FAST", wide))
    config = QuantConfig(activation_observer="minmax", rules=(Rule(op="input", activation_scheme="symmetric"),))
    module = convert(prepared(config, wide))
    first, *others = (n for n in module.graph.nodes if n.target is qd.quantize_per_tensor.default)
    assert first.args[0].op == "placeholder" and first.args[2] == 0
    name = next(iter(plain))
    assert first.args[1] == pytest.approx(max(-plain[name].low, plain[name].high) / 127)
    assert any(n.args[2] != 0 for n in others)


def test_a_rule_for_one_value_of_a_concat_holds_for_all() -> None:
    module = convert(prepared({"rules": [{"op": "cat", "activation_scheme": "symmetric"}]}, data()))
    (cat,) = (n for n in module.graph.nodes if n.target is torch.ops.aten.cat.default)
    around = {n.args[1:3] for n in (*cat.args[0], *cat.users)}
    assert len(around) == 1 and next(iter(around))[1] == 0


def test_a_module_pattern_covers_what_is_inside() -> None:
    for pattern in ("block", "block.*", "bl*"):
        for config in ({"exclude": (pattern,)}, {"rules": ({"module": pattern, "dtype": "float"},)}):
            held = weights(convert(prepared(config, data())))
            assert [w is None for w in held.values()] == [False, True, True, False, False]


def test_float_keeps_the_clamp_that_would_be_fused() -> None:
    quantizer = MeraQuantizer({"rules": [{"node": "conv2d", "dtype": "bf16"}]})
    prepare_pt2e(torch.export.export(net().eval(), (data()[0],)).module(check_guards=False), quantizer)
    assert list(quantizer.dtypes) == ["conv2d", "relu_"] and set(quantizer.dtypes.values()) == {"bf16"}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule(node="conv2d_33", dtype="float"), r"no node 'conv2d_33'; did you mean 'conv2d_3'"),
        (Rule(module="blok.point", dtype="float"), r"no module 'blok.point'; did you mean 'block.point'"),
        (Rule(op="conv_2d", dtype="float"), r"no operator of the class 'conv_2d'; did you mean 'conv2d'"),
        (Rule(op="linear", module="stem", dtype="float"), "no operator matches all of these patterns at once"),
        (Rule(op="softmax", dtype="float"), "no operator of the class 'softmax'"),
    ],
)
def test_a_rule_that_matches_nothing_is_told(rule: Rule, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepared(QuantConfig(rules=(rule,)))
    prepared(QuantConfig(rules=(dataclasses.replace(rule, required=False),)))
    with pytest.raises(ConfigError, match=message):
        quantize(net(), data()[0], data(), config={"rules": (rule,)}, progress=False)


def test_an_excluded_module_that_does_not_exist_is_told() -> None:
    with pytest.raises(ConfigError, match="no module 'heads'; did you mean 'head'"):
        prepared({"exclude": ["heads"]})


# ---- calibration by hand ----


def test_what_never_ran_is_named() -> None:
    with pytest.raises(CalibrationError, match="calibration is empty"):
        calibrate(prepared(), [], progress=False)
    with pytest.raises(
        CalibrationError, match="the (input|weight|output of) '.*was never seen: run the prepared model"
    ):
        convert_pt2e(prepared())


class Branched(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) + x


def test_a_node_that_never_ran_is_named() -> None:
    module = prepare_pt2e(torch.export.export(Branched(), (data()[0],)).module(check_guards=False), MeraQuantizer())
    observers = [n for n in module.graph.nodes if n.op == "call_module"]
    module.get_submodule(observers[0].target)(data()[0])  # the input alone was seen
    with pytest.raises(CalibrationError, match="the output of 'relu' was never seen"):
        convert_pt2e(module)


def test_calibration_can_be_stored_and_resumed() -> None:
    batches = data(4)
    whole = prepared(None, batches)
    half = prepared(None, batches[:2])
    arrays = to_arrays(collected(half))
    resumed = prepared()
    assert restore(resumed, from_arrays(arrays)) == []
    calibrate(resumed, [(x,) for x in batches[2:]], progress=False)
    for name, wanted in to_arrays(collected(whole)).items():
        assert (to_arrays(collected(resumed))[name] == wanted).all(), name
    x = batches[0]
    with torch.no_grad():
        assert torch.equal(convert(resumed)(x), convert(whole)(x))


def test_copies_of_a_prepared_network_are_apart() -> None:
    batches = data(3)
    first = prepared(None, batches[:2])
    other = copy.deepcopy(first)
    calibrate(other, [(batches[2] * 9,)], progress=False)
    assert {s.batches for s in collected(first).values()} == {2}
    assert {s.batches for s in collected(other).values()} == {3}
    with torch.no_grad():
        got, wanted = convert(first)(batches[0]), convert(prepared(None, batches[:2]))(batches[0])
        assert torch.equal(got, wanted)
        wider = convert(prepared(None, [*batches[:2], batches[2] * 9]))(batches[0])
        assert torch.equal(convert(other)(batches[0]), wider)


@pytest.mark.parametrize(
    "config",
    [
        {"activation_observer": "entropy"}, {"activation_observer": "percentile", "percentile": 99.0}, "FAST",
        {"activation_scheme": "symmetric", "fixed_ranges": False}, {"activation_observer": "moving_average"},
        {"weight_observer": "mse", "weight_scheme": "affine"}, {"exclude": ["gate"]},
        {"rules": [{"op": "cat", "dtype": "float"}]},
    ],
)  # fmt: skip
def test_another_configuration_needs_no_second_pass(config: Any) -> None:
    batches = data()
    held = collected(prepared(None, batches))
    again = prepared(config)
    assert restore(again, held) == []
    with torch.no_grad():
        got, wanted = convert(again)(batches[0]), convert(prepared(config, batches))(batches[0])
    assert torch.equal(got, wanted)


def test_statistics_of_another_resolution_are_refused() -> None:
    held = collected(prepared(None, data()))
    for config in ({"histogram_bins": 256}, {"averaging_constant": 0.5}):
        with pytest.raises(CalibrationError, match="histogram_bins or averaging_constant"):
            restore(prepared(config), held)


# ---- the DNA ----

CONFIGS: dict[str, Any] = {
    **{name: name for name in PRESETS if name not in ("DEFAULT", "ACCURATE")},
    "entropy": {"activation_observer": "entropy"},
    "moving average": {"activation_observer": "moving_average"},
    "symmetric": {"activation_scheme": "symmetric", "fixed_ranges": False},
    "per tensor": {"per_channel_weights": False, "weight_observer": "mse"},
    "affine weights": {"weight_scheme": "affine"},
    "affine weights per tensor": {"weight_scheme": "affine", "per_channel_weights": False, "weight_observer": "mse"},
    "mixed": {
        "rules": [
            {"op": "conv2d", "weight_scheme": "affine"}, {"module": "gate", "per_channel_weights": False},
            {"op": "add", "activation_scheme": "symmetric"}, {"node": "linear", "dtype": "float"},
        ]
    },
    "convolutions alone": {"dtype": "float", "rules": [{"op": "conv2d", "dtype": "int8"}]},
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_runs_bit_exactly_on_the_dna(name: str) -> None:
    model, batches = net(), data()
    converted = quantize(model, batches[0], batches, config=CONFIGS[name], progress=False)
    found = compiled.run(compiled.built(converted, batches[0]), batches[0])[0]  # InterpreterHw = Simulator
    with torch.no_grad():
        wanted, simulated = model.eval()(batches[0]), converted(batches[0])
    noise = (found - wanted).square().mean() / wanted.var()
    assert noise < (1 if name == "entropy" else 0.01)  # of so few values entropy keeps a narrow range
    assert (found - simulated).abs().max() <= 0.1 * wanted.std()


def test_a_configured_network_is_exported(tmp_path: Path) -> None:
    batches = data()
    converted = quantize(net(), batches[0], batches, config={"weight_scheme": "affine"}, progress=False)
    results = []
    for target in ("InterpreterHw", "Simulator"):
        deployment = mera_torch.export(converted, (batches[0],), tmp_path / target, target=target)
        results.append(deployment.get_runner()(batches[0]))
    assert torch.equal(*results)


@pytest.mark.parametrize(
    "config",
    [
        {}, {"weight_scheme": "affine"}, {"per_channel_weights": False, "weight_scheme": "affine"},
        {"activation_scheme": "symmetric", "fixed_ranges": False}, {"exclude": ["head"]},
    ],
)  # fmt: skip
def test_qat_honours_the_configuration(config: dict[str, Any]) -> None:
    x, model = data()[0], net().eval()
    for block in (model.stem, model.block["wide"]):  # torchao takes a minute to prepare batch norms for training
        block[0], block[1] = fuse_conv_bn_eval(block[0], block[1]), nn.Identity()
    exported = torch.export.export(model.train(), (x,)).module(check_guards=False)
    trained = prepare_qat_pt2e(exported, MeraQuantizer(config, is_qat=True))
    optimizer = torch.optim.SGD(trained.parameters(), 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        trained(x).square().mean().backward()
        optimizer.step()
    converted = convert(trained)
    held = weights(converted)
    per_channel = config.get("per_channel_weights", True)
    kind = qd.dequantize_per_channel.default if per_channel else qd.dequantize_per_tensor.default
    assert all(w is None or w.target is kind for w in held.values())
    assert (held["linear"] is None) == ("exclude" in config)
    if "activation_scheme" in config:
        assert zero_points(converted) == {0}
    found = compiled.run(compiled.built(converted, x), x)[0]
    with torch.no_grad():
        assert (found - converted(x)).abs().max() <= 0.1 * found.std()


def test_smoothquant_can_be_switched_off_in_toml(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('preset = "DNA_SAKURA_II"\nsmoothquant = false\n')
    assert QuantConfig.from_toml(tmp_path / "c.toml").smoothquant is None
    with pytest.raises(ConfigError, match="smoothquant must be None"):
        QuantConfig(smoothquant=True)  # type: ignore[arg-type]
