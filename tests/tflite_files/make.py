"""Makes the .tflite files of this folder with TensorFlow's own converter: python make.py. Needs TensorFlow 2.21."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2 as freeze

FOLDER = Path(__file__).parent
SHAPE = (1, 8, 8, 3)


def network() -> Any:
    """A little of everything that convolutional networks have."""
    layers = tf.keras.layers
    x = image = layers.Input(SHAPE[1:], batch_size=1)
    x = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu6")(x)
    y = layers.Activation("swish")(layers.DepthwiseConv2D(3, padding="same")(x))
    x = layers.Add()([x, y])
    x = layers.Concatenate()([x, layers.MaxPool2D(3, 1, padding="same")(x)])
    x = layers.Conv2DTranspose(3, 2, strides=2)(x)
    x = layers.UpSampling2D(2, interpolation="bilinear")(layers.ZeroPadding2D(1)(x))
    x = layers.Dense(5, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    return tf.keras.Model(image, x)


def samples() -> Iterator[list[Any]]:
    rng = np.random.default_rng(0)
    for _ in range(8):
        yield [rng.normal(size=SHAPE).astype(np.float32)]


def convert(model: Any, **options: Any) -> bytes:
    """options: attributes of the converter."""
    function = freeze(tf.function(lambda a: model(a)).get_concrete_function(tf.TensorSpec(SHAPE)))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
    for name, value in options.items():
        setattr(converter, name, value)
    found: bytes = converter.convert()
    return found


@tf.function(input_signature=[tf.TensorSpec((2, 6, 4))])  # type: ignore[untyped-decorator]
def shapes(a: Any) -> Any:
    """Shape arithmetic, and operators that move elements."""
    sizes = tf.shape(a)
    rows = tf.reshape(a, tf.stack([sizes[0] * sizes[1], -1]))
    some = tf.concat([tf.strided_slice(rows, [0, 1], [10, 4], [3, 1]), tf.gather(rows, [1, 5, 0])[:, :3]], 0)
    left, right = tf.split(tf.nn.softmax(tf.matmul(some, some, transpose_b=True)), [2, 5], 1)
    mirrored = tf.pad(tf.transpose(left), [[1, 0], [0, 2]], "REFLECT")
    return mirrored, tf.reduce_max(right, 1), tf.argmax(right, 1), tf.where(right > 0.5, right, tf.tanh(right) ** 2)


def main() -> None:
    tf.keras.utils.set_random_seed(3)
    model, sets = network(), tf.lite.OpsSet
    smaller = {"optimizations": [tf.lite.Optimize.DEFAULT]}
    calibrated = {**smaller, "representative_dataset": samples}
    int8 = tf.lite.TargetSpec(supported_ops=[sets.TFLITE_BUILTINS_INT8])
    int16 = tf.lite.TargetSpec(supported_ops=[sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8])
    border = {"inference_input_type": tf.uint8, "inference_output_type": tf.int8}
    files = {
        "float": convert(model),
        "float16": convert(model, **smaller, target_spec=tf.lite.TargetSpec(supported_types=[tf.float16])),
        "int8": convert(model, **calibrated, target_spec=int8, **border),
        "int8_float_border": convert(model, **calibrated),
        "int16": convert(model, **calibrated, target_spec=int16),
        "shapes": tf.lite.TFLiteConverter.from_concrete_functions([shapes.get_concrete_function()]).convert(),
    }
    for name, data in files.items():
        (FOLDER / f"{name}.tflite").write_bytes(data)


if __name__ == "__main__":
    main()
