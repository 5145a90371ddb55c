"""Image tower: small CNNs on digits of 28x28 pixels, scenes of 48x48, or own pictures, at the size they have."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

# Mean and standard deviation of the training pixels after division by 255. They live with the encoder,
# so that no caller can train with one normalisation and predict with another.
PIXEL_MEAN, PIXEL_STD = 0.1307, 0.3081


class ResidualBlock(nn.Module):
    """Convolutions of width 3 around a skip connection (He et al., 2016, arXiv 1512.03385)."""

    def __init__(self, channels: int, conv: type = nn.Conv2d, norm: type = nn.BatchNorm2d):
        super().__init__()
        layers = []
        for _ in range(2):
            layers += [conv(channels, channels, 3, padding=1, bias=False), norm(channels), nn.ReLU()]
        self.branch = nn.Sequential(*layers[:-1])  # the last ReLU comes after the sum

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.branch(x))


def downsample(channels: int, out: int, kernel: int = 3) -> list[nn.Module]:
    """A convolution of stride 2 with its norm."""
    conv = nn.Conv2d(channels, out, kernel, stride=2, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(out), nn.ReLU()]


class ImageEncoder(nn.Module):
    """Float images [B, channels, side, side] in [0, 1] -> features [B, embed_dim], not normalised.

    Three stages, each of half the resolution and twice the channels of the one before, with a residual block each;
    the first has `width` channels. The mean over the last map forgets where in the image something is.
    """

    def __init__(self, embed_dim: int, width: int, channels: int = 1, side: int = 28):
        super().__init__()
        self.stages = nn.Sequential(
            *downsample(channels, width, kernel=5),
            ResidualBlock(width),
            *downsample(width, 2 * width),
            ResidualBlock(2 * width),
            *downsample(2 * width, 4 * width),
            ResidualBlock(4 * width),
        )
        self.projection = nn.Linear(4 * width, embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stages((images - PIXEL_MEAN) / PIXEL_STD)  # [B, 4 * width, 4, 4], by way of 14x14 and 7x7
        return self.projection(x.mean(dim=(2, 3)))  # [B, embed_dim]


class SceneEncoder(ImageEncoder):
    """The same stages, then the whole map: it keeps places."""

    def __init__(self, embed_dim: int, width: int, channels: int = 1, side: int = 48):
        super().__init__(embed_dim, width, channels, side)
        self.projection = nn.Linear(4 * width * math.ceil(side / 8) ** 2, embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stages((images - PIXEL_MEAN) / PIXEL_STD)  # [B, 4 * width, side / 8, side / 8]
        return self.projection(x.flatten(1))  # [B, embed_dim]


class FastImageEncoder(nn.Module):
    """The same contract for seconds of training: one convolution, and one hidden layer on its whole map.

    Four border pixels on each side are cut off, because MNIST's ink lies in the middle. The map is pooled before its
    norm, which then has a quarter of the work. It reads nothing but 28x28 grey pixels.
    """

    def __init__(self, embed_dim: int, width: int, channels: int = 1, side: int = 28):
        super().__init__()
        hidden = 5 * width
        self.map = nn.Sequential(
            nn.Conv2d(1, width, 6, stride=2, bias=False),  # [B, width, 8, 8]
            nn.MaxPool2d(2),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.hidden = nn.Sequential(nn.Linear(width * 4 * 4, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU())
        self.projection = nn.Linear(hidden, embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        x = self.map((images[:, :, 4:24, 4:24] - PIXEL_MEAN) / PIXEL_STD)  # [B, width, 4, 4]
        # Channels last, as the map lies in memory: its gradient then comes back in that order too.
        x = self.hidden(x.permute(0, 2, 3, 1).flatten(1))  # [B, 5 * width]
        return self.projection(x)  # [B, embed_dim]


IMAGE_ENCODERS = {"residual": ImageEncoder, "fast": FastImageEncoder, "scene": SceneEncoder}
