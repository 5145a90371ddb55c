"""CLIP: a tower for each modality, unit vectors, a learned temperature (Radford et al., 2021, arXiv 2103.00020).

model = CLIP.load("runs/best_model.pth")
logits_per_image = model(images, ["seven", "2"]).logits_per_image
"""

import my_utils  # isort: skip  # noqa: F401  before torch: it says how OpenMP waits

import hashlib
import io
import math
import os
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attributes import unseen_cells
from captions import Texts, captions_of
from image_encoder import IMAGE_ENCODERS
from losses import pick_loss
from my_utils import InputError, atomic_write, pick_device, short
from speech_encoder import SpeechEncoder
from stroke_encoder import StrokeEncoder
from text_encoder import TextEncoder
from training.settings import MIN_TEMPERATURE, TEXT_MODEL, Settings

FORMAT = "minist-clip-4"  # raised when an older file can no longer be read
OTHER_TOWERS = {"strokes": StrokeEncoder, "speech": SpeechEncoder}  # aligned to images later (training/align.py)


class CLIPOutput(NamedTuple):
    """What `CLIP.forward` returns, with the names of transformers' CLIPOutput. B images, T texts."""

    image_embeds: Tensor  # [B, embed_dim], unit vectors
    text_embeds: Tensor  # [T, embed_dim], unit vectors
    logits_per_image: Tensor  # [B, T]
    logits_per_text: Tensor  # [T, B]
    logit_scale: Tensor  # scalar: the factor on the cosines, 1 / temperature


class CLIP(nn.Module):
    """Images and texts in one space of `embed_dim` dimensions; every embedding has length 1.

    `image_encoder` is "residual" or "fast" (image_encoder.py), with `width` channels in its first stage. `captions`,
    "digit" or "described", are what it is trained on (captions.py), but for the cells of `unseen_seed` (attributes.py).
    `text_encoder` is "table" (sums of word vectors) or "plus" (any sentence, through the pretrained language model
    `text_model`, which `freeze_text` keeps as it is). `loss` names the contrastive loss that `model.loss(batch)`
    computes (losses.py). `logit_scale` is the logarithm of the inverse temperature. `init_logit_bias` adds a learned
    `logit_bias` to the logits, for the sigmoid loss; None leaves it out. `modalities` are those of OTHER_TOWERS that
    the model has beside images and texts.
    Raises InputError for a value that cannot be, or when the language model cannot be had.
    """

    def __init__(
        self,
        embed_dim: int = Settings.embed_dim,
        image_encoder: str = Settings.image_encoder,
        width: int = Settings.width,
        captions: str = Settings.captions,
        unseen_seed: int = Settings.unseen_seed,
        text_encoder: str = Settings.text_encoder,
        text_model: str = Settings.text_model,
        freeze_text: bool = Settings.freeze_text,
        loss: str = Settings.loss,
        init_temperature: float = Settings.init_temperature,
        init_logit_bias: float | None = None,
        modalities: Sequence[str] = (),
        fetch: bool = True,
    ):
        super().__init__()
        if image_encoder not in IMAGE_ENCODERS:
            raise InputError(f"there is no image encoder {image_encoder!r}: choose {' or '.join(IMAGE_ENCODERS)}")
        if text_encoder not in ("table", "plus"):
            raise InputError(f"there is no text encoder {text_encoder!r}: choose table or plus")
        if not all(isinstance(size, int) and size > 0 for size in (embed_dim, width)):
            raise InputError(f"embed_dim and width must be whole numbers above 0, not {embed_dim!r} and {width!r}")
        if not isinstance(init_temperature, int | float) or not 0 < init_temperature < math.inf:
            raise InputError(f"init_temperature must be a number above 0, not {init_temperature!r}")
        if captions not in ("digit", "described"):
            raise InputError(f"there are no captions {captions!r}: choose digit or described")
        self.loss_function = pick_loss(loss)
        self.captions, self.unseen = captions_of(captions, text_encoder), unseen_cells(unseen_seed)  # bool [10, 3, 3]
        # What rebuilds the model. A language model's folder is kept as a whole path, so that it is found from anywhere.
        self.arch = {"embed_dim": embed_dim, "image_encoder": image_encoder, "width": width}
        self.arch |= {"captions": captions, "unseen_seed": unseen_seed, "text_encoder": text_encoder, "loss": loss}
        self.arch |= {"init_temperature": init_temperature, "init_logit_bias": init_logit_bias, "modalities": []}
        self.config: dict = {}  # how it was trained
        self.metrics: dict = {}  # what it reached

        self.towers = nn.ModuleDict({"image": IMAGE_ENCODERS[image_encoder](embed_dim, width)})
        if text_encoder == "table":
            self.towers["text"] = TextEncoder(embed_dim, self.captions.sentences)
        else:
            from text_encoder_plus import TextEncoderPlus  # transformers takes seconds to import

            if not text_model or not str(text_model).strip():
                raise InputError("text_model is empty: name a language model or its folder")
            text_model = str(Path(text_model).resolve()) if os.path.isdir(text_model) else str(text_model)
            self.arch |= {"text_model": text_model, "freeze_text": freeze_text}
            self.towers["text"] = TextEncoderPlus(embed_dim, text_model, freeze_text, fetch)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / init_temperature)))
        self.logit_bias = None if init_logit_bias is None else nn.Parameter(torch.tensor(init_logit_bias))
        for modality in modalities:
            self.add_tower(modality)
        self._tokenized: tuple | None = None  # cache: the last list of sentences, and its rows

    # ---- the method ----

    def forward(self, images, texts: str | list[str] | Texts) -> CLIPOutput:
        """B images and T texts -> both embeddings and their scaled cosines."""
        return self.compare(self.encode_image(images), self.encode_text(texts))

    def encode_image(self, images) -> Tensor:
        """Images, as `preprocess` takes them -> unit vectors [B, embed_dim]."""
        return F.normalize(self.towers["image"](self.preprocess(images)).float(), dim=-1)

    def encode_text(self, texts: str | list[str] | Texts) -> Tensor:
        """T strings -> unit vectors [T, embed_dim]. Raises InputError for a text that the tower cannot read."""
        return F.normalize(self.towers["text"](self.tokenize(texts)).float(), dim=-1)

    def encode_strokes(self, strokes) -> Tensor:
        """One stroke of the pen [T, 2], x to the right and y up, or a list of B of them -> unit vectors [B, embed_dim].

        Raises InputError for what is no stroke of a pen, or when the model has no tower for strokes.
        """
        return self._encode_other("strokes", strokes)

    def encode_speech(self, sounds) -> Tensor:
        """One sound [T], float at 8 kHz (`read_wav`, `as_sound`), or a list of B -> unit vectors [B, embed_dim].

        Raises InputError for what is no sound, or when the model has no tower for speech.
        """
        return self._encode_other("speech", sounds)

    def _encode_other(self, modality: str, inputs) -> Tensor:
        if modality not in self.towers:
            raise InputError(f"this model has no tower for {modality}: train one with `make {modality}`")
        tower = self.towers[modality]
        return F.normalize(tower(tower.preprocess(inputs).to(self.logit_scale.device)).float(), dim=-1)

    def add_tower(self, modality: str) -> nn.Module:
        """A new, untrained tower for one of OTHER_TOWERS, replacing an older one. Raises InputError for others."""
        if modality not in OTHER_TOWERS:
            raise InputError(f"there is no tower for {modality!r}: choose {' or '.join(OTHER_TOWERS)}")
        self.towers[modality] = OTHER_TOWERS[modality](self.arch["embed_dim"]).to(self.logit_scale.device)
        self.arch["modalities"] = [name for name in OTHER_TOWERS if name in self.towers]
        return self.towers[modality]

    def fingerprint(self) -> str:
        """16 hexadecimal digits that tell the image and the text tower from all others, however they were saved.

        What is trained on these two as they are (a generator, another tower) knows them by it.
        """
        digest = hashlib.sha256()
        for name, value in sorted(self.towers.state_dict().items()):
            if name.startswith(("image.", "text.")):
                digest.update(name.encode())
                digest.update(value.cpu().numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode())
        return digest.hexdigest()[:16]

    def compare(self, image_embeds: Tensor, text_embeds: Tensor) -> CLIPOutput:
        """Unit vectors [B, embed_dim] and [T, embed_dim] -> what `forward` returns."""
        scale = self.logit_scale.exp()
        with torch.autocast(image_embeds.device.type, enabled=False):  # bf16 is too coarse for logits near 100
            logits_per_image = scale.float() * image_embeds @ text_embeds.T
        if self.logit_bias is not None:
            logits_per_image = logits_per_image + self.logit_bias
        return CLIPOutput(image_embeds, text_embeds, logits_per_image, logits_per_image.T, scale)

    def loss(self, batch) -> Tensor:
        """A batch of pairs (my_dataset.py) -> its contrastive loss, a scalar in nats."""
        return self.loss_function(self(batch.images, batch.texts), batch.truth)

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keep the temperature from falling below its least value, so that training stays stable."""
        self.logit_scale.clamp_(max=math.log(1 / MIN_TEMPERATURE[self.arch["captions"]]))

    # ---- what goes in ----

    def tokenize(self, texts: str | list[str] | Texts) -> Tensor:
        """Texts -> what the text tower reads, a row for each. The sentences of `Texts` are read once."""
        if isinstance(texts, Texts):
            known, device = self._tokenized, self.logit_scale.device
            if known is None or known[0] is not texts.sentences or known[1].device != device:
                self._tokenized = known = (texts.sentences, self.towers["text"].tokenize(texts.sentences).to(device))
            return known[1][texts.index]
        if isinstance(texts, str):
            texts = [texts]
        if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) for text in texts):
            raise InputError(f"texts must be a string or a list of strings, not {texts!r}")
        return self.towers["text"].tokenize(texts)

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
            except (TypeError, ValueError, RuntimeError):
                raise InputError("images must be one array of uint8 or float pixels, all of one size") from None
        if images.layout != torch.strided or images.is_meta or images.is_nested:
            raise InputError("images must be a plain tensor with values, not a sparse, nested or meta tensor")
        shape = tuple(images.shape)
        if shape == (28, 28):
            images = images[None, None]
        elif len(shape) == 3 and shape[1:] == (28, 28):
            images = images[:, None]
        elif len(shape) != 4 or shape[1:] != (1, 28, 28):
            raise InputError(f"images must be [B, 28, 28] or [B, 1, 28, 28], not {list(shape)}: resize to grey 28x28")
        if images.dtype not in (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise InputError(f"images must be uint8 (0..255) or float (0..1), not {images.dtype}")
        images = images.to(self.logit_scale.device, non_blocking=True)
        is_bytes, dtype = images.dtype == torch.uint8, self.logit_scale.dtype
        images = images.to(dtype) / 255 if is_bytes else images.to(dtype)
        if self.training and images.is_cuda:
            return images  # looking at the values would wait for the GPU
        if not is_bytes and images.numel():
            low, high = images.aminmax()  # (one look at each pixel; of a NaN both are NaN)
            if not (low >= 0 and high <= 1):
                raise InputError("float images must lie in [0, 1]: divide by 255, or pass uint8")
        if not self.training and ((images > 0.5).float().mean(dim=(1, 2, 3)) > 0.5).any():
            warnings.warn(
                "most of an image is bright, but digits are bright on black here: pass 1 - image, or 255 - bytes",
                stacklevel=3,
            )
        return images

    def save(self, path: str | Path) -> None:
        """Write weights, architecture, config and metrics to one file, the only file that `CLIP.load` needs.

        The file appears whole or not at all. Raises InputError when the folder cannot be written.
        """
        parts = {"arch": self.arch, "config": self.config, "metrics": self.metrics, "state_dict": self.state_dict()}
        save_checkpoint(path, {"format": FORMAT} | parts)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu", text_model: str | None = None) -> "CLIP":
        """Rebuild the model from its file, in eval mode.

        `text_model` names the language model's place where it has moved since training; a language model other than
        albert-base-v2 that is not on this machine is fetched only when it is named so. Raises InputError for a file
        that is not such a one, or when its language model cannot be had or has other weights than in training.
        """
        device = pick_device(str(device))
        checkpoint = load_checkpoint(path)
        if checkpoint.get("format") != FORMAT:
            raise InputError(
                f"{path} is not a model of this version (it has format {checkpoint.get('format')!r}, not {FORMAT!r}):"
                " train one with `make train`"
            )
        arch, state = checkpoint.get("arch"), checkpoint.get("state_dict")
        config, metrics = checkpoint.get("config"), checkpoint.get("metrics")
        if not all(isinstance(part, dict) for part in (arch, state, config, metrics)):
            raise InputError(f"{path} lacks a part of a model (arch, state_dict, config, metrics): train it again")
        if text_model is not None and arch.get("text_encoder") != "plus":
            raise InputError(f"{path} has the table encoder, which takes no language model: leave out text_model")
        try:
            fetch = text_model is not None or arch.get("text_model") == TEXT_MODEL
            model = cls(**arch | ({"text_model": text_model} if text_model is not None else {}), fetch=fetch)
            model.load_state_dict(state)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise InputError(f"{path}: {error}") from None
            raise InputError(f"{path} holds another architecture than this version builds: {short(error)}") from None
        values = [*model.named_parameters(), *model.named_buffers()]  # batch norm's statistics too
        bad = [name for name, value in values if not value.isfinite().all()]
        if bad:
            raise InputError(f"{path} holds weights that are not finite ({bad[0]}): train it again")
        model.config, model.metrics = config, metrics
        return model.to(device).eval()


def save_checkpoint(path: str | Path, checkpoint: dict) -> None:
    """Write tensors and plain values to one file, whole or not at all. Raises InputError when it cannot be written."""
    content = io.BytesIO()
    torch.save(checkpoint, content)
    atomic_write(path, content.getvalue())


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
