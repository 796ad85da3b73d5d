"""Networks with one operator that int8 ruins, for the tests of mixed precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Outliers(nn.Module):
    """The weights of `bad` have a few entries 300 times as great as the rest, which carry the signal."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.bad = nn.Conv2d(9, 8, 3, padding=1, bias=False)
        self.third = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 6)
        with torch.no_grad():
            self.bad.weight[:, 8] = 30.0

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        y = F.pad(y, (0, 0, 0, 0, 0, 1))  # the ninth channel, which the great weights read, is zero
        y = F.relu(self.third(F.relu(self.bad(y))))
        return self.head(y.mean((2, 3)))


class Power(nn.Module):
    """The eighth power of an activation, whose greatest values dwarf the ones that the result depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x)) + 0.1
        y = y * y
        y = y * y
        y = y * y
        y = F.relu(self.second(y / (1.0 + y)))
        return self.head(y.mean((2, 3)))


class Joined(nn.Module):
    """Boxes and scores of unlike scales in one concat, as detection heads have it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, padding=1)
        self.boxes = nn.Conv2d(8, 4, 1)
        self.scores = nn.Conv2d(8, 3, 1)
        self.last = nn.Conv2d(7, 7, 1, groups=7, bias=False)
        with torch.no_grad():
            self.boxes.weight.mul_(400)
            self.last.weight.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.body(x))
        return self.last(torch.cat([self.boxes(y), torch.sigmoid(self.scores(y))], 1))


def batches(count: int = 4, seed: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 3, 10, 12, generator=generator) for _ in range(count)]


def seeded(make: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()
