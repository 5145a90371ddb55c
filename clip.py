"""CLIP: two towers, L2-normalised embeddings, a learned temperature (Radford et al., 2021, arXiv 2103.00020).

model = CLIP.load("runs/best_model.pth")
logits_per_image, logits_per_text = model(images, ["seven", "2"])
"""

import io
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distributed import gather
from image_encoder import ImageEncoder
from my_utils import InputError, atomic_write, pick_device, short
from text_encoder import TextEncoder, check_labels

FORMAT = "minist-clip-2"  # raised when an older file can no longer be read
TEXT_MODEL = "albert-base-v2"
INIT_TEMPERATURE = 0.07
MAX_LOGIT_SCALE = math.log(100)


class CLIP(nn.Module):
    """Images and texts in one space of `embed_dim` dimensions; every embedding has length 1.

    `text_encoder` is "table" (ten captions) or "plus" (any sentence, through the pretrained language model
    `text_model`, which `freeze_text` keeps as it is). `width`, `blocks`, `block_convs`, `margin`, `pool` and
    `stem_pool` shape the CNN as image_encoder.py tells. `logit_scale` is the logarithm of the inverse temperature.
    `init_logit_bias` adds a learned `logit_bias` to the logits, for the sigmoid loss; None leaves it out.
    Raises InputError when the language model cannot be had.
    """

    def __init__(
        self,
        embed_dim: int = 64,
        width: int = 16,
        init_logit_bias: float | None = None,
        text_encoder: str = "table",
        text_model: str = TEXT_MODEL,
        freeze_text: bool = False,
        blocks: Sequence[int] = (1, 1, 1),
        block_convs: int = 2,
        margin: int = 0,
        pool: str = "mean",
        stem_pool: bool = False,
        init_temperature: float = INIT_TEMPERATURE,
    ):
        super().__init__()
        self.arch = {"embed_dim": embed_dim, "width": width, "init_logit_bias": init_logit_bias}
        self.arch |= {"blocks": list(blocks), "block_convs": block_convs, "margin": margin, "pool": pool}
        self.arch |= {"stem_pool": stem_pool, "init_temperature": init_temperature}
        if text_encoder == "plus":
            if Path(text_model).is_dir():
                text_model = str(Path(text_model).resolve())  # found again from wherever the model is loaded
            self.arch |= {"text_encoder": "plus", "text_model": text_model, "freeze_text": freeze_text}
        self.config: dict = {}  # how it was trained
        self.metrics: dict = {}  # what it reached
        self.image_encoder = ImageEncoder(embed_dim, width, blocks, block_convs, margin, pool, stem_pool)
        if text_encoder == "plus":
            from text_encoder_plus import TextEncoderPlus  # transformers takes seconds to import

            self.text_encoder = TextEncoderPlus(embed_dim, text_model, freeze_text)
        else:
            self.text_encoder = TextEncoder(embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / init_temperature)))
        self.logit_bias = None if init_logit_bias is None else nn.Parameter(torch.tensor(init_logit_bias))

    def encode_image(self, images) -> Tensor:
        """Images, as `preprocess` takes them -> unit vectors [B, embed_dim]."""
        features = self.image_encoder(self.preprocess(images))
        return F.normalize(features.float(), dim=-1)

    def encode_text(self, texts: str | list[str] | Tensor) -> Tensor:
        """Strings, or digit labels as an integer tensor [B] -> unit vectors [B, embed_dim].

        Raises InputError for a text that the text encoder cannot read.
        """
        if isinstance(texts, str):
            texts = [texts]
        elif isinstance(texts, Tensor) or (isinstance(texts, np.ndarray) and texts.dtype.kind in "biuf"):
            texts = check_labels(torch.as_tensor(texts, device=self.logit_scale.device), self.training)
        elif not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) for text in texts):
            raise InputError(f"texts must be a string, strings or an integer tensor of labels, not {texts!r}")
        return F.normalize(self.text_encoder(texts).float(), dim=-1)

    def forward(self, images, texts: str | list[str] | Tensor) -> tuple[Tensor, Tensor]:
        """B images and T texts -> logits_per_image [B, T] and its transpose logits_per_text [T, B]."""
        image_features, text_features = self.encode_image(images), self.encode_text(texts)
        if self.training:  # each process of a data-parallel run has embedded its share of the batch
            image_features, text_features = gather(image_features), gather(text_features)
        return self.logits(image_features, text_features)

    def logits(self, image_features: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors [B, embed_dim] and [T, embed_dim] -> scaled cosines, as `forward` returns them."""
        with torch.autocast(image_features.device.type, enabled=False):  # bf16 is too coarse for logits near 100
            logits_per_image = self.logit_scale.exp() * image_features @ text_features.T
        if self.logit_bias is not None:
            logits_per_image = logits_per_image + self.logit_bias
        return logits_per_image, logits_per_image.T

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keep the logits' factor at 100 at most, as the paper does, so that training stays stable."""
        self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)

    def preprocess(self, images) -> Tensor:
        """Array, tensor or image of shape [28, 28], [B, 28, 28] or [B, 1, 28, 28] -> float [B, 1, 28, 28] in [0, 1].

        uint8 counts as 0..255, floats as 0..1; digits are bright on black. Raises InputError for anything else.
        """
        if not isinstance(images, Tensor):
            try:
                array = np.array(images)
                images = torch.from_numpy(array.astype(np.uint8 if array.dtype == np.uint8 else np.float32))
                if array.dtype.kind not in "uf":
                    raise TypeError
            except (TypeError, ValueError):
                raise InputError("images must be one array of uint8 or float pixels, all of one size") from None
        shape = tuple(images.shape)
        if shape == (28, 28):
            images = images[None, None]
        elif len(shape) == 3 and shape[1:] == (28, 28):
            images = images[:, None]
        elif len(shape) != 4 or shape[1:] != (1, 28, 28):
            raise InputError(f"images must be [B, 28, 28] or [B, 1, 28, 28], not {list(shape)}: resize to grey 28x28")
        images = images.to(self.logit_scale.device, non_blocking=True)
        if images.dtype == torch.uint8:
            return images.float() / 255
        if not images.is_floating_point():
            raise InputError(f"images must be uint8 (0..255) or float (0..1), not {images.dtype}")
        # Looking at the values waits for the GPU, so the training loop goes without there.
        if not (self.training and images.is_cuda) and not ((images >= 0) & (images <= 1)).all():
            raise InputError("float images must lie in [0, 1]: divide by 255, or pass uint8")
        return images.float()

    def save(self, path: str | Path) -> None:
        """Write weights, architecture, config and metrics to one file, which `CLIP.load` needs alone.

        The file appears whole or not at all. Raises InputError when the folder cannot be written.
        """
        content = io.BytesIO()
        torch.save(
            {
                "format": FORMAT,
                "arch": self.arch,
                "config": self.config,
                "metrics": self.metrics,
                "state_dict": self.state_dict(),
            },
            content,
        )
        atomic_write(path, content.getvalue())

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu", text_model: str | None = None) -> "CLIP":
        """Rebuild the model from its file, in eval mode.

        `text_model` names the language model's place where it has moved since training. Raises InputError for a
        file that is not such a one, or when its language model cannot be had or has other weights than in training.
        """
        device = pick_device(str(device))
        checkpoint = load_checkpoint(path)
        if checkpoint.get("format") != FORMAT:
            raise InputError(f"{path} is not a model of this project (format {FORMAT}): train one with `make train`")
        try:
            moved = {"text_model": text_model} if text_model else {}
            model = cls(**checkpoint["arch"] | moved)
            model.load_state_dict(checkpoint["state_dict"])
            model.config, model.metrics = checkpoint["config"], checkpoint["metrics"]
        except (KeyError, TypeError, RuntimeError, AttributeError) as error:
            raise InputError(f"{path} holds another architecture than this version builds: {short(error)}") from None
        return model.to(device).eval()


def load_checkpoint(path: str | Path) -> dict:
    """Read a file of tensors and plain values onto the CPU; never runs code from it.

    Raises InputError when it is not one or is damaged.
    """
    if not Path(path).is_file():
        raise InputError(f"there is no checkpoint {path}: train one with `make train`, or name another")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch does not look at the check sums
        checkpoint = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception:  # the unpickler meets arbitrary bytes and raises whatever they lead it to
        checkpoint = None
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path} is not a checkpoint, or is damaged: train again with `make train`, or name another")
    return checkpoint
