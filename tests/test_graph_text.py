"""The text and binary forms of the DNA graph: inverse of each other, and precise about what they refuse."""

from __future__ import annotations

import locale
import random

import numpy as np
import pytest

from mera_torch import native
from mera_torch.errors import CorruptFileError, InvalidModelError, MeraError
from mera_torch.native import Graph

TEXT = """\
graph "tiny"
tensor %0 "x" int8[1, 6, 5, 3] scale 0.003921569 zero -128
tensor %1 "w" int8[4, 3, 3, 3] scale [0.1, 0.02, 0.003, 4e-05] zero 0 = base64 "{base64}"
tensor %2 "b" int32[1, 1, 1, 4] = hex "01000000feffffff0000008000000100"
tensor %3 "y" int8[1, 3, 3, 4] scale 0.05 zero 3
tensor %4 "a \\"quoted\\\\\\x0a\\" name" int8[1, 3, 3, 4] scale 0.05 zero 3
input %0
%3 "conv1" = conv2d(%0, %1, %2) {{stride_h=2, stride_w=2, pad_top=1, pad_bottom=1, pad_left=1, pad_right=1}} \
layer "features.0" source "net.py:12"
%4 "pool" = max_pool2d(%3)
output %4
output %3
"""


def tiny() -> str:
    import base64

    weights = np.arange(108).astype(np.int8).tobytes()
    return TEXT.format(base64=base64.b64encode(weights).decode())


def test_printing_and_parsing_are_inverse() -> None:
    graph = Graph.parse(tiny())
    assert graph.text() == tiny()
    assert Graph.parse(graph.text()).text() == graph.text()
    assert [t.name for t in graph.outputs] == ['a "quoted\\\n" name', "y"]
    assert graph.nodes[0].source == "net.py:12" and graph.nodes[0].macs == 3 * 3 * 4 * 27


def test_saving_and_loading_are_inverse() -> None:
    graph = Graph.parse(tiny())
    again = Graph.load(graph.save())
    assert again.text() == graph.text()
    assert again.save() == graph.save()


def test_without_data_constants_are_hashed_and_the_text_does_not_parse() -> None:
    text = Graph.parse(tiny()).text(with_data=False)
    assert "constant of 108 bytes, fnv1a " in text and "base64" not in text
    with pytest.raises(InvalidModelError, match="line 3"):
        Graph.parse(text)


INITIALIZED = """
graph "initializers"  # a comment
tensor %0 "x" int8[1,2,2,2] scale 1 zero 0
tensor %1 "c" int8[1,1,1,2] scale 1 = {data}
tensor %2 "y" int8[1,2,2,2] scale 1
input %0
%2 "sum" = add(%0, %1)
output %2
"""


@pytest.mark.parametrize(
    "data, expected", [("splat(-5)", [-5, -5]), ("list(1, -2)", [1, -2]), ('hex "7f80"', [127, -128])]
)
def test_initializers(data: str, expected: list[int]) -> None:
    graph = Graph.parse(INITIALIZED.format(data=data))
    found = native.Interpreter(graph).run_all([np.zeros((1, 2, 2, 2), np.int8)])
    assert found[1].ravel().tolist() == expected


def test_random_is_the_seeds() -> None:
    texts = {Graph.parse(INITIALIZED.format(data=f"random({seed})")).text() for seed in (0, 1, 1, 2)}
    assert len(texts) == 3


def test_a_foreign_locale_changes_nothing() -> None:
    before = locale.setlocale(locale.LC_ALL)
    for name in ("de_DE.UTF-8", "fr_FR.UTF-8", "de_DE"):
        try:
            locale.setlocale(locale.LC_ALL, name)
            break
        except locale.Error:
            continue
    else:
        pytest.skip("no locale with a decimal comma is installed")
    try:
        assert Graph.parse(tiny()).text() == tiny()
    finally:
        locale.setlocale(locale.LC_ALL, before)


@pytest.mark.parametrize("scale", [1.0, 0.1, 1e-38, 3.4028235e38, 1.17549435e-38, 0.33333334, 1e-45])
def test_scales_come_back_exactly(scale: float) -> None:
    graph = Graph.parse(INITIALIZED.format(data="splat(0)").replace("scale 1", f"scale {scale!r}"))
    assert np.float32(graph.inputs[0].scale) == np.float32(scale)
    assert Graph.parse(graph.text()).inputs[0].scale == graph.inputs[0].scale


# (what is replaced in INITIALIZED, by what, the error)
BAD_TEXTS = [
    ("graph ", "grape ", r"line 2, column 1: the text must begin with"),
    ('"x" int8', '"x int8', r"line 3, column 11: the string does not end"),
    ("%1 ", "%7 ", r"line 4, column 10: tensors are numbered in order: %1 is expected, got %7"),
    ("int8[1,2,2,2] scale 1 zero 0", "int4[1,2,2,2]", r"line 3, column 15: int8 or int32 is expected"),
    ("[1,2,2,2] scale 1 zero 0", "[1,2,2] scale 1", r"line 3, column 25: ',' is expected, got \"\]\""),
    ("zero 0", "zero 200", r"line 3, column 42: a whole number from -128 to 127 is expected, got 200"),
    ("scale 1 zero 0", "scale -1", r"line 3: tensor \"x\": scale must be finite and above 0, got -1"),
    ("splat(0)", "splat(300)", r"a whole number from -128 to 127 is expected, got 300"),
    ("splat(0)", "list(1, 2, 3)", r"'\)' is expected, got \",\""),
    ("splat(0)", 'hex "00"', r"4 hex digits are expected, got 2"),
    ("splat(0)", 'hex "0g00"', r"must be hex digits"),
    ("splat(0)", 'base64 "AAA"', r"4 base64 digits are expected, got 3"),
    ("splat(0)", 'base64 "AAAA"', r"must be base64"),
    ("splat(0)", 'base64 "AAB="', r"bits beyond its last byte"),
    ("splat(0)", "magic", r"hex, base64, splat, random or list is expected"),
    ("= add(", "= addd(", r"line 7, column 12: there is no operator \"addd\""),
    ("add(%0, %1)", "add(%0, %1) {clamp=3}", r"add has no attribute \"clamp\""),
    ("add(%0, %1)", "add(%0)", r"line 7: add \"sum\": it must have 2 to 2 inputs, got 1"),
    ("add(%0, %1)", "add(%0, %9)", r"there is no tensor 9"),
    ("add(%0, %1)", "add(%0, %2)", r"input 1 must be a constant, a graph input or an earlier node's output"),
    ("output %2", "output %99999999999", r"line 8, column 9: a whole number from 0 to 2147483647 is expected"),
    ("output %2", "", r"must be used by a node or be a graph output|at least one output"),
    ("output %2", "emit %2", r"line 8, column 1: tensor, input, output or %number is expected"),
    ("output %2\n", "output", r"'%' is expected, the text ends"),
]


@pytest.mark.parametrize("old, new, message", BAD_TEXTS)
def test_errors_name_line_and_column(old: str, new: str, message: str) -> None:
    text = INITIALIZED.format(data="splat(0)")
    assert old in text
    with pytest.raises(InvalidModelError, match=message):
        Graph.parse(text.replace(old, new, 1))


def test_every_truncation_and_many_mutations_of_a_file_are_refused() -> None:
    data = Graph.parse(tiny()).save()
    for end in range(len(data)):
        with pytest.raises(CorruptFileError):
            Graph.load(data[:end])
    rng = random.Random(0)
    for _ in range(300):
        bad = bytearray(data)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        with pytest.raises(CorruptFileError):
            Graph.load(bytes(bad))


def fnv1a(data: bytes) -> int:
    value = 14695981039346656037
    for byte in data:
        value = (value ^ byte) * 1099511628211 % 2**64
    return value


def test_files_with_a_right_checksum_and_wrong_content_are_refused_or_valid() -> None:
    data = Graph.parse(tiny()).save()
    rng, refused = random.Random(1), 0
    for _ in range(400):
        payload = bytearray(data[28:])
        for _ in range(rng.randint(1, 3)):
            payload[rng.randrange(len(payload))] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        try:
            graph = Graph.load(data[:20] + fnv1a(payload).to_bytes(8, "little") + payload)
        except CorruptFileError:
            refused += 1
        else:
            assert Graph.parse(graph.text()).text() == graph.text()
    assert refused > 50


def test_mutated_texts_are_refused_or_valid() -> None:
    text, rng = tiny(), random.Random(2)
    for _ in range(400):
        at = rng.randrange(len(text))
        mutated = text[:at] + rng.choice('0-9"%=,([{x \\\n#') + text[at + rng.randint(0, 2) :]
        try:
            Graph.parse(mutated)
        except MeraError:
            continue
