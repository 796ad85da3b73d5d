"""Writes the generated parts of docs/*.md: what the C core and the operator tables say of themselves.

    python tools/gen_docs.py             rewrites them
    python tools/gen_docs.py --check     fails, and names the pages, if that would change anything

A generated part stands between two comments, `<!-- generated: NAME -->` and `<!-- end -->`; PARTS says how each NAME is
made. All else in a page is written by hand.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mera_torch import native
from mera_torch._core import ffi, lib

DOCS = Path(__file__).resolve().parent.parent / "docs"
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


PARTS: dict[str, Callable[[], str]] = {
    part.__name__: part
    for part in (platforms, aliases, machine_constants, instructions, operators, torch_operators, constraints)
}


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
