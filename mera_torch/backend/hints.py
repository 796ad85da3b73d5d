"""What to do about an operator that runs on the host, where that is known: patterns of what explain() found."""

from __future__ import annotations

import re

HINTS: list[tuple[str, str]] = [
    (
        r"float result must be used once",
        "several operators read its float result, as with a relu behind a tensor with two consumers: quantize the "
        "result itself, before they read it",
    ),
    (
        r"not quantized: the model computes in float",
        "quantize the model: mera_torch.quantize(model, example_inputs, calibration_data)",
    ),
    (
        r"softmax",
        "a softmax at the end of a classifier changes no ranking: leave it out, or let the host compute it; in the "
        "middle, quantize its input and its result",
    ),
    (
        r"must be quantized per output channel",
        "quantize the weight with one scale for each output channel, or with a single one",
    ),
    (
        r"must be a? ?constants?.*, got a constant in float",
        "quantize the weights, too: int8, one scale for each output channel",
    ),
    (
        r"(weight|slopes|bias|statistics) must be",
        "the DNA holds weights as constants: export the model with its parameters frozen",
    ),
    (
        r"(matmul|bmm|einsum|scaled_dot_product_attention)\S*: .*has no DNA operator",
        "a product of two activations stays on the host; by a constant, quantized weight it is a linear of the DNA",
    ),
    (
        r"is \w+: a host operator or no quantize stands before it",
        "a float island: quantize what stands before it, or keep its neighbours in float, too, so that there are fewer "
        "ways to the host and back",
    ),
    (
        r"no quantize follows it",
        "quantize its result: it runs on the DNA if an int8 tensor comes out, even as the model's last operator",
    ),
    (
        r"it is an input or a constant in float",
        "a quantize right behind an input runs at the border, and costs nothing more",
    ),
    (
        r"must be static|dynamic",
        "give it fixed shapes: export without dynamic_shapes; for ONNX pass shape_mapping",
    ),
    (r"got torch\.(int16|uint16|int32)", "the DNA computes in int8: quantize activations to 8 bits"),
    (r"one quantization for input and output", "give the pooling's result the scale and zero point of its input"),
    (
        r"one operand must have the result's shape",
        "broadcast one operand beforehand (expand)",
    ),
    (r"alpha must be 1", "multiply the second operand by alpha beforehand"),
    (
        r"must be values that .* has, for no quantize follows",
        "quantize the clamp's result, or use bounds that its input's scale can express",
    ),
    (r"at most 4 dimensions may be larger than 1", "merge dimensions (reshape) so that four remain"),
    (
        r"it only moves data, and stands beside no DNA operator|only rearranges an input",
        "nothing: it is cheaper on the host",
    ),
]
"""Regular expression on "operator: reason" -> what to do; the first that is found counts."""


def hint_for(op: str, reason: str) -> str:
    """What to do about an operator on the host, or ""."""
    return next((hint for pattern, hint in HINTS if re.search(pattern, f"{op}: {reason}")), "")
