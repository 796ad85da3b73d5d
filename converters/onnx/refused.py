"""Operators that are known but not converted, and why."""

from __future__ import annotations

from ..graph import Value
from ..registry import converts
from .context import OnnxBuilder, OnnxNode

_STRINGS = "it works on strings; only numbers are supported"
_RANDOM = "its result is random; a compiled network gives the same result for the same input"
_TRAINING = "it is for training; only inference is supported"
_ML = "operators of classical machine learning are not supported"
_BOXES = "the shape of its result depends on data; keep it out of the model and run it on the results"

REASONS = {
    "StringConcat": _STRINGS,
    "StringNormalizer": _STRINGS,
    "StringSplit": _STRINGS,
    "RegexFullMatch": _STRINGS,
    "TfIdfVectorizer": "it counts words; only networks are supported",
    "RandomNormal": _RANDOM,
    "RandomNormalLike": _RANDOM,
    "RandomUniform": _RANDOM,
    "RandomUniformLike": _RANDOM,
    "Multinomial": _RANDOM,
    "Bernoulli": _RANDOM,
    "NonMaxSuppression": _BOXES,
    "ImageDecoder": "it reads image files; decode images before they enter the network",
    "MaxRoiPool": "the bounds of its bins depend on data",
    "ai.onnx.preview.training.Adagrad": _TRAINING,
    "ai.onnx.preview.training.Adam": _TRAINING,
    "ai.onnx.preview.training.Gradient": _TRAINING,
    "ai.onnx.preview.training.Momentum": _TRAINING,
    **{
        f"ai.onnx.ml.{op}": _ML
        for op in (
            "ArrayFeatureExtractor", "Binarizer", "CastMap", "CategoryMapper", "DictVectorizer", "FeatureVectorizer",
            "Imputer", "LabelEncoder", "LinearClassifier", "LinearRegressor", "Normalizer", "OneHotEncoder",
            "SVMClassifier", "SVMRegressor", "Scaler", "TreeEnsemble", "TreeEnsembleClassifier",
            "TreeEnsembleRegressor", "ZipMap",
        )
    },
}  # fmt: skip


@converts("onnx", *REASONS)
def refuse(g: OnnxBuilder, node: OnnxNode) -> Value:
    raise g.unsupported(REASONS[f"{node.domain}.{node.op}" if node.domain else node.op])
