"""Writes the generated parts of docs/*.md: what the C core and the operator tables say of themselves.

    python tools/gen_docs.py             rewrites them
    python tools/gen_docs.py --check     fails, and names the pages, if that would change anything

A generated part stands between two comments, `<!-- generated: NAME -->` and `<!-- end -->`; PARTS says how each NAME is
made. All else in a page is written by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mera_torch import native
from mera_torch._core import ffi, lib

ROOT = Path(__file__).resolve().parent.parent
DOCS, BENCHMARKS = ROOT / "docs", ROOT / "benchmarks"
PART = re.compile(r"(<!-- generated: (?P<name>[a-z_]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def text(pointer: Any) -> str:
    """The str of a C string."""
    return str(ffi.string(pointer).decode())


def prose(pointer: Any) -> str:
    """The same, as Markdown: products are no emphasis."""
    return text(pointer).replace("*", "\\*")


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; headers that begin with > are right-aligned."""
    lines = ["| " + " | ".join(h.removeprefix(">") for h in headers) + " |"]
    lines.append("| " + " | ".join("---:" if h.startswith(">") else "---" for h in headers) + " |")
    lines += ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


# ---- hardware.md ----


def platforms() -> str:
    headers = ("platform", ">units", ">array W", ">clock MHz", ">INT8 TOPS", "BF16",
               ">SRAM MiB †", ">banks †", ">DRAM GB/s †", ">DRAM latency, cycles †")  # fmt: skip
    rows = [
        (
            f"`{p.name}`", p.units, p.array, f"{p.clock_mhz:g}", f"{2 * p.macs_per_cycle * p.clock_mhz / 1e6:.1f}",
            "yes" if p.bf16 else "no", f"{p.sram_bytes / 2**20:g}", p.sram_banks, f"{p.dram_gbps:g}",
            p.dram_latency_cycles,
        )
        for p in native.platforms()
    ]  # fmt: skip
    return table(headers, rows)


def aliases() -> str:
    return table(("also accepted", "is"), [(f"`{a}`", f"`{name}`") for a, name in native.platform_aliases().items()])


def machine_constants() -> str:
    rows = [
        (f"`{text(lib.mera_arch_name(i))}`", lib.mera_arch_value(i), prose(lib.mera_arch_doc(i)))
        for i in range(lib.mera_arch_count())
    ]
    return table(("constant", ">value", "meaning"), rows)


def cycle_kinds() -> str:
    rows = [(f"`{kind}`", doc) for kind, doc in native.cycle_kinds().items()]
    return table(("kind", "what the unit does, or why it waits"), rows)


# ---- isa.md ----


def instructions() -> str:
    return "\n".join(_instruction(opcode) for opcode in range(lib.mera_isa_count()))


def _instruction(opcode: int) -> str:
    fields, bits = [], 0
    for i in range(lib.mera_isa_field_count(opcode)):
        width = int(lib.mera_isa_field_bits(opcode, i))
        sign = "signed" if width < 0 else ""
        fields.append((f"`{text(lib.mera_isa_field_name(opcode, i))}`", bits, abs(width), sign,
                       prose(lib.mera_isa_field_doc(opcode, i))))  # fmt: skip
        bits += abs(width)
    words = 1 + -(-bits // 32)
    head = f"## {opcode}: `{text(lib.mera_isa_name(opcode))}`\n\n"
    about = f"Unit: {text(lib.mera_isa_unit(opcode))}. Encoded length: {words} words, and 2 for each wait.\n\n"
    about += prose(lib.mera_isa_doc(opcode)) + "\n"
    rows = table(("field", ">first bit", ">bits", "", "meaning"), fields)
    return head + about + ("\n" + rows if fields else "")


# ---- ops.md ----


def operators() -> str:
    parts = []
    for info in native.OPS.values():
        least, most = info.min_inputs, info.max_inputs
        count = str(least) if least == most else f"{least} to {most}"
        attributes = ", ".join(f"`{name}` = {default}" for name, default in info.attrs.items()) or "none"
        about = prose(lib.mera_op_doc(info.index))
        parts.append(f"### `{info.name}`\n\nInputs: {count}. Attributes: {attributes}.\n\n{about}\n")
    return "\n".join(parts)


def torch_operators() -> str:
    from mera_torch.ops import FOLDS
    from mera_torch.ops.common import op_name
    from mera_torch.passes.sink_dequantize import MOVES
    from mera_torch.passes.spellings import RULES

    rows = [(f"`{op_name(target)}`", "on its quantized result") for target in FOLDS]
    rows += [(f"`{op_name(target)}`", "moves to int8") for target in MOVES if target not in FOLDS]
    others = set(RULES) - set(FOLDS) - set(MOVES)
    rows += [(f"`{op_name(target)}`", "spelled with others, or dropped") for target in others]
    return table(("operator of PyTorch", "how"), sorted(rows))


def constraints() -> str:
    import mera_torch.passes  # noqa: F401  (registers the constraints of passes, too)
    from mera_torch.ops.common import CONSTRAINTS

    return table(("constraint", "message"), [(f"`{name}`", message) for name, message in sorted(CONSTRAINTS.items())])


# ---- host_operators.md ----


def host_operators() -> str:
    from mera_torch.native.host import HOST_OPS

    rows = [
        (f"`{op.name}`", f"`{op.schema}`", "yes" if op.exact else "", op.note.replace("*", "\\*"))
        for op in HOST_OPS.values()
    ]
    return table(("operator of PyTorch", "parameters", "exact", "not supported, or other"), sorted(rows))


# ---- device.md ----


def _device_rows(kind: str, of: str = "") -> list[Any]:
    rows = [lib.device_row_at(i) for i in range(lib.device_row_count())]
    return [row for row in rows if text(row.table) == kind and (not of or text(row.of) == of)]


def device_identifiers() -> str:
    rows = [
        (f"`{text(row.name)}`", f"0x{row.value:x}" if row.value > 4096 else row.value, prose(row.doc))
        for row in _device_rows("id")
    ]
    return table(("identifier", ">value", "meaning"), rows)


def device_registers() -> str:
    rows: list[tuple[object, ...]] = []
    for register in _device_rows("register"):
        name = text(register.name)
        reset = f"0x{register.reset:x}" if register.reset > 9 else register.reset
        rows.append((f"`0x{register.value:03x}`", f"`{name}`", "", text(register.access), reset, prose(register.doc)))
        for field in _device_rows("field", name):
            last = field.value + field.bits - 1
            bits = str(field.value) if field.bits == 1 else f"{last}:{field.value}"
            rows.append(("", f"`{name}.{text(field.name)}`", bits, "", "", prose(field.doc)))
    return table(("offset", "register", "bits", "written by", ">reset", "meaning"), rows)


def device_counters() -> str:
    rows = [(f"`0x{row.value:03x}`", f"`{text(row.name)}`", prose(row.doc)) for row in _device_rows("counter")]
    return table(("offset", "counter", "meaning"), rows)


def _fields(rows: Sequence[Any]) -> str:
    cells = [(row.value // 8, row.bits // 8, f"`{text(row.name)}`", prose(row.doc)) for row in rows]
    return table((">byte", ">bytes", "field", "meaning"), cells)


def device_descriptors() -> str:
    parts = ["Every descriptor:\n\n" + _fields(_device_rows("descriptor_field", "ANY"))]
    for row in _device_rows("descriptor"):
        name = text(row.name)
        fields = _device_rows("descriptor_field", name)
        parts.append(f"### {row.value}: `{name}`\n\n{prose(row.doc)}\n" + ("\n" + _fields(fields) if fields else ""))
    return "\n".join(parts)


def device_completions() -> str:
    return _fields(_device_rows("completion_field"))


def device_errors() -> str:
    rows = [(row.value, f"`{text(row.name)}`", prose(row.doc)) for row in _device_rows("error")]
    return table((">code", "error", "meaning"), rows)


# ---- cli.md ----


def exit_codes() -> str:
    from mera_torch.exits import MEANINGS

    return table((">code", "meaning"), MEANINGS.items())


def preprocess_presets() -> str:
    from mera_torch.samples import PRESETS

    def shown(values: Sequence[float]) -> str:
        return ", ".join(f"{value:g}" for value in values)

    rows = [
        (f"`{name}`", p.resize[1] if p.resize else "", f"{p.crop[0]}x{p.crop[1]}" if p.crop else "", f"{p.scale:.6g}",
         shown(p.mean), shown(p.std))
        for name, p in PRESETS.items()
    ]  # fmt: skip
    return table(("preset", "resize", "crop", "scale", "mean", "std"), rows)


def commands() -> str:
    import typer.main

    from mera_torch.cli import app

    group: Any = typer.main.get_command(app)
    return "\n".join(_command(f"mera {name}", held) for name, held in sorted(group.commands.items()))


def _command(name: str, held: Any) -> str:
    if hasattr(held, "commands"):
        return "\n".join(_command(f"{name} {each}", sub) for each, sub in sorted(held.commands.items()))
    arguments = [p for p in held.params if p.param_type_name == "argument"]
    rows = [
        (", ".join(f"`{option}`" for option in (*p.opts, *p.secondary_opts)), _default(p), p.help or "")
        for p in held.params
        if p.param_type_name == "option" and "--help" not in p.opts
    ]
    usage = " ".join([name, *map(_metavar, arguments)])
    about = " ".join((held.help or "").split())
    given = "".join(f"- `{_metavar(p)}`: {p.help}\n" for p in arguments)
    return f"### `{usage}`\n\n{about}\n\n{given}\n{table(('option', 'default', 'meaning'), rows)}"


def _metavar(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _default(option: Any) -> str:
    value = option.default
    if option.required:
        return "needed"
    if isinstance(value, bool):
        return "on" if value else ""
    return "" if value is None or isinstance(value, list | tuple) else f"`{value}`"


# ---- power.md ----


def energy_constants() -> str:
    from mera_torch.energy import CONSTANTS

    rows = [(f"`{name}`", f"{c.value:g}", c.unit, c.source) for name, c in CONSTANTS.items()]
    return table(("constant", ">value", "unit", "source"), rows)


def energy_models() -> str:
    from mera_torch.energy import energy_model

    headers = ("platform", "medium", ">pJ a MAC", ">pJ an SRAM word", ">pJ a DRAM byte", ">idle W")
    rows = [
        (f"`{m.platform}`", m.technology, f"{m.mac:.3f}", f"{m.sram_word:.0f}", f"{m.dram_byte:.0f}",
         f"{sum(m.idle.values()):.2f}")
        for m in map(energy_model, native.platforms())
    ]  # fmt: skip
    return table(headers, rows)


# ---- quantization_benchmarks.md ----


def _quantization_rows() -> tuple[Any, list[dict[str, Any]]]:
    """The module that makes the tables, and the published rows in its order."""
    sys.path.insert(0, str(BENCHMARKS))
    from quantization import tables

    published = json.loads((BENCHMARKS / "results" / "quantization.json").read_text(encoding="utf-8"))
    return tables, published["rows"]


def quantization_aims() -> str:
    tables, rows = _quantization_rows()
    return "\n".join(tables.table(tables.aims(rows))) + "\n"


def quantization_verdicts() -> str:
    tables, rows = _quantization_rows()
    found = [tables.table(shown) for kind in tables.TITLES if (shown := tables.verdicts(rows, kind=kind))]
    return "\n\n".join("\n".join(each) for each in found) + "\n"


def quantization_per_tensor() -> str:
    tables, rows = _quantization_rows()
    return "\n".join(tables.table(tables.figures_of("mobilenet_v2", rows, per_tensor=True))) + "\n"


def quantization_seconds() -> str:
    tables, rows = _quantization_rows()
    return "\n".join(tables.table(tables.seconds("mobilenet_v2", rows))) + "\n"


# ---- lint.md ----


def lint_rules() -> str:
    from mera_torch.quant.lint.linter import rule_names

    return table(("rule", "what it looks for, and why"), [(f"`{name}`", said) for name, said in rule_names().items()])


# ---- quant_config.md, quantization.md ----


def quant_config() -> str:
    from mera_torch.quant import QuantConfig

    return QuantConfig.describe()


def quant_config_brief() -> str:
    from dataclasses import fields

    from mera_torch.quant import QuantConfig
    from mera_torch.quant.options import documented

    rows = [(f"`{name}`", f"`{default}`", values) for name, default, values, _ in documented(fields(QuantConfig))]
    return table(("field", "default", "values"), rows)


def quant_presets() -> str:
    from mera_torch.quant.presets import describe

    return describe()


PARTS: dict[str, Callable[[], str]] = {
    part.__name__: part
    for part in (
        platforms, aliases, machine_constants, cycle_kinds, instructions, operators, torch_operators, constraints,
        device_identifiers, device_registers, device_counters, device_descriptors, device_completions, device_errors,
        host_operators, exit_codes, preprocess_presets, commands, energy_constants, energy_models, lint_rules,
        quantization_aims, quantization_verdicts, quantization_per_tensor, quantization_seconds, quant_config,
        quant_config_brief, quant_presets,
    )
}  # fmt: skip


def regenerated(page: str) -> str:
    """The text of a page with its generated parts made anew."""

    def fresh(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in PARTS:
            raise SystemExit(f"a page asks for the part {name!r}; there are {', '.join(PARTS)}")
        return f"{match[1]}\n{PARTS[name]()}\n{match[3]}"

    return PART.sub(fresh, page)


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes the generated parts of docs/*.md.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if something would change")
    check = parser.parse_args().check
    stale = []
    for path in sorted(DOCS.glob("*.md")):
        old = path.read_text(encoding="utf-8")
        new = regenerated(old)
        if new == old:
            continue
        stale.append(path.name)
        if not check:
            path.write_text(new, encoding="utf-8")
    if stale:
        print(("stale, run python tools/gen_docs.py: " if check else "rewritten: ") + ", ".join(stale))
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
