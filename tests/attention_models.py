"""Small transformers for tests of SmoothQuant, and a BERT encoder that takes published weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Self-attention of [N, S, C] by four linears."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        n, s, c = x.shape
        q, k, v = (f(x).view(n, s, self.heads, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v, mask)
        return self.out(y.transpose(1, 2).reshape(n, s, c))


class PreNormBlock(nn.Module):
    """As in ViT and GPT: norm, attention, add; norm, two linears, add."""

    def __init__(self, width: int, heads: int, activation: type[nn.Module], norm: type[nn.Module]) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(width)
        self.attention = Attention(width, heads)
        self.wide, self.activation, self.narrow = nn.Linear(width, 4 * width), activation(), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.narrow(self.activation(self.wide(self.norm2(x))))


class Encoder(nn.Module):
    """Blocks with pre-norm on [N, S, C], then a mean and a classifier."""

    def __init__(
        self, width: int = 48, heads: int = 4, depth: int = 2, activation: type[nn.Module] = nn.GELU,
        norm: type[nn.Module] = nn.LayerNorm,
    ) -> None:  # fmt: skip
        super().__init__()
        self.blocks = nn.Sequential(*(PreNormBlock(width, heads, activation, norm) for _ in range(depth)))
        self.norm, self.head = norm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(x)).mean(1))

    def with_outliers(self, factor: float = 60.0, channels: tuple[int, ...] = (3, 17, 40)) -> Encoder:
        """Lets a few channels of each norm's result be `factor` times as large, as in large language models; the
        linears behind it make up for that, so that the function stays."""
        with torch.no_grad():
            for block in self.blocks:
                attention = block.attention
                readers = [
                    (block.norm1, [attention.query, attention.key, attention.value]),
                    (block.norm2, [block.wide]),
                ]
                for norm, linears in readers:
                    for parameter in norm.parameters():
                        parameter[list(channels)] *= factor
                    for linear in linears:
                        linear.weight[:, list(channels)] /= factor
        return self


class BertLayer(nn.Module):
    """Post-norm: the norm's result is read by linears and by the next sum."""

    def __init__(self, width: int, heads: int, wide: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-12), nn.LayerNorm(width, eps=1e-12)
        self.wide, self.narrow = nn.Linear(width, wide), nn.Linear(wide, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.narrow(F.gelu(self.wide(x))))


class BertEncoder(nn.Module):
    """BERT behind its embeddings: [N, S, C] -> the mean over S, of length 1 (a sentence's embedding)."""

    def __init__(self, width: int = 384, heads: int = 12, depth: int = 6, wide: int = 1536) -> None:
        super().__init__()
        self.layers = nn.ModuleList(BertLayer(width, heads, wide) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return F.normalize(x.mean(1), dim=-1)


NAMES = {
    "attention.self.query": "attention.query", "attention.self.key": "attention.key",
    "attention.self.value": "attention.value", "attention.output.dense": "attention.out",
    "attention.output.LayerNorm": "norm1", "intermediate.dense": "wide", "output.dense": "narrow",
    "output.LayerNorm": "norm2",
}  # fmt: skip


def load_bert(weights: dict[str, Tensor]) -> tuple[BertEncoder, nn.Module]:
    """(encoder, embeddings: token ids [N, S] -> [N, S, C]) of a BERT in Hugging Face's names."""
    model, state = BertEncoder(), {}
    for name, tensor in weights.items():
        if name.startswith("encoder.layer."):
            _, _, index, rest = name.split(".", 3)
            path, kind = rest.rsplit(".", 1)
            state[f"layers.{index}.{NAMES[path]}.{kind}"] = tensor
    model.load_state_dict(state)
    return model.eval(), Embeddings({k[11:]: v for k, v in weights.items() if k.startswith("embeddings.")}).eval()


class Embeddings(nn.Module):
    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.words, self.places, self.kinds = (
            nn.Parameter(weights[f"{name}_embeddings.weight"], requires_grad=False)
            for name in ("word", "position", "token_type")
        )
        self.norm = nn.LayerNorm(self.words.shape[1], eps=1e-12)
        self.norm.load_state_dict({k: weights[f"LayerNorm.{k}"] for k in ("weight", "bias")})

    def forward(self, ids: Tensor) -> Tensor:
        return self.norm(self.words[ids] + self.places[: ids.shape[1]] + self.kinds[0])


def word_pieces(text: str, vocabulary: dict[str, int], length: int) -> list[int]:
    """BERT's token ids of lower-case English without punctuation, cut to `length`."""
    ids = []
    for word in text.lower().split():
        begin = 0
        while begin < len(word):
            end = next(
                e for e in range(len(word), begin, -1) if ("##" if begin else "") + word[begin:e] in vocabulary
            )  # fmt: skip
            ids.append(vocabulary[("##" if begin else "") + word[begin:end]])
            begin = end
    return [vocabulary["[CLS]"], *ids[: length - 2], vocabulary["[SEP]"]]
