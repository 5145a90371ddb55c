"""From a text to an image through the shared space (unCLIP, Ramesh et al., 2022, arXiv 2204.06125).

    text -> text vector -> [prior] -> image vector -> [decoder] -> latent -> [autoencoder] -> image

The text and image vectors are those of a trained CLIP, which stays as it is. A text vector and the vectors of the
images that it describes do not lie in one place (the modality gap), so a prior goes from one to the other. Prior and
decoder are flows: they learn the velocity at which noise becomes data along straight lines (flow matching, Lipman et
al., 2023, arXiv 2210.02747), and to draw is to follow it from noise. The decoder draws in the latent space of an
autoencoder (Rombach et al., 2022, arXiv 2112.10752), where a step costs little.

    generator = Generator.load("runs/generator/best_model.pth", clip)
    images = generator.draw(clip.encode_text(["a thick seven"] * 16))
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip import CLIP, load_checkpoint, save_checkpoint
from image_encoder import PIXEL_MEAN, PIXEL_STD, ResidualBlock, halve
from my_utils import InputError, short

FORMAT = "minist-clip-generator-1"  # raised when an older file can no longer be read
# All of these were chosen on validation. The autoencoder draws what it is unsure of in grey, which makes strokes 0.11
# pixels thicker; sharpening undoes that.
STEPS = 6  # of Heun's method, from noise to data
PRIOR_GUIDANCE, DECODER_GUIDANCE = 3.0, 1.5  # 1: none
SHARPEN, DARKEN = 1.5, 0.25  # on the logits of pixels
LATENT_NOISE = 0.1  # added to latents of unit variance while the autoencoder trains: it must bear the flow's errors


class Autoencoder(nn.Module):
    """Images [B, 1, 28, 28] in [0, 1] <-> latents [B, latent_dim], each number of mean 0 and variance 1 in training."""

    def __init__(self, latent_dim: int, width: int):
        super().__init__()
        self.encoder = nn.Sequential(
            *halve(1, width, kernel=5),
            *halve(width, 2 * width),
            ResidualBlock(2 * width),
            nn.Flatten(),  # [B, 2 * width * 7 * 7]
            nn.Linear(2 * width * 49, latent_dim),
            nn.BatchNorm1d(latent_dim, affine=False),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, 4 * width * 49),
            nn.Unflatten(1, (4 * width, 7, 7)),
            ResidualBlock(4 * width),
            nn.Conv2d(4 * width, 8 * width, 3, padding=1, bias=False),
            nn.PixelShuffle(2),  # [B, 2 * width, 14, 14]
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            ResidualBlock(2 * width),
            nn.Conv2d(2 * width, 4, 3, padding=1),
            nn.PixelShuffle(2),  # [B, 1, 28, 28]
        )

    def encode(self, images: Tensor) -> Tensor:
        return self.encoder((images - PIXEL_MEAN) / PIXEL_STD)

    def decode(self, latents: Tensor) -> Tensor:
        return (SHARPEN * (self.decoder(latents) - DARKEN)).sigmoid()

    def loss(self, images: Tensor) -> Tensor:
        """Cross-entropy of the pixels, summed over an image: nats, a scalar."""
        latents = self.encode(images)
        logits = self.decoder(latents + LATENT_NOISE * torch.randn_like(latents))
        return F.binary_cross_entropy_with_logits(logits, images, reduction="sum") / len(images)


class FlowBlock(nn.Module):
    """A residual MLP; the condition scales, shifts and gates it (adaLN-zero, Peebles & Xie, 2023, arXiv 2212.09748)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift, gate = self.modulation(condition).chunk(3, dim=-1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


class Flow(nn.Module):
    """Draws vectors [B, dim] that go with conditions [B, condition_dim], of about unit variance both.

    Between noise x0 and data x1 lies x_t = (1 - t) x0 + t x1, whose velocity is x1 - x0. The network learns its mean at
    (x_t, t, condition).
    """

    UNCONDITIONAL = 0.1  # share of the training pairs that learn without their condition (arXiv 2207.12598)
    FREQUENCIES = 16  # of the sines that tell the time

    def __init__(self, dim: int, condition_dim: int, width: int, blocks: int):
        super().__init__()
        self.dim = dim
        self.nothing = nn.Parameter(torch.zeros(condition_dim))  # stands for an absent condition
        self.time = nn.Sequential(nn.Linear(2 * self.FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.condition = nn.Sequential(nn.Linear(condition_dim, width), nn.SiLU(), nn.Linear(width, width))
        self.into, self.out = nn.Linear(dim, width), nn.Linear(width, dim)
        self.blocks = nn.ModuleList(FlowBlock(width) for _ in range(blocks))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Places [B, dim], times [B] in 0..1 and conditions [B, condition_dim] -> velocities [B, dim]."""
        frequencies = torch.arange(1, self.FREQUENCIES + 1, device=x.device) * math.pi / 2
        angles = t[:, None] * frequencies  # [B, FREQUENCIES]
        condition = F.silu(self.time(torch.cat([angles.sin(), angles.cos()], dim=1)) + self.condition(condition))
        h = self.into(x)  # [B, width]
        for block in self.blocks:
            h = block(h, condition)
        return self.out(F.layer_norm(h, h.shape[-1:]))

    def loss(self, data: Tensor, condition: Tensor) -> Tensor:
        """The mean squared error of the velocity at random times, a scalar."""
        noise = torch.randn_like(data)
        t = torch.randn(len(data), device=data.device).sigmoid()  # most of the work lies in the middle
        is_absent = torch.rand(len(data), 1, device=data.device) < self.UNCONDITIONAL
        x = torch.lerp(noise, data, t[:, None])
        velocity = self(x, t, torch.where(is_absent, self.nothing, condition))
        return F.mse_loss(velocity, data - noise)

    @torch.no_grad()
    def draw(self, condition: Tensor, noise: Tensor, guidance: float, steps: int) -> Tensor:
        """Conditions [B, condition_dim] and noise [B, dim] -> vectors [B, dim], by `steps` steps of Heun's method.

        Classifier-free guidance: the velocity is taken `guidance` times as far from the one without a condition.
        """
        x = noise
        nothing = self.nothing.expand_as(condition)

        def velocity(x: Tensor, t: float) -> Tensor:
            if guidance == 1:
                return self(x, torch.full((len(x),), t, device=x.device), condition)
            both = self(x.repeat(2, 1), torch.full((2 * len(x),), t, device=x.device), torch.cat([condition, nothing]))
            with_it, without = both.chunk(2)
            return without + guidance * (with_it - without)

        for step in range(steps):
            t, size = step / steps, 1 / steps
            first = velocity(x, t)
            second = velocity(x + size * first, t + size)
            x = x + size / 2 * (first + second)
        return x


class Generator(nn.Module):
    """Prior, decoder and autoencoder, for the CLIP whose `fingerprint` is given and whose vectors have `embed_dim`."""

    def __init__(
        self,
        embed_dim: int,
        fingerprint: str,
        latent_dim: int = 48,
        autoencoder_width: int = 12,
        decoder_width: int = 384,
        decoder_blocks: int = 5,
        prior_width: int = 256,
        prior_blocks: int = 3,
    ):
        super().__init__()
        self.arch = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self.config: dict = {}  # how it was trained
        self.metrics: dict = {}  # what it reached
        self.scale = math.sqrt(embed_dim)  # unit vectors times this have components of about unit variance
        self.autoencoder = Autoencoder(latent_dim, autoencoder_width)
        self.decoder = Flow(latent_dim, embed_dim, decoder_width, decoder_blocks)
        self.prior = Flow(embed_dim, embed_dim, prior_width, prior_blocks)

    # torch saves this with the weights: a run that is resumed, too, must have the same CLIP.

    def get_extra_state(self) -> str:
        return self.arch["fingerprint"]

    def set_extra_state(self, mark: str) -> None:
        if mark != self.arch["fingerprint"]:
            raise InputError("it was trained with another CLIP than this one: name that one with --clip")

    def decoder_loss(self, latents: Tensor, image_embeds: Tensor) -> Tensor:
        """Latents [B, latent_dim] of images and their unit vectors [B, embed_dim] -> a scalar."""
        return self.decoder.loss(latents, self.scale * image_embeds)

    def prior_loss(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """Unit vectors [B, embed_dim] of pairs -> a scalar."""
        return self.prior.loss(self.scale * image_embeds, self.scale * text_embeds)

    def imagine(
        self,
        text_embeds: Tensor,
        guidance: float = PRIOR_GUIDANCE,
        steps: int = STEPS,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The prior: unit vectors of texts -> unit vectors of images that they could describe, both [B, embed_dim]."""
        noise = torch.randn(len(text_embeds), self.prior.dim, generator=generator, device=text_embeds.device)
        return F.normalize(self.prior.draw(self.scale * text_embeds, noise, guidance, steps), dim=-1)

    @torch.no_grad()
    def decode(
        self,
        image_embeds: Tensor,
        guidance: float = DECODER_GUIDANCE,
        steps: int = STEPS,
        generator: torch.Generator | None = None,
        alike: bool = False,
    ) -> Tensor:
        """The decoder: unit vectors of images [B, embed_dim] -> images [B, 1, 28, 28] in [0, 1].

        `alike` starts all from the same noise: what differs then is what their vectors say.
        """
        rows = 1 if alike else len(image_embeds)
        noise = torch.randn(rows, self.decoder.dim, generator=generator, device=image_embeds.device)
        latents = self.decoder.draw(self.scale * image_embeds, noise.expand(len(image_embeds), -1), guidance, steps)
        return self.autoencoder.decode(latents)

    def draw(self, text_embeds: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Unit vectors of texts [B, embed_dim] -> an image of each, [B, 1, 28, 28] in [0, 1]."""
        return self.decode(self.imagine(text_embeds, generator=generator), generator=generator)

    def save(self, path: str | Path) -> None:
        """Write all to one file, whole or not at all. Raises InputError when the folder cannot be written."""
        parts = {"arch": self.arch, "config": self.config, "metrics": self.metrics, "state_dict": self.state_dict()}
        save_checkpoint(path, {"format": FORMAT} | parts)

    @classmethod
    def load(cls, path: str | Path, clip: CLIP) -> "Generator":
        """Rebuild it from its file, in eval mode, on the device of the CLIP that it was trained with.

        Raises InputError for a file that is no generator, or that belongs to another CLIP.
        """
        if not Path(path).is_file():
            raise InputError(f"there is no generator {path}: train one with `make generator`, or name another")
        checkpoint = load_checkpoint(path)
        parts = [checkpoint.get(name) for name in ("arch", "state_dict", "config", "metrics")]
        if checkpoint.get("format") != FORMAT or not all(isinstance(part, dict) for part in parts):
            raise InputError(f"{path} is not a generator of this version: train one with `make generator`")
        arch, state, config, metrics = parts
        if arch.get("fingerprint") != clip.fingerprint():
            raise InputError(
                f"{path} was trained with another CLIP than this one: name that one with --clip, or train a new"
                " generator with `make generator`"
            )
        try:
            generator = cls(**arch)
            generator.load_state_dict(state)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{path} holds another architecture than this version builds: {short(error)}") from None
        generator.config, generator.metrics = config, metrics
        return generator.to(clip.logit_scale.device).eval()


def slerp(start: Tensor, end: Tensor, shares: Tensor) -> Tensor:
    """The way between two unit vectors [embed_dim] along the sphere, at `shares` [K] in 0..1 -> [K, embed_dim].

    Spherical interpolation (Shoemake, 1985). For opposite vectors there is no one way; the straight line then serves.
    """
    angle = torch.arccos((start @ end).clamp(-1, 1))
    if angle.sin() < 1e-4:
        return F.normalize(torch.lerp(start, end, shares[:, None]), dim=-1)
    weights = torch.stack([((1 - shares) * angle).sin(), (shares * angle).sin()], dim=1) / angle.sin()
    return weights @ torch.stack([start, end])
