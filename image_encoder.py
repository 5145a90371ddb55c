"""Image tower: a small residual CNN on 1x28x28 digits as they are."""

import torch.nn.functional as F
from torch import Tensor, nn

# Mean and standard deviation of the training pixels after division by 255. They live with the encoder,
# so that no caller can train with one normalisation and predict with another.
PIXEL_MEAN, PIXEL_STD = 0.1307, 0.3081


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a skip connection (He et al., 2016, arXiv 1512.03385)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(y)))


class ImageEncoder(nn.Module):
    """Float images [B, 1, 28, 28] in [0, 1] -> features [B, embed_dim], not normalised.

    `width` is the number of channels of the first stage; the second has twice, the third four times that.
    """

    def __init__(self, embed_dim: int, width: int):
        super().__init__()
        stages, channels = [], 1
        for out, kernel in ((width, 5), (2 * width, 3), (4 * width, 3)):
            stages += [
                nn.Conv2d(channels, out, kernel, stride=2, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(),
                ResidualBlock(out),
            ]
            channels = out
        self.stages = nn.Sequential(*stages)
        self.projection = nn.Linear(channels, embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        x = (images - PIXEL_MEAN) / PIXEL_STD
        x = self.stages(x)  # [B, 4 * width, 4, 4], by way of 14x14 and 7x7
        return self.projection(x.mean(dim=(2, 3)))  # [B, embed_dim]
