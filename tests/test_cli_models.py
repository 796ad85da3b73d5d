"""mera convert, explain, quantize, compile: a network on its way from a float file to a deployment."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from cli_tools import Mera, digit_files, mera  # noqa: F401
from onnx import TensorProto, helper
from PIL import Image

import mera_torch
from mera_torch import digits
from mera_torch.cli.models import build_options
from mera_torch.errors import ConfigError, StorageError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_files(tmp_path_factory.mktemp("model"))


def test_explain_names_the_operators(model: Path, mera: Mera) -> None:  # noqa: F811
    shown = mera("explain", model).out
    assert "conv2d" in shown and "DNA region 0" in shown and "features.2" in shown
    assert mera("explain", model, "--json").json["operators_on_dna"] > 5


def test_convert_shows_what_a_model_contains(model: Path, tmp_path: Path, mera: Mera) -> None:  # noqa: F811
    shown = mera("convert", model, "--output", tmp_path / "again.pt2").out
    assert "pt2, quantized (int32, int8)" in shown and "aten.conv2d.default" in shown and "float32" in shown
    found = mera("convert", tmp_path / "again.pt2", "--json").json
    assert found["macs"] > 0 and [len(found[side]) for side in ("inputs", "outputs")] == [1, 1]
    refused = mera("convert", model, "--input", "x")
    assert refused.code == 7 and "--input is NAME=SIZES[:DTYPE]" in refused.err
    refused = mera("convert", model, "--output", tmp_path / "no" / "folder.pt2")
    assert refused.code == 11 and "cannot be written" in refused.err
    assert [path.name for path in tmp_path.iterdir()] == ["again.pt2"]


def symbolic(path: Path) -> Path:
    """An ONNX file whose input is [1, 3, h, w]."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "h", "w"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "'h'; pass --input h=224"),
        (["w=8"], "'h'; pass --input h=224"),
        (["h=8", "w=8", "q=1"], "--input: the model has no symbolic dimension 'q'"),
    ],
)
def test_errors_speak_of_options_not_of_pythons_arguments(
    given: list[str],
    sentence: str,
    tmp_path: Path,
    mera: Mera,  # noqa: F811
) -> None:
    arguments = [word for text in given for word in ("--input", text)]
    found = mera("convert", symbolic(tmp_path / "m.onnx"), *arguments)
    assert found.code == 3 and sentence in found.err
    assert "shape_mapping" not in found.err and "input_desc" not in found.err
    assert mera("convert", tmp_path / "m.onnx", "--input", "h=8", "--input", "w=8").code == 0


def test_torchscript_needs_its_inputs_from_an_option(tmp_path: Path, mera: Mera) -> None:  # noqa: F811
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.ones(1, 2)), str(tmp_path / "m.pt"))
    found = mera("convert", tmp_path / "m.pt")
    assert found.code == 3 and "--input input=1,3,224,224" in found.err and "input_desc" not in found.err
    assert mera("convert", tmp_path / "m.pt", "--input", "x=1,2").code == 0


# ---- quantize ----


def test_quantize_then_compile(model: Path, tmp_path: Path, mera: Mera) -> None:  # noqa: F811
    calibration = model.parent / "calibration.npy"
    output = tmp_path / "int8.pt2"
    found = mera(
        "quantize", model.parent / "float.pt2", "--calibration", calibration, "--output", output, "--json"
    ).json
    assert found["samples"] == 16 and found["config"]["correct_bias"] is True
    assert found["quality"][0]["psnr_db"] > 20
    done = mera("compile", output, "--output", tmp_path / "deployment", "--platform", "DNAF132S0001")
    assert done.code == 0 and "1 region for DNAF132S0001, 0 operators on the host" in done.out
    image = digits.held_out_digits().images[:1]
    answer = mera_torch.load(tmp_path / "deployment").get_runner("Simulator")(image).argmax()
    assert int(answer) == int(digits.held_out_digits().labels[0])


def test_quantize_counts_samples_and_says_what_is_wrong_with_them(tmp_path: Path, mera: Mera) -> None:  # noqa: F811
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU())
    torch.export.save(torch.export.export(network, (torch.randn(4, 3, 8, 8),)), tmp_path / "m.pt2")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((13, 3, 8, 8)).astype(np.float32))
    np.save(tmp_path / "wrong.npy", np.zeros((4, 3, 9, 8), np.float32))

    def run(command: str, data: str, *options: str) -> Any:
        output = ["--output", tmp_path / "q.mera"] if command == "quantize" else []
        return mera(command, tmp_path / "m.pt2", "--calibration", tmp_path / data, *output, *options)

    found = run("quantize", "x.npy", "--json").json
    assert (found["samples"], found["left_over"]) == (12, 1) and found["quality"][0]["psnr_db"] > 30
    assert run("quantize", "x.npy", "--samples", "9", "--json").json["samples"] == 8
    assert "calibrated on 12 samples (1 more do not fill a batch)" in run("quantize", "x.npy").out
    for command in ("quantize", "lint"):
        done = run(command, "wrong.npy")
        assert done.code == 8 and "calibration data" in done.err, done.err


def test_a_full_disk_is_one_sentence(model: Path, tmp_path: Path) -> None:
    """torch's own writer of .pt2 files would end the process."""
    command = [
        sys.executable,
        "-m",
        "mera_torch",
        "convert",
        model.parent / "float.pt2",
        "--output",
        tmp_path / "m.pt2",
    ]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # noqa: E731
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert done.returncode == 11 and done.stderr.count("\n") == 1 and "File too large" in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_quantize_options_reach_the_quantizer(model: Path, tmp_path: Path, mera: Mera) -> None:  # noqa: F811
    base = ["quantize", model.parent / "float.pt2", "--calibration", model.parent / "calibration.npy"]
    texts = set()
    for index, options in enumerate(
        [[], ["--observer", "minmax"], ["--per-tensor"], ["--equalize"], ["--no-correct-bias"], ["--samples", "2"],
         ["--exclude", "features.0*"]]
    ):  # fmt: skip
        path = tmp_path / f"{index}.pt2"
        done = mera(*base, "--output", path, "--quality", "0", *options)
        assert done.code == 0, done.err
        texts.add(str(torch.export.load(path).state_dict) + str(torch.export.load(path).graph))
    assert len(texts) == 7
    refused = mera(*base, "--output", tmp_path / "x.pt2", "--observer", "median")
    assert refused.code == 7 and "activation_observer must be one of" in refused.err
    refused = mera(*base, "--output", tmp_path / "x.pt2", "--histogram-bins", "3")
    assert refused.code == 7 and not (tmp_path / "x.pt2").exists()


def test_quantize_from_a_folder_of_images(model: Path, tmp_path: Path, mera: Mera) -> None:  # noqa: F811
    folder = tmp_path / "images"
    folder.mkdir()
    for index, image in enumerate(digits.calibration_digits().images[:6]):
        Image.fromarray((image[0].numpy() * 255).astype(np.uint8)).save(folder / f"{index}.png")
    base = ["quantize", model.parent / "float.pt2", "--calibration", folder, "--output", tmp_path / "q.pt2"]
    refused = mera(*base)
    assert refused.code == 7 and "need preprocess= (--preprocess)" in refused.err
    done = mera(*base, "--preprocess", "unit", "--preprocess", "channels=gray")
    assert done.code == 0 and "calibrated on 6 samples" in done.out and "PSNR" in done.out


@pytest.mark.parametrize("shape", [(3, 7), (0, 1, 28, 28)])
def test_quantize_refuses_other_data(
    shape: tuple[int, ...],
    model: Path,
    tmp_path: Path,
    mera: Mera,  # noqa: F811
) -> None:
    np.save(tmp_path / "x.npy", np.zeros(shape, np.float32))
    found = mera(
        "quantize", model.parent / "float.pt2", "--calibration", tmp_path / "x.npy", "--output", tmp_path / "q.pt2"
    )
    assert found.code == 8 and not (tmp_path / "q.pt2").exists()


# ---- compile ----


def test_compile_with_a_build_config(model: Path, tmp_path: Path, mera: Mera) -> None:  # noqa: F811
    (tmp_path / "config.toml").write_text('max_tile_height = 4\n[scheduler_config]\nmode = "Fast"\n')
    found = mera(
        "compile", model, "--output", tmp_path / "d", "--build-config", tmp_path / "config.toml", "--build-config",
        "compiler_workers=2", "--build-config", "scheduler_config.main_scheduling_iterations=5", "--json",
    ).json  # fmt: skip
    assert found["regions"] == 1 and "deployment.json" in found["files"]
    config = mera_torch.load(tmp_path / "d").build_config
    assert (config["max_tile_height"], config["compiler_workers"], config.scheduler["mode"]) == (4, 2, "Fast")
    assert config.scheduler["main_scheduling_iterations"] == 5
    again = mera("compile", model, "--output", tmp_path / "d")
    assert again.code == 3 and "overwrite" in again.err
    assert mera("compile", model, "--output", tmp_path / "d", "--overwrite", "--no-progress").code == 0
    wrong = mera("compile", model, "--output", tmp_path / "e", "--build-config", "max_tile_hight=4")
    assert wrong.code == 7 and "did you mean 'max_tile_height'" in wrong.err and not (tmp_path / "e").exists()


def test_build_options(tmp_path: Path) -> None:
    assert build_options([]) == {}
    assert build_options(["dump_ir=True", "sim_freq_mhz=1.5", "max_tile_width=8"]) == {
        "dump_ir": True, "sim_freq_mhz": 1.5, "max_tile_width": 8,
    }  # fmt: skip
    with pytest.raises(StorageError, match="cannot be read"):
        build_options([str(tmp_path / "no.toml")])
    with pytest.raises(ConfigError, match="is neither"):
        build_options(["a b=3"])


def test_dump_and_bisect(model: Path, mera: Mera) -> None:  # noqa: F811
    deployment = model.parent / "deployment"
    assert mera("dump", deployment, "--stage", "fuse").out.startswith("# region_0\n")
    found = mera("dump", deployment, "--json").json
    assert found["stage"] == "isa" and "conv" in found["regions"][0]["text"]
    found = mera("bisect", deployment, "--json").json
    assert found == {"equal": True, "regions": [{"region": "region_0", "difference": None}]}


@pytest.mark.slow
def test_the_demo_as_json(mera: Mera) -> None:  # noqa: F811
    found = mera("demo", "--json").json
    assert found["byte_equal"] is True and found["accuracy"]["Simulator"] > 0.9
    assert json.dumps(found["metrics"]["cycles"])


def test_demo_prints_what_it_measured(mera: Mera) -> None:  # noqa: F811
    shown = mera("demo").out
    for words in (
        "every byte equal", "PyTorch, float32", "InterpreterHw", "Simulator", "cycles", "latency", "utilization",
    ):  # fmt: skip
        assert words in shown


def test_quantize_does_to_a_file_what_it_does_to_the_module(model: Path) -> None:
    """torch.export decomposes batch norms: an imported float network is equalized and folded all the same."""
    batches = [(image,) for image in torch.from_numpy(np.load(model.parent / "calibration.npy")).split(1)]
    imported, module = mera_torch.load_model(model.parent / "float.pt2"), digits.trained_digit_net()
    for config in ({}, {"equalize": True}):
        a, b = (
            mera_torch.quantize(net, batches[0], batches, config=config, progress=False) for net in (imported, module)
        )
        assert torch.equal(a(*batches[0]), b(*batches[0]))
