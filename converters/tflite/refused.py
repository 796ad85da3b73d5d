"""Operators that are known and have no conversion: each says why."""

from __future__ import annotations

from ..registry import converts
from .context import Op

CONTROL = "control flow and state between calls have no place in a graph of fixed shape; convert a model without them"
RECURRENT = "recurrent layers keep state; unroll them (in Keras: unroll=True) before converting"
DYNAMIC = "the shape of its result depends on data; the DNA needs fixed shapes"
SPARSE = "sparse weights are not supported; convert the model without sparsity"

REASONS = {
    **dict.fromkeys(
        ("IF", "WHILE", "CALL", "CALL_ONCE", "VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "HASHTABLE",
         "HASHTABLE_FIND", "HASHTABLE_IMPORT", "HASHTABLE_SIZE", "HASHTABLE_LOOKUP"), CONTROL
    ),
    **dict.fromkeys(
        ("LSTM", "RNN", "SVDF", "UNIDIRECTIONAL_SEQUENCE_LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN",
         "BIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_RNN"), RECURRENT
    ),
    **dict.fromkeys(("WHERE", "UNIQUE", "NON_MAX_SUPPRESSION_V4", "NON_MAX_SUPPRESSION_V5"), DYNAMIC),
    "DENSIFY": SPARSE,
    "DELEGATE": "the file holds a part compiled for another accelerator; import the model from before that",
}  # fmt: skip


@converts("tflite", *REASONS)
def refuse(op: Op) -> None:
    raise op.b.unsupported(REASONS[op.code])


@converts("tflite", "CUSTOM")
def custom(op: Op) -> None:
    raise op.b.unsupported(f"the custom operator {op.op.custom!r} is known to the one who made the file only")
