"""Small detection networks with the heads of well-known families, for tests of what quantization does to them."""

from __future__ import annotations

import torch
from models import conv_bn, set_batchnorm_statistics
from torch import Tensor, nn

SIZE = 64


class Backbone(nn.Module):
    """Image [N, 3, 64, 64] -> features of strides 8 and 16."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv_bn(3, channels // 2, stride=2), conv_bn(channels // 2, channels, stride=2), conv_bn(channels, channels)
        )
        self.first = conv_bn(channels, channels, stride=2)
        self.second = conv_bn(channels, channels, stride=2)

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.first(self.stem(x))
        return [first, self.second(first)]


def grid(size: int) -> Tensor:
    """[1, size * size, 2]: x and y of each cell."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.stack([x, y], -1).float().view(1, -1, 2)


class YoloV5(nn.Module):
    """Anchors; boxes (x, y, w, h in pixels) and scores of each level in one concat, then one over the levels. Each row
    of the result [N, rows, 5 + classes] is x, y, w, h, objectness, classes."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.outputs, self.strides = 5 + classes, (8, 16)
        self.heads = nn.ModuleList(nn.Conv2d(16, 3 * self.outputs, 1) for _ in self.strides)
        anchors = torch.tensor([[[10, 13], [16, 30], [33, 23]], [[30, 61], [62, 45], [59, 60]]]).float()
        for level, stride in enumerate(self.strides):
            size = SIZE // stride
            self.register_buffer(f"grid{level}", grid(size).view(1, 1, size, size, 2) - 0.5)
            self.register_buffer(f"anchor{level}", anchors[level].view(1, 3, 1, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for level, (head, feature) in enumerate(zip(self.heads, self.backbone(x), strict=True)):
            y = head(feature)
            n, _, h, w = y.shape
            y = y.view(n, 3, self.outputs, h, w).permute(0, 1, 3, 4, 2).sigmoid()
            xy = (y[..., 0:2] * 2 + getattr(self, f"grid{level}")) * self.strides[level]
            wh = (y[..., 2:4] * 2) ** 2 * getattr(self, f"anchor{level}")
            found.append(torch.cat([xy, wh, y[..., 4:]], -1).view(n, -1, self.outputs))
        return torch.cat(found, 1)


class YoloV8(nn.Module):
    """Anchor-free: distributions over distances, decoded to boxes in pixels, joined with scores: [N, 4 + classes,
    rows]."""

    def __init__(self, classes: int = 3, bins: int = 8) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.classes, self.bins, self.strides = classes, bins, (8, 16)
        self.boxes = nn.ModuleList(nn.Sequential(conv_bn(16, 16), nn.Conv2d(16, 4 * bins, 1)) for _ in self.strides)
        self.scores = nn.ModuleList(nn.Sequential(conv_bn(16, 16), nn.Conv2d(16, classes, 1)) for _ in self.strides)
        self.expectation = nn.Conv2d(bins, 1, 1, bias=False)
        with torch.no_grad():
            self.expectation.weight.copy_(torch.arange(bins).float().view(1, bins, 1, 1))
        cells = [(SIZE // stride) ** 2 for stride in self.strides]
        centres = torch.cat([grid(SIZE // stride) + 0.5 for stride in self.strides], 1).transpose(1, 2)
        self.register_buffer("centres", centres.contiguous())
        self.register_buffer(
            "scale", torch.cat([torch.full((n,), float(s)) for n, s in zip(cells, self.strides, strict=True)])[None]
        )

    def forward(self, x: Tensor) -> Tensor:
        levels = [
            torch.cat([box(feature), score(feature)], 1).flatten(2)
            for box, score, feature in zip(self.boxes, self.scores, self.backbone(x), strict=True)
        ]
        distances, scores = torch.cat(levels, 2).split([4 * self.bins, self.classes], 1)
        n, _, rows = distances.shape
        p = distances.view(n, 4, self.bins, rows).transpose(2, 1).softmax(1)
        low, high = self.expectation(p).view(n, 4, rows).chunk(2, 1)
        low, high = self.centres - low, self.centres + high
        boxes = torch.cat([(low + high) / 2, high - low], 1) * self.scale
        return torch.cat([boxes, scores.sigmoid()], 1)


class Ssd(nn.Module):
    """Box offsets and class probabilities of both levels, each kind joined over the levels; with `joined`, then both
    in one tensor [N, rows, 4 + classes], boxes in pixels."""

    def __init__(self, classes: int = 4, joined: bool = True) -> None:
        super().__init__()
        self.backbone, self.classes, self.joined = Backbone(), classes, joined
        self.boxes = nn.ModuleList(nn.Conv2d(16, 2 * 4, 3, padding=1) for _ in range(2))
        self.scores = nn.ModuleList(nn.Conv2d(16, 2 * classes, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features = self.backbone(x)
        boxes = [self._rows(head(f), 4) for head, f in zip(self.boxes, features, strict=True)]
        scores = [self._rows(head(f), self.classes) for head, f in zip(self.scores, features, strict=True)]
        located, rated = torch.cat(boxes, 1), torch.sigmoid(torch.cat(scores, 1))
        return torch.cat([located * float(SIZE), rated], 2) if self.joined else (located, rated)

    @staticmethod
    def _rows(y: Tensor, columns: int) -> Tensor:
        return y.permute(0, 2, 3, 1).reshape(y.shape[0], -1, columns)


DETECTORS: dict[str, type[nn.Module]] = {"yolov5": YoloV5, "yolov8": YoloV8, "ssd": Ssd}


def detector(name: str, prior: float = -4.0) -> tuple[nn.Module, list[Tensor]]:
    """A detector of DETECTORS whose scores are as low as those of real ones mostly are (of biases `prior`), with eight
    images that its batch norms know."""
    torch.manual_seed(0)
    model = DETECTORS[name]()
    images = [torch.randn(1, 3, SIZE, SIZE) for _ in range(8)]
    set_batchnorm_statistics(model, torch.cat(images))
    with torch.no_grad():
        for head in model.heads if isinstance(model, YoloV5) else model.scores:
            last = head if isinstance(head, nn.Conv2d) else head[-1]
            rows = slice(None)
            if isinstance(model, YoloV5):
                rows = [i for i in range(len(last.bias)) if i % model.outputs >= 4]
            last.bias[rows] += prior
            last.weight[rows] *= 2
    return model.eval(), images


def scores_of(name: str, output: Tensor) -> Tensor:
    """The scores in the output of a detector of DETECTORS."""
    return {"yolov5": output[..., 4:], "yolov8": output[:, 4:], "ssd": output[..., 4:]}[name]


def boxes_of(name: str, output: Tensor) -> Tensor:
    """The boxes, likewise."""
    return {"yolov5": output[..., :4], "yolov8": output[:, :4], "ssd": output[..., :4]}[name]
