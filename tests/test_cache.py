"""The compile cache: nothing that decides a program is missing from its key; entries are whole, bounded and shared."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_tools import Mera, mera  # noqa: F401
from compiled import quantized
from dna import RESIDUAL_NET, convolution, graph, machine, same_bytes
from random_graphs import random_graph
from torch import nn

import mera_torch
from mera_torch import ConfigError, MeraError, cache, files, native, oracle
from mera_torch.bisect import build
from mera_torch.cache import Cache, key_of
from mera_torch.platform import Platform

MACHINE = machine(units=2, array=32, sram_kib=256)
OPTIONS = {"max_tile_height": 0}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """This process's cache, empty."""
    monkeypatch.setenv("MERA_CACHE_DIR", str(tmp_path / "cache"))
    return Cache(tmp_path / "cache")


def compiled(text: str = RESIDUAL_NET, **other: Any) -> cache.Compiled:
    return cache.compile(graph(text), MACHINE, OPTIONS, name="net", **other)


# ---- the key ----


def outcome(built: native.Graph, platform: Platform, options: dict[str, int]) -> tuple[str, bytes]:
    """Key and program; raises MeraError if it does not compile."""
    return key_of(built.save(), platform, options), built.compile(platform, options).save()


def mutated_platforms() -> Iterator[tuple[str, Platform]]:
    for field in fields(Platform):
        value = getattr(MACHINE, field.name)
        if isinstance(value, str):
            others: list[Any] = [value + "2"]
        elif isinstance(value, bool):
            others = [not value]
        else:
            others = [value * 2, value // 2 if isinstance(value, int) else value * 1.0000001]
        for other in others:
            yield field.name, replace(MACHINE, **{field.name: other})


def mutated_options() -> Iterator[tuple[str, dict[str, int]]]:
    for name in native.compiler_options({}):
        for value in (0, 1, 2, 3, 5, 8):
            yield name, {name: value}


def mutated_graphs(given: oracle.Graph, rng: random.Random) -> Iterator[tuple[str, oracle.Graph]]:
    """The graph with one thing changed: every attribute, every constant, every quantization, shape and name."""
    yield "graph.name", replace(given, name="other")
    yield "graph.inputs", replace(given, inputs=given.inputs[::-1])
    yield "graph.outputs", replace(given, outputs=given.outputs[::-1])
    for i, node in enumerate(given.nodes):
        changes = [
            (f"attr {key}", {"attrs": {**node.attrs, key: v + d}}) for key, v in node.attrs.items() for d in (1, -1)
        ]
        changes += [(key, {key: getattr(node, key) + "x"}) for key in ("name", "layer", "source")]
        changes += [("node inputs", {"inputs": node.inputs[::-1]})]
        for what, change in changes:
            yield what, replace(given, nodes=[*given.nodes[:i], replace(node, **change), *given.nodes[i + 1 :]])
    for i, tensor in enumerate(given.tensors):
        kinds: list[tuple[str, dict[str, Any]]] = [("tensor name", {"name": tensor.name + "x"})]
        if tensor.scale:
            place = rng.randrange(len(tensor.scale))
            for what, key, value in (
                ("scale", "scale", float(np.nextafter(np.float32(tensor.scale[place]), np.float32(9)))),
                ("scale", "scale", tensor.scale[place] * 1.5),
                ("zero point", "zero_point", tensor.zero_point[place] + (-1 if tensor.zero_point[place] > 0 else 1)),
            ):
                held = list(getattr(tensor, key))
                held[place] = value
                kinds.append((what, {key: tuple(held)}))
        if tensor.data is not None:
            data = tensor.data.copy()
            flat = data.reshape(-1)
            flat[rng.randrange(flat.size)] ^= 1
            kinds.append(("constant", {"data": data}))
        for axis in range(4):
            shape = tuple(size + (axis == k) for k, size in enumerate(tensor.shape))
            kinds.append(("shape", {"shape": shape}))
        for what, change in kinds:
            yield what, replace(given, tensors=[*given.tensors[:i], replace(tensor, **change), *given.tensors[i + 1 :]])


def mutations(given: oracle.Graph, seed: int) -> Iterator[tuple[str, oracle.Graph, Platform, dict[str, int]]]:
    for name, platform in mutated_platforms():
        yield f"platform {name}", given, platform, {}
    for name, options in mutated_options():
        yield f"option {name}", given, MACHINE, options
    for what, other in mutated_graphs(given, random.Random(seed)):
        yield what, other, MACHINE, {}


def check_mutations(seeds: range) -> dict[str, list[bool]]:
    """For each kind of change that compiles, whether the program changed; where it did, the key must have too."""
    changed: dict[str, list[bool]] = {}
    for seed in seeds:
        given = random_graph(random.Random(seed), 5, max_elements=3000)
        key, program = outcome(build(given), MACHINE, {})
        assert (key, program) == outcome(build(given), MACHINE, {})
        for what, other, platform, options in mutations(given, seed):
            try:
                found = outcome(build(other), platform, options)
            except MeraError:  # a change that makes no sense
                continue
            changed.setdefault(what, []).append(found[1] != program)
            assert found[1] == program or found[0] != key, f"{what} changes the program and is not in the key"
    return changed


def judge(changed: dict[str, list[bool]]) -> None:
    """The mutations are of every kind, and such that a key without them would have been found out."""
    for field in fields(Platform):
        assert any(changed[f"platform {field.name}"]), field.name
    for name in native.compiler_options({}):
        assert f"option {name}" in changed
    assert not any(changed["option workers"])
    for what in ("constant", "scale", "zero point", "name", "layer", "source"):
        assert any(changed[what]), what
    assert any(any(found) for what, found in changed.items() if what.startswith("attr "))


def test_nothing_that_changes_the_program_is_missing_from_the_key() -> None:
    judge(check_mutations(range(3)))


@pytest.mark.slow
def test_nothing_is_missing_from_the_key_of_many_graphs() -> None:
    judge(check_mutations(range(3, 60)))


@pytest.mark.parametrize("name", sorted(set(native.compiler_options({})) - cache.NOT_IN_KEY))
def test_every_option_of_a_large_convolution(name: str) -> None:
    """Where the options have a say."""
    built, small, found = graph(convolution(h=40, w=40, ci=40, co=64)), replace(MACHINE, sram_bytes=65536), set()
    for value in (0, 1, 3, 8):
        try:
            found.add(outcome(built, small, {name: value}))
        except MeraError:  # a mode that is not there yet
            continue
    keys, programs = ({pair[side] for pair in found} for side in (0, 1))
    assert len(keys) == len(found) >= len(programs) and (len(programs) > 1 or not name.startswith("max_"))


@pytest.mark.parametrize("name", ["core_version", "core_build"])
def test_another_core_has_other_keys(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = graph(RESIDUAL_NET).save()
    before = key_of(saved, MACHINE, OPTIONS)
    monkeypatch.setattr(native, name, lambda: "another")
    assert key_of(saved, MACHINE, OPTIONS) != before


def test_workers_are_not_in_the_key() -> None:
    saved = graph(RESIDUAL_NET).save()
    assert (
        key_of(saved, MACHINE, {"workers": 1}) == key_of(saved, MACHINE, {"workers": 8}) == key_of(saved, MACHINE, {})
    )
    with pytest.raises(ConfigError, match="unknown compiler option"):
        key_of(saved, MACHINE, {"max_tile": 1})


def run_python(code: str, **environment: str) -> str:
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths, **environment}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_key_is_the_same_in_every_process() -> None:
    code = (
        "from dna import *; from mera_torch.cache import key_of\n"
        "print(key_of(graph(RESIDUAL_NET).save(), machine(units=2, array=32, sram_kib=256), {'max_tile_height': 0}))"
    )
    here = key_of(graph(RESIDUAL_NET).save(), MACHINE, OPTIONS)
    assert {run_python(code, PYTHONHASHSEED=seed, LC_ALL="C") for seed in ("1", "2")} == {here}


def test_the_build_id_is_that_of_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = Path(__file__).parents[1] / "tools"
    monkeypatch.syspath_prepend(str(tools))
    import build_core

    first = build_core.build_id()
    assert first == build_core.build_id() and len(first) == 16
    source = tmp_path / "csrc"
    (source / "tests").mkdir(parents=True)
    monkeypatch.setattr(build_core, "CSRC", source)
    found = []
    for name, content in (("a.c", "1"), ("a.c", "2"), ("b.h", "2"), ("c.def", ""), ("tests/t.c", "3"), ("notes", "4")):
        (source / name).write_text(content)
        found.append(build_core.build_id())
    assert len(set(found[:4])) == 4 and len(set(found[3:])) == 1


# ---- entries ----


def test_the_second_time_it_is_there(store: Cache) -> None:
    first = compiled()
    again = compiled()
    assert (first.cache, again.cache) == ("miss", "hit")
    assert first.program.save() == again.program.save() == first.data == again.data
    assert same_bytes(graph(RESIDUAL_NET), again.program)
    (entry,) = store.entries()
    assert (entry.graph, entry.platform) == ("net", MACHINE.name) and entry.seconds > 0
    stages: list[str] = []
    compiled(progress=lambda stage, done, total: stages.append(stage))
    assert stages == ["compile cache"]


@pytest.mark.parametrize("how", ["argument", "variable", "configuration"])
def test_off(how: str, store: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "variable":
        monkeypatch.setenv("MERA_CACHE", "0")
        assert cache.default() is None
    if how == "configuration":
        region = mera_torch.backend.region.DnaRegion("r", graph(RESIDUAL_NET), [], [], [], MACHINE, {}, {}, {}, False)
        assert region.program.instruction_count > 0 and region.compiled and region.compiled.cache == "off"
    else:
        assert compiled(**({"cached": False} if how == "argument" else {})).cache == "off"
    assert not store.folder.exists()


def test_switch_that_is_neither_on_nor_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERA_CACHE", "perhaps")
    with pytest.raises(ConfigError, match="must be 0 .off. or 1 .on., got 'perhaps'"):
        cache.default()


def test_folder_by_name(store: Cache, tmp_path: Path) -> None:
    cache.use(tmp_path / "mine")
    try:
        assert compiled().cache == "miss" and len(Cache(tmp_path / "mine").entries()) == 1
    finally:
        cache.use(None)
    assert store.entries() == [] and cache.default().folder == store.folder  # type: ignore[union-attr]


def damaged(data: bytes, rng: random.Random) -> Iterator[bytes]:
    yield b""
    yield b"\n"
    yield b"null\n"
    yield b"[1]\n" + data.partition(b"\n")[2]
    yield b'{"format": 1}\n'
    for _ in range(10):
        yield data[: rng.randrange(len(data))]
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        yield bytes(flipped)
    yield data + b"\0"


def test_a_damaged_entry_is_removed_and_made_anew(store: Cache, caplog: pytest.LogCaptureFixture) -> None:
    wanted = compiled().data
    (path,) = store.folder.glob("*.program")
    good = path.read_bytes()
    text_end = good.index(b"\n")
    for data in damaged(good, random.Random(1)):
        path.write_bytes(data)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = compiled()
        # A changed byte of what only the list shows ("seconds", "graph") does no harm.
        about_only = data[text_end:] == good[text_end:] and found.cache == "hit"
        assert about_only or (found.cache == "miss" and "is damaged" in caplog.text and path.read_bytes() != data)
        assert found.data == wanted and compiled().cache == "hit"


def test_an_entry_under_another_name_is_not_taken(store: Cache) -> None:
    compiled(convolution())
    (path,) = store.folder.glob("*.program")
    other = key_of(graph(RESIDUAL_NET).save(), MACHINE, OPTIONS)
    path.rename(path.with_name(f"{other}.program"))
    found = compiled()
    assert found.cache == "miss" and same_bytes(graph(RESIDUAL_NET), found.program)


def nets(count: int) -> list[str]:
    return [convolution(h=4 + index) for index in range(count)]


def test_what_was_used_longest_ago_goes_first(store: Cache) -> None:
    for index, net in enumerate(nets(4)):
        compiled(net)
        for path in store.folder.glob("*.program"):  # as if an hour had gone by
            os.utime(path, (time.time() - 3600, path.stat().st_mtime - 3600))
        if index == 2:
            assert compiled(nets(1)[0]).cache == "hit"
    sizes = {entry.key: entry.bytes for entry in store.entries()}
    order = [entry.key for entry in store.entries()]
    store.limit_bytes = sum(sizes[key] for key in order[:2])
    assert [entry.key for entry in store.entries()] == order[:2]
    assert Cache(store.folder).limit_bytes == store.limit_bytes
    assert [compiled(net).cache for net in nets(4)][0] == "hit"
    assert sum(entry.bytes for entry in store.entries()) <= store.limit_bytes
    store.limit_bytes = 100  # no program is so small: none is kept
    assert store.entries() == [] and compiled().cache == compiled().cache == "miss"


def test_leftovers_of_killed_writers_go(store: Cache) -> None:
    compiled()
    left = store.folder / f".{'0' * 64}.program.mera-abcdefgh"
    (left / "new").mkdir(parents=True)
    (left / "owner").touch()
    compiled(convolution())
    assert not left.exists() and store.clear() == 2 and [p.name for p in store.folder.iterdir()] == []


def test_a_cache_that_cannot_be_written_is_said_and_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MERA_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        assert compiled().cache == compiled().cache == "miss"
    assert "is not kept" in caplog.text and "a file is in its way" in caplog.text


WORKER = """
import random, sys
from dna import *
from mera_torch.cache import Cache, compile, default
rng, outcomes = random.Random(int(sys.argv[1])), []
for turn in range(60):
    net = convolution(h=4 + rng.randrange(6))
    found = compile(graph(net), machine(), {})
    assert found.data == graph(net).compile(machine(), {}).save()
    outcomes.append(found.cache)
    if turn % 20 == 7:
        default().clear()
print(outcomes.count("hit"), outcomes.count("miss"))
"""


def test_many_processes(store: Cache, caplog: pytest.LogCaptureFixture) -> None:
    """Four processes that compile the same six graphs, with room for three, and now and then clear the cache."""
    compile_one = cache.compile(graph(convolution(h=9)), machine(), {})
    assert compile_one.data is not None
    store.limit_bytes = 3 * len(compile_one.data) + 2000
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(seed)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )
        for seed in range(4)
    ]  # fmt: skip
    hits = 0
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0 and "damaged" not in err and "not kept" not in err, err
        hits += int(out.split()[0])
    assert hits > 0
    store.trim()
    assert sum(entry.bytes for entry in store.entries()) <= store.limit_bytes
    assert {path.name for path in store.folder.iterdir() if path.suffix != ".program"} <= {"limit.json"}


# ---- around it ----


def test_export_says_whether_it_hit(store: Cache, tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = torch.randn(1, 3, 8, 8)
    model = quantized(nn.Conv2d(3, 4, 3), data)
    for name, config, wanted in (("a", {}, "miss"), ("b", {}, "hit"), ("c", {"cache": False}, "off")):
        mera_torch.export(model, (data,), tmp_path / name, platform="DNAF132S0001", build_config=config)
        taken = files.unseal(tmp_path / name / "metrics.json", "metrics")
        assert taken["regions"]["region_0"]["cache"] == wanted
    programs = [(tmp_path / name / "region_0.dna").read_bytes() for name in "abc"]
    assert programs[0] == programs[1] == programs[2]


def test_command(store: Cache, mera: Mera, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    for net in nets(3):
        compiled(net)
    found = mera("cache", "--json").json
    assert found["folder"] == str(store.folder) and len(found["entries"]) == 3
    assert found["bytes"] == sum(entry["bytes"] for entry in found["entries"]) and found["limit_bytes"] == 2 << 30
    shown = mera("cache", "--list").out
    assert all(entry["key"][:12] in shown for entry in found["entries"]) and "3 programs" in shown
    assert mera("cache", "--limit", "1.5K").code == 0 and store.limit_bytes == 1536
    assert mera("cache", "--clear", "--json").json["entries"] == [] and store.entries() == []
    refused = mera("cache", "--limit", "much")
    assert refused.code == 7 and "a size is a number" in refused.err
    monkeypatch.setenv("MERA_CACHE", "0")
    off = mera("cache")
    assert off.code == 7 and "switched off by MERA_CACHE" in off.err
