"""The families of operators; importing them fills the registry."""

from __future__ import annotations

from . import (
    activation,
    casts,
    constants,
    control,
    conv,
    deformable,
    elementwise,
    gemm,
    indexing,
    logic,
    normalization,
    pool,
    qlinear,
    quantization,
    recurrent,
    reduce,
    refused,
    resize,
    sequences,
    shapes,
    signals,
    spatial,
)

FAMILIES = (
    activation, casts, constants, control, conv, deformable, elementwise, gemm, indexing, logic, normalization, pool,
    qlinear, quantization, recurrent, reduce, refused, resize, sequences, shapes, signals, spatial,
)  # fmt: skip
