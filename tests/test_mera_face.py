"""What MERA's documentation shows, written anew line by line: scripts that import mera_torch as mera."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import face
import numpy as np
import pytest
import torch
from face import SmallMobileNet, SmallResNet, nhwc

import mera_torch as mera
from mera_torch import DeviceTarget, InvalidModelError, Layout, Platform, Target

pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch's, of TorchScript and of eager quantization

SHAPE = (1, face.SIZE, face.SIZE, 3)
INPUT_DESC = {"input0": (SHAPE, "float32")}


def test_resnet_from_torchscript_on_every_target(tmp_path: Path) -> None:
    path, x = face.torchscript(SmallResNet, tmp_path / "resnet.pt")
    data = nhwc(x)
    build_cfg = {"sim_freq_mhz": 300}
    with mera.TVMDeployer(str(tmp_path / "deployment"), overwrite=True) as deployer:
        model = mera.ModelLoader(deployer).from_pytorch(str(path), INPUT_DESC)
        assert model.model_name == "resnet" and model.get_input_shape() == SHAPE
        reference = deployer.deploy(
            model, mera_platform=Platform.DNAF200L0003, build_config=build_cfg, target=Target.InterpreterHw
        )
        int_result = reference.get_runner().set_input(data).run().get_outputs()
        for index, result in enumerate(int_result):
            deployer.save_data_file(f"ref_result_{index}.bin", result.flatten().astype(np.float32))
        in_float = deployer.deploy(model, target=Target.Interpreter).get_runner().set_input(data).run().get_output()
        deploy = deployer.deploy(
            model,
            mera_platform=Platform.DNAF200L0003,
            build_config=build_cfg,
            target=Target.Simulator,
            host_arch="x86",
        )
    run_res = deploy.get_runner().set_input(data).run()
    for wanted, found in zip(int_result, run_res.get_outputs(), strict=True):
        assert np.array_equal(wanted, found)
    with torch.no_grad():
        eager = face.eager(SmallResNet)[0](x).numpy()
    step = np.diff(np.unique(eager)).min()
    assert np.abs(in_float - eager).max() <= 1.01 * step
    assert np.abs(run_res.get_output(0) - eager).max() <= 2.01 * step
    total = sum(row.get("sim_time_us", 0) for row in run_res.get_runtime_metrics()) / 1000
    assert 0 < total < 1 and run_res.get_runtime_metrics()[0]["freq_mhz"] == 300
    saved = np.fromfile(tmp_path / "deployment" / "data" / "ref_result_0.bin", np.float32)
    assert np.array_equal(saved, int_result[0].flatten())


def test_resnet_on_a_device(tmp_path: Path) -> None:
    """Target IP: without a board, on an emulated one."""
    path, x = face.torchscript(SmallResNet, tmp_path / "resnet.pt")
    with mera.TVMDeployer(tmp_path / "deployment", overwrite=True) as deployer:
        model = mera.ModelLoader(deployer).from_pytorch(path, INPUT_DESC)
        reference = deployer.deploy(model, mera_platform=Platform.DNAF132S0001, target=Target.InterpreterHw)
        int_result = reference.get_runner().set_input(nhwc(x)).run().get_outputs()
        deployer.deploy(model, mera_platform=Platform.DNAF132S0001, target=Target.IP, host_arch="arm")
    deployment = mera.load_mera_deployment(tmp_path / "deployment", target=Target.IP)
    run_res = deployment.get_runner(device_target=DeviceTarget.XILINX_U50).set_input(nhwc(x)).run()
    assert all(np.array_equal(a, b) for a, b in zip(int_result, run_res.get_outputs(), strict=True))
    metrics = run_res.get_runtime_metrics()
    assert sum(row.get("elapsed_latency", 0) for row in metrics) > 0 and metrics[0]["cycles"] > 0
    assert run_res.get_power_metrics().report
    for device_ids in (999, ["emulated:999"]):
        with pytest.raises(mera.DeviceAbsentError):
            deployment.get_runner(device_ids=device_ids)
    for device_ids in ([], -1, [True], "", 1.5):
        with pytest.raises((mera.ConfigError, mera.DeviceAbsentError)):
            deployment.get_runner(device_ids=device_ids)  # type: ignore[arg-type]


def test_the_layout_decides_how_arrays_lie(tmp_path: Path) -> None:
    path, x = face.torchscript(SmallMobileNet, tmp_path / "net.pt")
    outputs = {}
    for layout, data in ((Layout.NHWC, nhwc(x)), (Layout.NCHW, x.numpy()), ("NCHW", x.numpy())):
        with mera.Deployer(tmp_path / f"d_{layout}", overwrite=True) as deployer:
            desc = [("input0", (data.shape, "float32"))]
            model = mera.ModelLoader(deployer).from_pytorch(path, desc, layout=layout)
            deployment = deployer.deploy(model, Platform.DNAF132S0001)
            runner = deployment.get_runner().set_input(data).run()
        outputs[str(layout)] = runner.get_output()
        assert mera.load(deployment.path).host_operators == []  # the border does it
    assert outputs["NHWC"].shape == (1, 8, 8, 5)
    assert np.array_equal(outputs["NHWC"].transpose(0, 3, 1, 2), outputs["NCHW"])


def test_tflite_in_int8_then_loaded_again(tmp_path: Path) -> None:
    output_dir = str(tmp_path / "deploy_effnet")
    with mera.TVMDeployer(output_dir, overwrite=True) as deployer:
        model = mera.ModelLoader(deployer).from_tflite(str(face.TFLITE / "int8.tflite"))
        input_size = model.get_input_shape()[1]
        image = np.random.default_rng(0).integers(0, 256, (1, input_size, input_size, 3)).astype(np.uint8)
        deployer.deploy(
            model,
            mera_platform=Platform.DNAF200L0003,
            build_config={"sim_freq_mhz": 300},
            target=Target.Simulator,
            host_arch="x86",
        )
    simulated = mera.load_mera_deployment(output_dir).get_runner().set_input(image).run()
    assert sum(row.get("sim_time_us", 0) for row in simulated.get_runtime_metrics()) > 0
    (result,) = simulated.get_outputs()
    top3 = np.argsort(result[0])[::-1][:3]
    with torch.no_grad():
        wanted = mera.from_tflite(face.TFLITE / "int8.tflite")(torch.from_numpy(image)).numpy()
    assert result.dtype == np.int8 and len(top3) == 3
    assert np.abs(result.astype(int) - wanted).max() <= 1


def test_fused_models_share_their_input(tmp_path: Path) -> None:
    layout = Layout.NHWC
    resnet_path, x = face.torchscript(SmallResNet, tmp_path / "resnet18.pt")
    mobilenet_path, _ = face.torchscript(SmallMobileNet, tmp_path / "mobilenet_v2.pt")
    data = nhwc(x)
    with mera.TVMDeployer(str(tmp_path / "fused"), overwrite=True) as deployer:
        resnet = mera.ModelLoader(deployer).from_pytorch(str(resnet_path), INPUT_DESC, layout=layout)
        mobilenet = mera.ModelLoader(deployer).from_pytorch(str(mobilenet_path), INPUT_DESC, layout=layout)
        fused_model = mera.ModelLoader(deployer).fuse_models([resnet, mobilenet], share_input=True)
        assert list(fused_model.input_desc) == ["input0_0"] and fused_model.model_name == "fused_resnet18_mobilenet_v2"
        results = {}
        for target in (Target.InterpreterHw, Target.Simulator):
            deployed = deployer.deploy(fused_model, mera_platform=Platform.DNAA600L0002, target=target)
            run = deployed.get_runner().set_input(data).run()
            results[target] = [run.get_output(0), run.get_output(1)]
        singles = [
            deployer.deploy(model, Platform.DNAA600L0002).get_runner().set_input(data).run().get_output()
            for model in (resnet, mobilenet)
        ]
    for hw, simulated, single in zip(results[Target.InterpreterHw], results[Target.Simulator], singles, strict=True):
        assert np.array_equal(hw, simulated) and np.array_equal(simulated, single)


def test_fused_models_have_inputs_of_their_own(tmp_path: Path) -> None:
    """Across front ends, and by name: the names are the model's, with its index."""
    path, x = face.torchscript(SmallResNet, tmp_path / "a.pt")
    with mera.TVMDeployer(tmp_path / "fused") as deployer:
        loader = mera.ModelLoader(deployer)
        model_a = loader.from_tflite(face.TFLITE / "int8.tflite")
        model_b = loader.from_pytorch(path, INPUT_DESC)
        fused_model = loader.fuse_models([model_a, model_b], share_input=False)
        input_names = list(fused_model.input_desc.keys())
        assert input_names == ["a_0", "input0_1"]
        assert fused_model.get_input_shape(input_names[1]) == SHAPE
        image = np.full(fused_model.get_input_shape("a_0"), 7, np.uint8)
        data = {"input0_1": nhwc(x), "a_0": image}
        runner = deployer.deploy(fused_model, mera_platform="DNAF132S0001").get_runner()
        outputs = runner.set_input(data).run().get_outputs()
        names = runner.get_output_names()
        alone = [
            deployer.deploy(model, "DNAF132S0001").get_runner().set_input(given).run().get_output()
            for model, given in ((model_a, image), (model_b, nhwc(x)))
        ]
    assert len(outputs) == 2 and names == ["Identity_0", "output_1"]
    assert all(np.array_equal(a, b) for a, b in zip(outputs, alone, strict=True))


def test_onnx_float_and_quantized(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(face.float_onnx())
    (tmp_path / "int8.onnx").write_bytes(face.int8_onnx())
    x = face.picture(seed=3).numpy()
    with mera.TVMDeployer(tmp_path / "d", overwrite=True) as deployer:
        model = mera.ModelLoader(deployer).from_onnx(str(tmp_path / "net.onnx"), batch_num=1)
        assert model.input_desc.to_dict() == {"input": ((1, 3, 16, 16), "float32")}
        wanted = deployer.deploy(model, target=Target.Interpreter, host_arch="x86").get_runner().set_input(x).run()
        with pytest.raises(mera.UnsupportedError, match="'net' is float and target Simulator.*mera_torch.quantize"):
            deployer.deploy(model)
        quantized = mera.ModelLoader(deployer).from_onnx(tmp_path / "int8.onnx", layout=Layout.NHWC)
        assert quantized.get_input_shape() == SHAPE
        found = deployer.deploy(quantized, target="Simulator").get_runner().set_input(x.transpose(0, 2, 3, 1)).run()
    assert np.abs(found.get_output() - wanted.get_output()).max() < 0.1


def test_quantize_what_was_loaded_and_deploy_it(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(face.float_onnx())
    loader = mera.ModelLoader()
    model = loader.from_onnx(tmp_path / "net.onnx", layout="NHWC")
    batches = [(torch.from_numpy(nhwc(face.picture(seed=seed))),) for seed in range(4)]
    quantized = mera.quantize(model.module, model.example_inputs(), batches, progress=False)
    ready = loader.from_module(quantized, model_name="int8")
    assert ready.quantized and ready.input_desc.to_dict() == model.input_desc.to_dict()
    with mera.Deployer(tmp_path / "d") as deployer:
        x = batches[0][0].numpy()
        found = deployer.deploy(ready).get_runner().set_input({"input": x}).run().get_output()
        wanted = deployer.deploy(model, target="Interpreter").get_runner().set_input(x).run().get_output()
    assert np.abs(found - wanted).max() < 0.1


def test_inputs_that_come_quantized(tmp_path: Path) -> None:
    path, x = face.torchscript(SmallResNet, tmp_path / "net.pt")
    with mera.Deployer(tmp_path / "d") as deployer:
        loader = mera.ModelLoader(deployer)
        plain = loader.from_pytorch(path, INPUT_DESC)
        model = loader.from_pytorch(path, INPUT_DESC, model_name="pre", use_prequantize_input=True)
        desc = model.input_desc["input0"]
        assert desc.input_type == "uint8" and desc.scale is not None and desc.zero_point is not None
        q = torch.quantize_per_tensor(x, desc.scale, desc.zero_point, torch.quint8).int_repr()
        wanted = deployer.deploy(plain).get_runner().set_input(nhwc(x)).run().get_output()
        found = deployer.deploy(model).get_runner().set_input(nhwc(q)).run().get_output()
    assert np.array_equal(wanted, found)
    unquantized = torch.jit.trace(torch.nn.Conv2d(3, 3, 1), x)
    with pytest.raises(mera.UnsupportedError, match="'input0'.*the model is not quantized"):
        mera.ModelLoader().from_pytorch(unquantized, INPUT_DESC, use_prequantize_input=True)


def test_the_other_formats(tmp_path: Path) -> None:
    """.pt2 of a quantized module."""
    from compiled import quantized

    torch.manual_seed(0)
    x = face.picture()
    module = quantized(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()), x)
    torch.export.save(torch.export.export(module, (x,)), tmp_path / "net.pt2")
    with mera.Deployer(tmp_path / "d") as deployer:
        model = mera.ModelLoader(deployer).from_pt2(tmp_path / "net.pt2")
        runner = deployer.deploy(model).get_runner()
    deployment = mera.export(module, (x,), tmp_path / "direct", platform="DNAF200L0003")
    wanted = deployment.get_runner()(x).numpy()
    assert np.array_equal(runner.set_input(x.numpy()).run().get_output(), wanted)
    direct = mera.load_mera_deployment(tmp_path / "direct").get_runner()  # without a project
    assert np.array_equal(direct.set_input([x.numpy()]).run().get_output(), wanted)


@pytest.mark.slow
def test_keras(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    model = tf.keras.Sequential([tf.keras.layers.Input((8, 8, 3)), tf.keras.layers.Conv2D(4, 3)])
    model.save(tmp_path / "net.keras")
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
    with mera.Deployer(tmp_path / "d") as deployer:
        loaded = mera.ModelLoader(deployer).from_keras(tmp_path / "net.keras")
        found = deployer.deploy(loaded, target="Interpreter").get_runner().set_input(x).run().get_output()
    assert np.allclose(found, model(x).numpy(), atol=1e-5)


def test_mera_files_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "net.mera").write_bytes(b"\x80\x04.")
    with pytest.raises(mera.UnsupportedError, match="pickles.*mera_torch.quantize"):
        mera.ModelLoader().from_quantized_mera(tmp_path / "net.mera")
    with pytest.raises(InvalidModelError, match="does not exist"):
        mera.ModelLoader().from_quantized_mera(tmp_path / "absent.mera")


def test_a_wrong_layout_is_hinted_at(tmp_path: Path) -> None:
    path, x = face.torchscript(SmallResNet, tmp_path / "net.pt")
    with pytest.raises(InvalidModelError, match="layout is NHWC"):
        mera.ModelLoader().from_pytorch(path, {"x": (tuple(x.shape), "float32")})


def test_names_do_for_enums() -> None:
    assert Target("Simulator") is Target.Simulator and Layout("NHWC") is Layout.NHWC and str(Target.IP) == "IP"
    assert DeviceTarget("SAKURA_1") is DeviceTarget(1) is DeviceTarget.SAKURA_1 and DeviceTarget.XILINX_U50.code == 2
    assert Platform.SAKURA_1 == Platform["DNAA600L0002"] and Platform.SAKURA_2C.name == "SAKURA_II"
    assert Platform("DNAF200L0003") == Platform.DNAF200L0003 and Platform.SAKURA_1.value == "SAKURA_1"
    assert {p.name for p in Platform} >= {"SAKURA_1", "DNAF200L0003"} and str(Platform.DNAF200L0001) == "DNAF200L0003"
    assert mera.__version__ and "torch" in mera.get_versions() and mera.get_mera_dna_version()


@pytest.mark.parametrize(
    ("ask", "match"),
    [
        (lambda: Target("Simulater"), "unknown target 'Simulater': did you mean 'Simulator'"),
        (lambda: Layout("NHCW"), "unknown layout 'NHCW'"),
        (lambda: DeviceTarget("XILINX_U5"), "did you mean 'XILINX_U50'"),
        (lambda: Platform.SAKURA_3, "unknown platform 'SAKURA_3'.*did you mean 'SAKURA_"),
        (lambda: Platform["DNAF200L0009"], "did you mean 'DNAF200L000"),
        (lambda: Platform("DNAF200L0009"), "did you mean 'DNAF200L000"),
    ],
)
def test_unknown_names(ask: Callable[[], object], match: str) -> None:
    with pytest.raises(mera.ConfigError, match=match):
        ask()


@pytest.mark.parametrize("target", ["VerilatorSimulator", "InterpreterBf16", "InterpreterHwBf16", "SimulatorBf16"])
def test_targets_that_do_not_exist_yet(target: str, tmp_path: Path) -> None:
    model = mera.ModelLoader().from_tflite(face.TFLITE / "int8.tflite")
    with pytest.raises(mera.UnsupportedError, match=f"target {target} does not exist yet"):
        mera.Deployer(tmp_path / "d").deploy(model, target=target)


# ---- the real networks ----


@pytest.mark.slow
def test_resnet50_of_torchvision(tmp_path: Path) -> None:
    from models import set_batchnorm_statistics, torchvision_models

    if find_spec("torchvision") is None:
        pytest.skip("torchvision, which defines the network, is not installed")
    torch.manual_seed(123)
    model = torchvision_models().quantization.resnet50(weights=None, quantize=False)
    x = face.picture(size=224)
    set_batchnorm_statistics(model, torch.cat([x, face.picture(seed=1, size=224)]))
    face.quantize_model(model.eval(), x)
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(model, x).eval(), str(tmp_path / "resnet50.pt"))
    results = {}
    with mera.TVMDeployer(tmp_path / "d", overwrite=True) as deployer:
        loaded = mera.ModelLoader(deployer).from_pytorch(
            str(tmp_path / "resnet50.pt"), {"input0": ((1, 224, 224, 3), "float32")}
        )
        for target in (Target.Interpreter, Target.InterpreterHw, Target.Simulator):
            runner = deployer.deploy(loaded, Platform.DNAF200L0003, target=target).get_runner()
            results[target] = runner.set_input(nhwc(x)).run().get_output()
    assert np.array_equal(results[Target.InterpreterHw], results[Target.Simulator])
    assert int(results[Target.Simulator].argmax()) == int(results[Target.Interpreter].argmax())


@pytest.mark.slow
@pytest.mark.network
def test_efficientnet_lite(tmp_path: Path, zoo_artifact: Callable[[str], None]) -> None:
    from test_tflite_compare import LITE0

    from mera_torch import zoo

    zoo_artifact("efficientnet_lite0_int8")
    (tmp_path / "lite0.tflite").write_bytes(zoo.read("efficientnet_lite0_int8", LITE0))
    with mera.TVMDeployer(tmp_path / "d", overwrite=True) as deployer:
        model = mera.ModelLoader(deployer).from_tflite(tmp_path / "lite0.tflite")
        image = np.random.default_rng(0).integers(0, 256, model.get_input_shape()).astype(np.uint8)
        for target in (Target.InterpreterHw, Target.Simulator):
            deployer.deploy(model, Platform.DNAF200L0003, target=target)
    found = [
        mera.load_mera_deployment(tmp_path / "d", target).get_runner().set_input(image).run().get_output()
        for target in ("InterpreterHw", "Simulator")
    ]
    assert np.array_equal(*found)
