"""The aten operators that the DNA computes in int8, by how they are quantized. The table of :class:`MeraQuantizer`."""

from __future__ import annotations

from typing import Any

import torch

aten: Any = torch.ops.aten

CONV = frozenset({aten.conv2d.default, aten.conv2d.padding, aten.convolution.default})
LINEAR = frozenset({aten.linear.default})
BATCH_NORM = frozenset({aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default})

# Fused into the operator before them: a clamp of its int8 result.
CLAMP = frozenset({
    aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default,
    aten.clamp_max.default,
})  # fmt: skip

# Functions of one value: a table of 256 entries on the DNA. The output has its own scale.
UNARY = CLAMP | {
    aten.hardswish.default, aten.hardsigmoid.default, aten.sigmoid.default, aten.silu.default, aten.tanh.default,
    aten.gelu.default, aten.leaky_relu.default, aten.elu.default, aten.mish.default, aten.softplus.default,
    aten.neg.default, aten.abs.default, aten.rsub.Scalar, aten.add.Scalar, aten.sub.Scalar, aten.mul.Scalar,
    aten.div.Scalar,
}  # fmt: skip

# Two tensors, or a tensor and a number (then unary); the output has its own scale. Not division by a tensor.
BINARY = frozenset({aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor})
SCALAR_BINARY = BINARY | {aten.div.Tensor}

# (scale, zero point) of functions whose range is known: 0, 1 and -1 are exact.
FIXED_QPARAMS = {
    aten.sigmoid.default: (1.0 / 255.0, -128),
    aten.hardsigmoid.default: (1.0 / 255.0, -128),
    aten.tanh.default: (1.0 / 127.0, 0),
}

MAX_POOL = frozenset({aten.max_pool2d.default})
AVG_POOL = frozenset({aten.avg_pool2d.default})
ADAPTIVE_AVG_POOL = frozenset({aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default})
MEAN = frozenset({aten.mean.dim})
CAT = frozenset({aten.cat.default})
PAD = frozenset({aten.pad.default, aten.constant_pad_nd.default})

# Values move but do not change: the output has the input's quantization.
MOVE = frozenset({
    aten.slice.Tensor, aten.select.int, aten.reshape.default, aten.view.default, aten._unsafe_view.default,
    aten.flatten.using_ints, aten.unflatten.int, aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default,
    aten.unsqueeze.default, aten.permute.default, aten.transpose.int, aten.t.default, aten.contiguous.default,
    aten.clone.default, aten.alias.default, aten.detach.default, aten.dropout.default, aten.feature_dropout.default,
    aten.pixel_shuffle.default, aten.pixel_unshuffle.default, aten.channel_shuffle.default, aten.upsample_nearest2d.vec,
    aten.upsample_nearest2d.default,
})  # fmt: skip

# In-place operators and what they compute; `canonicalize` rewrites the former to the latter.
FUNCTIONAL = {
    aten.relu_.default: aten.relu.default,
    aten.relu6_.default: aten.relu6.default,
    aten.hardtanh_.default: aten.hardtanh.default,
    aten.clamp_.default: aten.clamp.default,
    aten.clamp_min_.default: aten.clamp_min.default,
    aten.clamp_max_.default: aten.clamp_max.default,
    aten.hardswish_.default: aten.hardswish.default,
    aten.hardsigmoid_.default: aten.hardsigmoid.default,
    aten.sigmoid_.default: aten.sigmoid.default,
    aten.silu_.default: aten.silu.default,
    aten.tanh_.default: aten.tanh.default,
    aten.leaky_relu_.default: aten.leaky_relu.default,
    aten.elu_.default: aten.elu.default,
    aten.mish_.default: aten.mish.default,
    aten.gelu_.default: aten.gelu.default,
    aten.neg_.default: aten.neg.default,
    aten.abs_.default: aten.abs.default,
    aten.add_.Tensor: aten.add.Tensor,
    aten.sub_.Tensor: aten.sub.Tensor,
    aten.mul_.Tensor: aten.mul.Tensor,
    aten.div_.Tensor: aten.div.Tensor,
    aten.add_.Scalar: aten.add.Scalar,
    aten.sub_.Scalar: aten.sub.Scalar,
    aten.mul_.Scalar: aten.mul.Scalar,
    aten.div_.Scalar: aten.div.Scalar,
    aten.dropout_.default: aten.dropout.default,
    aten.feature_dropout_.default: aten.feature_dropout.default,
    aten.squeeze_.dim: aten.squeeze.dim,
    aten.unsqueeze_.default: aten.unsqueeze.default,
}

# Their result is (or may be) the very memory of their input, which matters where a value is changed in place.
VIEWS = MOVE | {
    aten.expand.default,
    aten.split.Tensor,
    aten.split.sizes,
    aten.chunk.default,
    aten.unbind.int,
    aten.detach.default,
}
