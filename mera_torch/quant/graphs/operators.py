"""The aten operators that the DNA computes in int8, by how they are quantized. The table of :class:`MeraQuantizer`."""

from __future__ import annotations

from typing import Any

import torch

from mera_torch import library  # noqa: F401  (registers its operators)

aten: Any = torch.ops.aten
LIBRARY: Any = torch.ops.mera_torch

CONV = frozenset({aten.conv2d.default, aten.conv2d.padding, aten.convolution.default})
CONV_1D = frozenset({aten.conv1d.default, aten.conv1d.padding})
CONV_TRANSPOSED = frozenset({aten.conv_transpose1d.default, aten.conv_transpose2d.input})
LINEAR = frozenset({aten.linear.default})
PRODUCTS = frozenset({aten.mm.default, aten.matmul.default, aten.addmm.default})
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
ARITHMETIC = SCALAR_BINARY | {
    aten.neg.default, aten.rsub.Scalar, aten.add.Scalar, aten.sub.Scalar, aten.mul.Scalar, aten.div.Scalar,
}  # fmt: skip
TAKES_CLAMP = CONV | CONV_1D | CONV_TRANSPOSED | LINEAR | BINARY | {aten.batch_norm.default}

# (scale, zero point) of functions whose range is known: 0, 1 and -1 are exact.
FIXED_QPARAMS = {
    aten.sigmoid.default: (1.0 / 255.0, -128),
    aten.hardsigmoid.default: (1.0 / 255.0, -128),
    aten.tanh.default: (1.0 / 127.0, 0),
    aten.softmax.int: (1.0 / 256.0, -128),
    aten._softmax.default: (1.0 / 256.0, -128),
}

NEAREST = frozenset({
    aten.upsample_nearest1d.default, aten.upsample_nearest1d.vec, aten.upsample_nearest2d.default,
    aten.upsample_nearest2d.vec, aten._upsample_nearest_exact1d.default, aten._upsample_nearest_exact1d.vec,
    aten._upsample_nearest_exact2d.default, aten._upsample_nearest_exact2d.vec, LIBRARY.resize_nearest.default,
})  # fmt: skip
BILINEAR = frozenset({
    aten.upsample_linear1d.default, aten.upsample_linear1d.vec, aten.upsample_bilinear2d.default,
    aten.upsample_bilinear2d.vec, LIBRARY.resize_bilinear.default,
})  # fmt: skip
SOFTMAX = frozenset({aten.softmax.int, aten._softmax.default})
PRELU = frozenset({aten.prelu.default})
EXTREMA = frozenset({aten.maximum.default, aten.minimum.default})
MAX_POOL = frozenset({aten.max_pool2d.default})
MAX_POOL_1D_3D = frozenset({aten.max_pool1d.default, aten.max_pool3d.default})
AVG_POOL_1D = frozenset({aten.avg_pool1d.default, aten.adaptive_avg_pool1d.default})
AVG_POOL = frozenset({aten.avg_pool2d.default})
ADAPTIVE_AVG_POOL = frozenset({aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default})
MEAN = frozenset({aten.mean.dim})
CAT = frozenset({aten.cat.default, aten.stack.default})
PAD = frozenset({aten.pad.default, aten.constant_pad_nd.default})

# Values move but do not change: the output has the input's quantization.
MOVE = frozenset({
    aten.slice.Tensor, aten.select.int, aten.reshape.default, aten.view.default, aten._unsafe_view.default,
    aten.flatten.using_ints, aten.unflatten.int, aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default,
    aten.unsqueeze.default, aten.permute.default, aten.transpose.int, aten.t.default, aten.contiguous.default,
    aten.clone.default, aten.alias.default, aten.detach.default, aten.dropout.default, aten.feature_dropout.default,
    aten.pixel_shuffle.default, aten.pixel_unshuffle.default, aten.channel_shuffle.default, aten.amax.default,
    aten.amin.default, aten.flip.default, aten.roll.default, aten.expand.default, aten.repeat.default,
    aten.tile.default, aten.repeat_interleave.self_int,
}) | NEAREST  # fmt: skip

# Likewise, if the indices are one constant vector.
PICK = frozenset({aten.index_select.default, aten.index.Tensor})

INT8 = frozenset().union(
    CONV, CONV_1D, CONV_TRANSPOSED, LINEAR, PRODUCTS, BATCH_NORM, UNARY, SCALAR_BINARY, BILINEAR, SOFTMAX, PRELU,
    EXTREMA, MAX_POOL, MAX_POOL_1D_3D, AVG_POOL, AVG_POOL_1D, ADAPTIVE_AVG_POOL, MEAN, CAT, PAD, MOVE, PICK,
)  # fmt: skip
"""All that can be computed in int8; products by a constant only."""

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

SPLITS = frozenset({
    aten.split.Tensor, aten.split.sizes, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int,
})  # fmt: skip

# Their result may be the very memory of their input though their schema does not say so (as views' schemas do), which
# matters where a value is changed in place.
SILENT_VIEWS = frozenset({
    aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default, aten.feature_alpha_dropout.default,
    aten.unsafe_chunk.default, aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default,
    aten._unsafe_view.default, aten.type_as.default, aten.einsum.default, aten.broadcast_tensors.default,
    aten.meshgrid.default, aten.meshgrid.indexing, aten.atleast_1d.default, aten.atleast_2d.default,
    aten.atleast_3d.default, aten.pixel_shuffle.default, aten.pixel_unshuffle.default, aten.channel_shuffle.default,
})  # fmt: skip
