"""mera run, report, profile and verify on a deployment; run and verify also in the runtime install."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_tools import Mera, digit_files, mera  # noqa: F401
from PIL import Image
from test_cli import runtime_only

from mera_torch import digits
from mera_torch.errors import InvalidModelError
from mera_torch.execute import best, latency

LABEL = int(digits.held_out_digits().labels[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_files(tmp_path_factory.mktemp("model")).parent


@pytest.mark.parametrize("target", ["InterpreterHw", "Simulator"])
def test_run_gives_the_bytes_of_the_runner(target: str, folder: Path, tmp_path: Path, mera: Mera) -> None:  # noqa: F811
    output = tmp_path / "out.npz"
    found = mera("run", folder / "deployment", folder / "digit.npy", "--output", output, "--target", target)
    assert found.code == 0 and f"largest at {LABEL}" in found.out
    with np.load(output, allow_pickle=False) as outputs:
        (logits,) = (outputs[name] for name in outputs.files)
        assert np.array_equal(logits, np.load(folder / "logits.npy"))
    document = mera("run", folder / "deployment", folder / "digit.npy", "--target", target, "--json").json
    assert document["target"] == target and document["host"] == "numpy" and document["random"] is False
    assert np.array_equal(np.float32(document["outputs"][0]["values"]), np.load(folder / "logits.npy"))
    assert document["outputs"][0]["largest_at"] == LABEL


def test_run_on_a_device(folder: Path, mera: Mera) -> None:  # noqa: F811
    pytest.importorskip("mera_torch.device")
    from mera_torch.backend.region import TARGETS

    if "IP" not in TARGETS:
        pytest.skip("this tree has no target IP")
    document = mera("run", folder / "deployment", folder / "digit.npy", "--target", "IP", "--json").json
    assert np.array_equal(np.float32(document["outputs"][0]["values"]), np.load(folder / "logits.npy"))


def test_random_inputs_have_a_seed(folder: Path, mera: Mera) -> None:  # noqa: F811
    sums = [
        mera("run", folder / "deployment", "--seed", seed, "--json").json["outputs"][0]["sha256"] for seed in (0, 0, 1)
    ]
    assert sums[0] == sums[1] != sums[2]


def test_images_latencies_and_labels(folder: Path, tmp_path: Path, mera: Mera) -> None:  # noqa: F811
    pixels = (np.load(folder / "digit.npy")[0, 0] * 255).round().astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    (tmp_path / "labels.txt").write_text("\n".join(f"the {i}" for i in range(10)))
    arguments = ["run", folder / "deployment", tmp_path / "digit.png", "--preprocess", "unit", "--preprocess",
                 "channels=gray", "--labels", tmp_path / "labels.txt"]  # fmt: skip
    shown = mera(*arguments, "--repeat", 3, "--warmup", 1)
    assert f"the {LABEL}" in shown.out and "3 runs on this host" in shown.out and "p99" in shown.out
    document = mera(*arguments, "--top", 2, "--json").json
    assert [len(rows) for rows in document["top"]] == [2] and document["top"][0][0]["label"] == f"the {LABEL}"
    (tmp_path / "few.txt").write_text("one\ntwo")
    refused = mera(*arguments[:-1], tmp_path / "few.txt")
    assert refused.code == 3 and "2 labels for 10 classes" in refused.err


@pytest.mark.parametrize(
    ("inputs", "code", "sentence"),
    [
        ([__file__], 6, "is no .npy"),
        (["nothing.npy"], 11, "cannot be read"),
        (["{folder}/calibration.npy"], 3, "must be float32[1, 1, 28, 28]"),
        (["{folder}/digit.npy", "{folder}/digit.npy"], 3, "takes 1 inputs"),
    ],
)
def test_inputs_that_do_not_fit(
    inputs: list[str],
    code: int,
    sentence: str,
    folder: Path,
    mera: Mera,  # noqa: F811
) -> None:
    found = mera("run", folder / "deployment", *(text.format(folder=folder) for text in inputs))
    assert found.code == code and sentence in found.err


def test_a_target_that_does_not_exist(folder: Path, mera: Mera) -> None:  # noqa: F811
    found = mera("run", folder / "deployment", "--target", "Simulater")
    assert found.code == 7 and "did you mean 'Simulator'" in found.err


def test_best_and_latency() -> None:
    scores = np.array([[0.1, 0.9, 0.5], [3, 2, 2]], np.float32)
    assert [[row["class"] for row in rows] for rows in best(scores, 2)] == [[1, 2], [0, 1]]
    assert best(scores.reshape(2, 3, 1, 1), 1)[0][0]["class"] == 1
    with pytest.raises(InvalidModelError, match="holds no scores"):
        best(np.zeros((1, 2, 3)), 1)
    found = latency([0.001, 0.003])
    assert found["runs"] == 2 and found["mean"] == pytest.approx(2) and found["per_second"] == pytest.approx(500)


# ---- report, profile ----


def test_report_lists_layers_and_writes_a_trace(folder: Path, tmp_path: Path, mera: Mera) -> None:  # noqa: F811
    found = mera("report", folder / "deployment", "--trace", tmp_path / "trace.json")
    assert "features.2.conv1.0" in found.out and "lower bound" in found.out
    document = mera("report", folder / "deployment", "--json").json
    assert document["cycles"] >= document["lower_bound_cycles"] and document["layers"]
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    stalls = [event for event in events if event.get("cat") == "stall"]
    assert stalls and {event["name"] for event in stalls} <= {
        f"stall: {kind}" for kind in ("dram", "dependency", "fill", "drain", "issue")
    }
    assert all(event["dur"] > 0 for event in stalls)


def test_profile_of_a_deployment_and_of_a_model(folder: Path, tmp_path: Path, mera: Mera) -> None:  # noqa: F811
    page = tmp_path / "profile.html"
    shown = mera("profile", folder / "deployment", "--html", page)
    for words in ("bound by", "bank conflict", "dependency", "roofline", "estimate", "energy:"):
        assert words in shown.out, words
    assert "<table>" in page.read_text() and "estimate" in page.read_text()
    a = mera("profile", folder / "deployment", "--json").json
    b = mera("profile", folder / "digits.pt2", "--platform", "DNAF132S0001", "--json").json
    assert a["total"]["cycles"] == b["total"]["cycles"] and a["layers"] == b["layers"]
    assert sum(layer["share"] for layer in a["layers"]) == pytest.approx(1)
    assert a["power"]["estimate"] is True
    for unit in a["units"].values():
        spent = {kind: cycles for kind, cycles in unit.items() if kind != "count"}
        assert sum(spent.values()) == unit["count"] * a["total"]["cycles"]
    refused = mera("profile", folder / "deployment", "--platform", "SAKURA_1")
    assert refused.code == 7 and "leave out --platform" in refused.err


# ---- verify, and the runtime install ----


def test_verify(folder: Path, tmp_path: Path, mera: Mera) -> None:  # noqa: F811
    assert mera("verify", folder / "deployment").code == 0
    assert mera("verify", folder / "deployment", "--json").json["equal"] is True
    shutil.copytree(folder / "deployment", tmp_path / "d")
    with open(tmp_path / "d" / "region_0.dna", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x00\x01")
    assert mera("verify", tmp_path / "d").code == 6


def test_run_and_verify_in_the_runtime_install(folder: Path, tmp_path: Path) -> None:
    done = runtime_only("run", folder / "deployment", folder / "digit.npy", "--output", tmp_path / "out.npz", "--json")
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.float32(json.loads(done.stdout)["outputs"][0]["values"]), np.load(folder / "logits.npy"))
    assert "3 runs" in runtime_only("run", folder / "deployment", "--repeat", 3).stdout
    assert runtime_only("verify", folder / "deployment").returncode == 0
    refused = runtime_only("run", "nowhere", "--json")
    assert refused.returncode == 3 and json.loads(refused.stderr)["error"]["type"] == "InvalidModelError"
    assert runtime_only("run", folder / "deployment", "--repeat", "0").returncode == 2
