"""Image tower: a small residual CNN on 1x28x28 digits as they are."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

# Mean and standard deviation of the training pixels after division by 255. They live with the encoder,
# so that no caller can train with one normalisation and predict with another.
PIXEL_MEAN, PIXEL_STD = 0.1307, 0.3081


class ResidualBlock(nn.Module):
    """3x3 convolutions, two by default, around a skip connection (He et al., 2016, arXiv 1512.03385)."""

    def __init__(self, channels: int, convs: int = 2):
        super().__init__()
        layers = []
        for _ in range(convs):
            layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        self.branch = nn.Sequential(*layers[:-1])  # the last ReLU comes after the sum

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.branch(x))


class ImageEncoder(nn.Module):
    """Float images [B, 1, 28, 28] in [0, 1] -> features [B, embed_dim], not normalised.

    Each stage halves the resolution; the first has `width` channels, each later one twice as many as the one before.
    A stage ends in its number of residual `blocks`, of `block_convs` convolutions. `margin` border pixels are cut off
    on each side: MNIST's ink lies in the middle. `stem_pool` halves the first stage's map once more, by max pooling, as
    ResNet's stem does (same source), but before the norm, which then has a quarter of the work. `pool` is what the last
    map becomes: its "mean" or, with "flatten", all of it.
    """

    def __init__(
        self,
        embed_dim: int,
        width: int,
        blocks: Sequence[int] = (1, 1, 1),
        block_convs: int = 2,
        margin: int = 0,
        pool: str = "mean",
        stem_pool: bool = False,
    ):
        super().__init__()
        self.margin, self.pool = margin, pool
        layers, channels, side = [], 1, 28 - 2 * margin
        for stage, count in enumerate(blocks):
            out, kernel = width * 2**stage, 5 if stage == 0 else 3
            side = (side + 1) // 2
            layers.append(nn.Conv2d(channels, out, kernel, stride=2, padding=kernel // 2, bias=False))
            if stem_pool and stage == 0:
                layers.append(nn.MaxPool2d(2))
                side //= 2
            layers += [
                nn.BatchNorm2d(out),
                nn.ReLU(),
                *(ResidualBlock(out, block_convs) for _ in range(count)),
            ]
            channels = out
        self.stages = nn.Sequential(*layers)
        self.projection = nn.Linear(channels * (side**2 if pool == "flatten" else 1), embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        x = images[:, :, self.margin : 28 - self.margin, self.margin : 28 - self.margin]
        x = self.stages((x - PIXEL_MEAN) / PIXEL_STD)  # [B, 4 * width, 4, 4] without margin, by way of 14x14 and 7x7
        # Channels last, as the map lies in memory: its gradient then comes back in that order too.
        x = x.permute(0, 2, 3, 1).flatten(1) if self.pool == "flatten" else x.mean(dim=(2, 3))
        return self.projection(x)  # [B, embed_dim]
