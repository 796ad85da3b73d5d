"""Keras models, .keras and .h5 files and SavedModels, against Keras itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mera_torch
from mera_torch.converters import load_model
from mera_torch.errors import CorruptFileError, InvalidModelError

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed (the extra mera_torch[tensorflow])")
keras: Any = tf.keras

IMAGE = torch.rand(1, 24, 20, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def network() -> Any:
    keras.utils.set_random_seed(1)
    layers = keras.layers
    x = inputs = keras.Input((24, 20, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="stem")(x)
    x = y = layers.ReLU(6)(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise")(x)
    x = layers.Add()([layers.Conv2D(8, 1, activation="hard_sigmoid")(x), y])
    x = layers.Concatenate()([layers.MaxPooling2D(2)(x), layers.AveragePooling2D(2)(x)])
    x = layers.Dense(7, name="head")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Softmax()(x), name="small")


def agrees(model: torch.nn.Module, network: Any) -> None:
    np.testing.assert_allclose(model(IMAGE).numpy(), network(IMAGE.numpy()).numpy(), atol=1e-4)


def test_a_model_in_memory(network: Any, tmp_path: Path) -> None:
    model = mera_torch.from_keras(network)
    (given,) = model.info.inputs
    assert model.info.format == "keras" and (given.shape, given.dtype, given.layout) == (
        (1, 24, 20, 3),
        torch.float32,
        "NHWC",
    )
    agrees(model, network)
    names = {path for node in model.graph.nodes for path, _ in (node.meta.get("nn_module_stack") or {}).values()}
    assert any("stem" in name for name in names) and any("depthwise" in name for name in names)
    quantized = mera_torch.quantize(model, (IMAGE,), [(IMAGE,)], progress=False)
    deployment = mera_torch.export(quantized, None, tmp_path / "deployment")
    assert len(deployment.regions) == 1
    torch.testing.assert_close(deployment.get_runner()(IMAGE), model(IMAGE), atol=0.05, rtol=0)


@pytest.mark.parametrize("name", ["small.keras", "small.h5", "saved_model"])
def test_files(name: str, network: Any, tmp_path: Path) -> None:
    path = tmp_path / name
    network.export(path, verbose=False) if name == "saved_model" else network.save(path)
    agrees(load_model(path), network)
    if path.is_file():
        agrees(load_model(path.read_bytes()), network)
    assert load_model(path, batch_num=3).info.inputs[0].shape == (3, 24, 20, 3)


def test_what_cannot_be_imported_is_told(network: Any, tmp_path: Path) -> None:
    any_size = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(2, 1)])
    with pytest.raises(InvalidModelError, match=r"dimension 1 of \[None, None, None, 3\] is unknown"):
        mera_torch.from_keras(any_size)
    with pytest.raises(InvalidModelError, match="is not built"):
        mera_torch.from_keras(keras.Sequential([keras.layers.Dense(2)]))
    with pytest.raises(InvalidModelError, match="must be a keras.Model or the path"):
        mera_torch.from_keras(3)
    pickled = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x + 1)])
    pickled.save(tmp_path / "lambda.keras")
    with pytest.raises(CorruptFileError, match="lambda.keras': Keras cannot load it.*unsafe|[Ll]ambda"):
        load_model(tmp_path / "lambda.keras")
    network.save(tmp_path / "whole.keras")
    network.save(tmp_path / "whole.h5")
    for name in ("whole.keras", "whole.h5"):
        data = (tmp_path / name).read_bytes()
        with pytest.raises(CorruptFileError):
            load_model(data[: len(data) // 2])
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"\x08\x01nonsense")
    with pytest.raises(CorruptFileError, match="TensorFlow cannot load it"):
        load_model(tmp_path / "saved")
