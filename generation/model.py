"""From a text to an image through the shared space (unCLIP, Ramesh et al., 2022, arXiv 2204.06125).

    text -> text embedding -> [prior] -> image embedding -> [decoder] -> latent -> [autoencoder] -> image

Both embeddings are those of a trained CLIP, which stays unchanged. The embedding of a text and those of the images that
it describes lie apart (the modality gap), so a prior leads from one to the other. Prior and decoder are flows: they
learn the velocity at which noise becomes data along straight lines (flow matching, Lipman et al., 2023, arXiv
2210.02747); sampling follows it from noise. The decoder works in the latent space of an autoencoder (Rombach et al.,
2022, arXiv 2112.10752), where a step costs little.

    generator = Generator.load("runs/generator/best_model.pth", clip)
    text = "a thick seven"
    image = generator.sample(clip, clip.encode_text([text]), evaluation.claims.parse_claims(text)[None])
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip import CLIP
from evaluation.metrics import embed_images
from image_encoder import PIXEL_MEAN, PIXEL_STD, ResidualBlock, downsample
from my_utils import InputError, load_checkpoint, save_checkpoint, save_folder, short

# All of these were chosen on validation. The autoencoder renders what it is unsure of in grey, which makes strokes 0.11
# pixels thicker; sharpening undoes that.
STEPS = 6  # of Heun's method, from noise to data
BEST_OF = 6  # proposals of the prior, and drawings of the chosen one, for each text
SHARPEN, DARKEN = 1.5, 0.25  # on the logits of pixels
LATENT_NOISE = 0.1  # added to latents of unit variance in the autoencoder's training: a flow's samples are not exact
FREQUENCIES = 16  # of the sinusoidal time embedding


class Autoencoder(nn.Module):
    """Images [B, 1, 28, 28] in [0, 1] <-> latents [B, latent_dim], each number of mean 0 and variance 1 in training."""

    def __init__(self, latent_dim: int, width: int):
        super().__init__()
        self.encoder = nn.Sequential(
            *downsample(1, width, kernel=5),
            *downsample(width, 2 * width),
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
        return self.encoder((images - PIXEL_MEAN) / PIXEL_STD)  # [B, latent_dim]

    def decode(self, latents: Tensor) -> Tensor:
        return (SHARPEN * (self.decoder(latents) - DARKEN)).sigmoid()  # [B, 1, 28, 28]

    def loss(self, images: Tensor) -> Tensor:
        """Cross-entropy of the pixels, summed over an image: nats, a scalar."""
        latents = self.encode(images)  # [B, latent_dim]
        logits = self.decoder(latents + LATENT_NOISE * torch.randn_like(latents))  # [B, 1, 28, 28]
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
        scale, shift, gate = self.modulation(condition).chunk(3, dim=-1)  # [B, width] each
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


class Flow(nn.Module):
    """Conditional flow: samples vectors [B, dim] given conditions [B, condition_dim]; both have unit variance.

    Between noise x0 and data x1 lies x_t = (1 - t) x0 + t x1, whose velocity is x1 - x0. The network learns its mean at
    (x_t, t, condition).
    """

    def __init__(self, dim: int, condition_dim: int, width: int, blocks: int):
        super().__init__()
        self.dim = dim
        self.time_embed = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.condition_embed = nn.Sequential(nn.Linear(condition_dim, width), nn.SiLU(), nn.Linear(width, width))
        self.proj_in, self.proj_out = nn.Linear(dim, width), nn.Linear(width, dim)
        self.blocks = nn.ModuleList(FlowBlock(width) for _ in range(blocks))
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Points [B, dim], times [B] in 0..1 and conditions [B, condition_dim] -> velocities [B, dim]."""
        frequencies = torch.arange(1, FREQUENCIES + 1, device=x.device) * math.pi / 2
        angles = t[:, None] * frequencies  # [B, FREQUENCIES]
        time = self.time_embed(torch.cat([angles.sin(), angles.cos()], dim=1))  # [B, width]
        condition = F.silu(time + self.condition_embed(condition))  # [B, width]
        x = self.proj_in(x)  # [B, width]
        for block in self.blocks:
            x = block(x, condition)
        return self.proj_out(F.layer_norm(x, x.shape[-1:]))  # [B, dim]

    def loss(self, data: Tensor, condition: Tensor) -> Tensor:
        """The mean squared error of the velocity at random times, a scalar."""
        noise = torch.randn_like(data)
        t = torch.randn(len(data), device=data.device).sigmoid()  # logit-normal (Esser et al., 2024, arXiv 2403.03206)
        x = torch.lerp(noise, data, t[:, None])
        return F.mse_loss(self(x, t, condition), data - noise)

    @torch.no_grad()
    def sample(self, condition: Tensor, noise: Tensor, steps: int) -> Tensor:
        """Conditions [B, condition_dim] and noise [B, dim] -> vectors [B, dim], by `steps` steps of Heun's method."""
        x, t, size = noise, torch.zeros(len(noise), device=noise.device), 1 / steps
        for _ in range(steps):
            first = self(x, t, condition)
            second = self(x + size * first, t + size, condition)
            x, t = x + size / 2 * (first + second), t + size
        return x


class Generator(nn.Module):
    """Prior, decoder and autoencoder, for the CLIP with this `fingerprint`, whose embeddings have `embed_dim`."""

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
        self.metrics: dict = {}  # what it reached
        self.scale = math.sqrt(embed_dim)  # unit vectors times this have components of about unit variance
        self.autoencoder = Autoencoder(latent_dim, autoencoder_width)
        self.decoder = Flow(latent_dim, embed_dim, decoder_width, decoder_blocks)
        self.prior = Flow(embed_dim, embed_dim, prior_width, prior_blocks)

    def flow_losses(self, latents: Tensor, image_embeds: Tensor, text_embeds: Tensor) -> dict[str, Tensor]:
        """Latents [B, latent_dim] and embeddings [B, embed_dim] of pairs -> the losses of decoder and prior."""
        images, texts = self.scale * image_embeds, self.scale * text_embeds
        return {"decoder_loss": self.decoder.loss(latents, images), "prior_loss": self.prior.loss(images, texts)}

    def sample(
        self,
        clip: CLIP,
        text_embeds: Tensor,
        claims: Tensor,
        noise: torch.Generator | None = None,
        best_of: int = BEST_OF,
    ) -> Tensor:
        """Embeddings [B, embed_dim] of texts and their claims, bool [B, S] -> an image of each [B, 1, 28, 28] in 0..1.

        The prior proposes `best_of` vectors for each text, the best one is drawn `best_of` times, and the best drawing
        is kept; both are chosen by the CLIP (`best_candidates`). Some hundreds of texts at a time: the memory that this
        takes grows with the square of B.
        """
        vectors = self.sample_prior(text_embeds.repeat_interleave(best_of, dim=0), noise)  # [B * best_of, embed_dim]
        if best_of == 1:
            return self.decode(vectors, noise)
        vectors = vectors[best_candidates(clip, vectors, claims)]  # [B, embed_dim]
        images = self.decode(vectors.repeat_interleave(best_of, dim=0), noise)  # [B * best_of, 1, 28, 28]
        return images[best_candidates(clip, embed_images(clip, images), claims)]

    def sample_prior(self, text_embeds: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """Embeddings of texts -> embeddings of images that they could describe, both [B, embed_dim]."""
        start = torch.randn(len(text_embeds), self.prior.dim, generator=noise, device=text_embeds.device)
        return F.normalize(self.prior.sample(self.scale * text_embeds, start, STEPS), dim=-1)

    @torch.no_grad()
    def decode(self, image_embeds: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """Embeddings of images [B, embed_dim] -> images [B, 1, 28, 28] in [0, 1]."""
        start = torch.randn(len(image_embeds), self.decoder.dim, generator=noise, device=image_embeds.device)
        return self.autoencoder.decode(self.decoder.sample(self.scale * image_embeds, start, STEPS))

    def save(self, path: str | Path) -> None:
        save_checkpoint(path, "generator", self.content())

    def content(self) -> dict:
        """What a file holds of the generator."""
        return {"arch": self.arch, "metrics": self.metrics, "state_dict": self.state_dict()}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what `load` reads to a folder, model.safetensors and config.json: generator/ in that of its CLIP."""
        save_folder(folder, "generator", self.content())

    @classmethod
    def load(cls, path: str | Path, clip: CLIP) -> "Generator":
        """Rebuild it, in eval mode, on the CLIP's device. Raises InputError for another file or another CLIP."""
        checkpoint = load_checkpoint(path, "generator")
        try:
            generator = cls(**checkpoint["arch"])
            generator.load_state_dict(checkpoint["state_dict"])
            generator.metrics = checkpoint["metrics"]
        except Exception as error:  # a file can hold anything
            raise InputError(f"{path} holds another architecture than this version builds: {short(error)}") from None
        if generator.arch["fingerprint"] != clip.fingerprint():
            raise InputError(f"{path} was trained with another CLIP: name it with --clip, or run `make generator`")
        return generator.to(clip.logit_scale.device).eval()


def best_candidates(clip: CLIP, candidates: Tensor, claims: Tensor) -> Tensor:
    """For each text the place of the candidate of which the CLIP finds it most probably true: [B].

    candidates [B * K, embed_dim] are unit vectors, K for each text; claims bool [B, S] are those of the texts. (DALL-E,
    Ramesh et al., 2021, arXiv 2102.12092, keeps the candidate closest to the text.)
    """
    scores = clip.log_probs(candidates, claims).view(len(claims), -1, len(claims))  # [B, K, B]
    best = scores.diagonal(dim1=0, dim2=2).argmax(dim=0)  # [B]
    return best + torch.arange(len(claims), device=best.device) * scores.shape[1]
