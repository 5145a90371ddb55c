"""CLIP: a tower for each modality, unit vectors, a learned temperature (Radford et al., 2021, arXiv 2103.00020).

model = CLIP.load("runs/best_model.pth")
logits_per_image = model(images, ["seven", "2"]).logits_per_image
"""

import hashlib
import importlib
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from PIL import Image, ImageOps
from torch import Tensor, nn

from attributes import unseen_combinations
from captions import TRAIN_TEMPLATES, Captions, Texts, attribute_captions, digit_captions, own_captions
from image_encoder import IMAGE_ENCODERS
from losses import LOSSES, contrastive_loss
from my_utils import InputError, load_checkpoint, pick_device, quote, save_checkpoint, short
from scenes import CANVAS, scene_captions, unseen_pairs
from text_encoder import TEXT_ENCODERS

# Training clamps the temperature to this minimum: 0.01 as in the paper. Captions of attributes keep a higher one, so
# that similarities stay graded: of two thick digits the thicker one is closer to "thick". Scenes stay far above theirs.
MIN_TEMPERATURE = {"digit": 0.01, "attributes": 0.1, "scenes": 0.02, "own": 0.02}

# Of a caption's parts (`log_probs`). It is lower than the logits' own, so that the edges between grades are sharp.
PART_TEMPERATURE = 1 / 20

# Towers beside image and text. Each modality is a module modalities/<name>.py, which adds its encoder to TOWERS: one
# with `preprocess`, built by `Encoder(embed_dim)`.
MODALITIES = ("speech", "strokes")
TOWERS: dict[str, type[nn.Module]] = {}


def captions_for(kind: str, text_encoder: str, classes: Sequence[str] = ()) -> Captions:
    """The captions of --captions `kind`. A language model reads whole sentences, in English; a table single words."""
    if kind == "digit":
        return digit_captions(TRAIN_TEMPLATES if text_encoder == "plus" else ("{word}",))
    if kind == "own":
        return own_captions(classes)
    captions = {"attributes": attribute_captions, "scenes": scene_captions}[kind]()
    return captions.in_language(is_chinese=False) if text_encoder == "plus" else captions


def unseen_for(kind: str, seed: int) -> Tensor:
    """What --unseen-seed keeps out of training: pairs of digits in scenes, else combinations of attributes."""
    return unseen_pairs(seed) if kind == "scenes" else unseen_combinations(seed)


class CLIPOutput(NamedTuple):
    """What `CLIP.forward` returns, with the names of transformers' CLIPOutput. B images, T texts."""

    image_embeds: Tensor  # [B, embed_dim], unit vectors
    text_embeds: Tensor  # [T, embed_dim], unit vectors
    logits_per_image: Tensor  # [B, T]
    logits_per_text: Tensor  # [T, B]
    logit_scale: Tensor  # scalar: the factor on the cosines, 1 / temperature


class CLIP(nn.Module, PyTorchModelHubMixin):
    """Images and texts in one space of `embed_dim` dimensions; every embedding has length 1.

    `image_encoder` and `text_encoder` are names in IMAGE_ENCODERS, with `width` channels in the first stage, and in
    TEXT_ENCODERS, with `text_options` for its constructor. `captions`, "digit", "attributes" or "scenes", are what the
    model is trained on (captions.py, scenes.py), but for the combinations or pairs of `unseen_seed`. `loss` is a name
    in LOSSES. `init_logit_bias` adds a learned bias to the logits, for the sigmoid loss. `modalities` are more towers.
    With captions "own" images have `channels` and are `side` pixels wide, `classes` are the names of classes if there
    are any, and `sentences` the training texts, of which only the vocabulary is kept.
    Raises InputError if a language model is not available.
    """

    def __init__(
        self,
        embed_dim: int = 64,
        image_encoder: str = "residual",
        width: int = 16,
        captions: str = "attributes",
        unseen_seed: int = 0,
        text_encoder: str = "table",
        text_options: dict | None = None,
        loss: str = "multi_positive",
        init_temperature: float = 0.1,
        init_logit_bias: float | None = None,
        modalities: Sequence[str] = (),
        side: int | None = None,
        channels: int = 1,
        classes: Sequence[str] = (),
        sentences: Sequence[str] = (),
    ):
        super().__init__()
        self.captions, self.unseen = captions_for(captions, text_encoder, classes), unseen_for(captions, unseen_seed)
        self.loss_function = LOSSES[loss]
        self.side, self.channels = side or (CANVAS if captions == "scenes" else 28), channels
        text_tower = TEXT_ENCODERS[text_encoder](embed_dim, sentences or self.captions.sentences, **text_options or {})
        image_tower = IMAGE_ENCODERS[image_encoder](embed_dim, width, self.channels, self.side)
        # All that rebuilds the model; a text encoder adds what it needs of its own, such as its vocabulary.
        self.arch = {"embed_dim": embed_dim, "image_encoder": image_encoder, "width": width, "captions": captions}
        self.arch |= {"unseen_seed": unseen_seed, "text_encoder": text_encoder, "text_options": text_tower.options}
        self.arch |= {"loss": loss, "init_temperature": init_temperature, "init_logit_bias": init_logit_bias}
        if captions == "own":
            self.arch |= {"side": self.side, "channels": channels, "classes": list(classes)}
        self.config: dict = {}  # how it was trained
        self.metrics: dict = {}  # what it reached

        self.towers = nn.ModuleDict({"image": image_tower, "text": text_tower})
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / init_temperature)))
        self.logit_bias = None if init_logit_bias is None else nn.Parameter(torch.tensor(float(init_logit_bias)))
        for name in modalities:
            self.add_tower(name)
        self._tokenized: tuple | None = None  # the last list of sentences, with its rows
        self._hub_mixin_config = None  # the mixin's copy of all arguments, such as the training texts

    # ---- the method ----

    def forward(self, images, texts: str | Sequence[str] | Texts) -> CLIPOutput:
        """B images and T texts -> both embeddings and their scaled cosines."""
        return self.compare(self.encode_image(images), self.encode_text(texts))

    def encode_image(self, images) -> Tensor:
        """Images, as `preprocess` takes them -> unit vectors [B, embed_dim]."""
        return F.normalize(self.towers["image"](self.preprocess(images)).float(), dim=-1)

    def encode_text(self, texts: str | Sequence[str] | Texts) -> Tensor:
        """T strings -> unit vectors [T, embed_dim]. Raises InputError for a text that the tower cannot read."""
        return F.normalize(self.towers["text"](self.tokenize(texts)).float(), dim=-1)

    def encode(self, modality: str, inputs) -> Tensor:
        """B inputs of a modality, as its encoder's `preprocess` takes them -> unit vectors [B, embed_dim].

        Raises InputError if the model has no such tower.
        """
        if modality in ("image", "text"):
            return self.encode_image(inputs) if modality == "image" else self.encode_text(inputs)
        if modality not in self.towers:
            raise InputError(f"this model has no tower for {modality}: train one with `make {modality}`")
        tower = self.towers[modality]
        return F.normalize(tower(tower.preprocess(inputs).to(self.logit_scale.device)).float(), dim=-1)

    def compare(self, image_embeds: Tensor, text_embeds: Tensor) -> CLIPOutput:
        """Unit vectors [B, embed_dim] and [T, embed_dim] -> their scaled cosines."""
        scale = self.logit_scale.exp()
        with torch.autocast(image_embeds.device.type, enabled=False):  # bf16 is too coarse for logits near 100
            logits_per_image = scale.float() * image_embeds @ text_embeds.T  # [B, T]
        if self.logit_bias is not None:
            logits_per_image = logits_per_image + self.logit_bias
        return CLIPOutput(image_embeds, text_embeds, logits_per_image, logits_per_image.T, scale)

    def part_logits(self, image_embeds: Tensor, part_embeds: Tensor) -> Tensor:
        """Unit vectors [B, embed_dim] and those of a part's captions [G, embed_dim] -> their scaled cosines [B, G]."""
        return image_embeds @ part_embeds.T / PART_TEMPERATURE

    def loss(self, batch) -> Tensor:
        """A batch of pairs (my_dataset.py) -> its contrastive loss, a scalar in nats."""
        logits = self(batch.images, batch.texts).logits_per_image
        return contrastive_loss(self.loss_function, logits, *batch.labels.match())

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Clamp the temperature to its minimum, so that training stays stable."""
        self.logit_scale.clamp_(max=math.log(1 / MIN_TEMPERATURE[self.arch["captions"]]))

    # ---- zero-shot classification ----

    @torch.no_grad()
    def prompt_ensemble(self, texts: Sequence[str] | Texts, paraphrases: int) -> Tensor:
        """T * paraphrases texts, those of one meaning one after the other -> unit vectors [T, embed_dim], in eval mode.

        Each is the mean of its paraphrases' embeddings, normalised again (Radford et al., 2021, section 3.1.4).
        """
        training = self.training
        embeds = self.eval().encode_text(texts)
        self.train(training)
        return F.normalize(embeds.view(-1, paraphrases, embeds.shape[-1]).mean(dim=1), dim=-1)

    def embed_descriptions(self, ids: Tensor) -> Tensor:
        """Descriptions [T], places in `model.captions` -> unit vectors [T, embed_dim]: a zero-shot classifier."""
        texts = self.captions.all_paraphrases(ids).strings()
        return self.prompt_ensemble(texts, self.captions.paraphrases)

    def zero_shot_classifier(self) -> Tensor:
        """The captions that name a digit and nothing else: unit vectors [10, embed_dim]."""
        return self.embed_descriptions(self.captions.digit_ids)

    @torch.no_grad()
    def part_probs(self, image_embeds: Tensor) -> list[Tensor]:
        """Unit vectors [N, embed_dim] -> the probability of each alternative of each part, [N, G] on their device."""
        vectors = [self.embed_descriptions(part.ids).to(image_embeds.device) for part in self.captions.parts]
        return [self.part_logits(image_embeds, part_embeds).softmax(dim=1) for part_embeds in vectors]

    def log_probs(self, image_embeds: Tensor, claims: Tensor) -> Tensor:
        """Unit vectors [N, embed_dim], claims of texts bool [T, S] -> how probable it is that each text is true of each
        image, as logarithms [N, T].

        The parts of a text count as independent. Each part's probability is that of the alternatives which the text
        allows, among all, by the captions that name one alternative alone (`captions.Part`). Claims about anything else
        do not count: of a text such as "a scribble" the logarithm is 0.
        """
        total = 0
        for part, probs in zip(self.captions.parts, self.part_probs(image_embeds), strict=True):  # [N, G]
            allowed = part.allowed_by(claims.cpu()).to(probs.device)  # [G, T]
            logs = (probs @ allowed.to(probs)).clamp(min=1e-30).log()  # [N, T]
            total = total + logs.masked_fill(allowed.all(dim=0), 0)  # not just nearly 0
        return total

    # ---- towers ----

    def add_tower(self, modality: str) -> nn.Module:
        """Add a new, untrained tower for a modality, or replace it. Raises InputError for an unknown modality."""
        if modality not in MODALITIES:
            raise InputError(f"there is no modality {quote(modality)}: choose {' or '.join(MODALITIES)}")
        importlib.import_module(f"modalities.{modality}")
        self.towers[modality] = TOWERS[modality](self.arch["embed_dim"]).to(self.logit_scale.device)
        self.arch["modalities"] = sorted(self.towers.keys() - {"image", "text"})
        return self.towers[modality]

    def require_digits(self) -> None:
        """Raises InputError for a model of scenes or of own data, where single digits are needed."""
        if self.captions.kind in ("scenes", "own"):
            what = "scenes of two digits" if self.captions.kind == "scenes" else "the pictures of its own data"
            raise InputError(f"this CLIP reads {what}: name one of --captions attributes or digit")

    def fingerprint(self) -> str:
        """16 hexadecimal digits by which a generator or another tower knows the image and text tower it belongs to."""
        digest = hashlib.sha256(self.towers["text"].frozen_hash.encode())
        for name, value in sorted(self.towers.state_dict().items()):
            if name.startswith(("image.", "text.")):
                digest.update(name.encode() + value.float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    # ---- what goes in ----

    def tokenize(self, texts: str | Sequence[str] | Texts) -> Tensor:
        """Texts -> what the text tower reads, a row for each. The sentences of `Texts` are read once."""
        if isinstance(texts, Texts):
            known, device = self._tokenized, self.logit_scale.device
            if known is None or known[0] is not texts.sentences or known[1].device != device:
                self._tokenized = known = (texts.sentences, self.towers["text"].tokenize(texts.sentences).to(device))
            return known[1][texts.index]
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) for text in texts):
            raise InputError(f"texts must be a string or a list of strings, not {quote(texts)}")
        return self.towers["text"].tokenize(texts)

    def preprocess(self, images) -> Tensor:
        """Images -> float [B, C, H, H] in [0, 1]. Digits are bright on black; H is 28, of scenes 48, and C is 1.

        Takes a Pillow image or a list of them, or an array or tensor [H, H], [B, H, H] or [B, C, H, H] of uint8
        (0..255) or floats (0..1). Pillow images are resized if the model is of own data; C and H are then `channels`
        and `side`. Raises InputError for other shapes, types and ranges.
        """
        side, channels, kind = self.side, self.channels, self.captions.kind
        images = pixels(images, (channels, side) if kind == "own" else None)
        shape = tuple(images.shape)
        n_channels = shape[-3] if len(shape) == 4 or (len(shape) == 3 and channels == 3) else 1
        if shape[-2:] != (side, side) or len(shape) > 4 or n_channels != channels:
            what = {"scenes": "scenes of two digits", "own": "own pictures"}.get(kind, "single digits")
            either = f"[B, {side}, {side}] or " if channels == 1 else ""
            raise InputError(
                f"images must be {either}[B, {channels}, {side}, {side}], not {list(shape)}: resize them; this"
                f" model reads {what}, in {'grey' if channels == 1 else 'RGB'}"
            )
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise InputError(f"images must be uint8 (0..255) or float (0..1), not {images.dtype}: convert them")
        images = images.reshape(-1, channels, side, side).to(self.logit_scale.device, non_blocking=True)
        is_bytes = images.dtype == torch.uint8
        if self.training and images.is_cuda:  # looking at the values would wait for the GPU
            return images.float() / 255 if is_bytes else images
        if images.numel():
            low, high = images.aminmax()  # of a NaN both are NaN
            if is_bytes and high == 1:
                raise InputError("the brightest pixel is 1 of 255: multiply by 255, or pass floats")
            if not is_bytes and not (low >= 0 and high <= 1):
                raise InputError("float images must lie in [0, 1]: divide by 255, or pass uint8")
        images = images.to(self.logit_scale.dtype) / 255 if is_bytes else images.to(self.logit_scale.dtype)
        if not self.training and kind != "own" and ((images > 0.5).float().mean(dim=(1, 2, 3)) > 0.5).any():
            warnings.warn(
                "most of an image is bright, but digits are bright on black here: pass 1 - image, or 255 - bytes",
                stacklevel=3,
            )
        return images

    # ---- files ----

    def start_from(self, path: str | Path) -> str:
        """Take the weights of another model that fit, and say which do not. Table rows belong to a vocabulary.

        Raises InputError for a file that is no CLIP, or if nothing fits.
        """
        other, own = CLIP.load(path), self.state_dict()
        fits = {name: x for name, x in other.state_dict().items() if name in own and x.shape == own[name].shape}
        if self.arch["text_options"].get("vocabulary") != other.arch["text_options"].get("vocabulary"):
            fits.pop("towers.text.table.weight", None)
        if all(x.ndim < 2 for x in fits.values()):
            raise InputError(f"nothing in {path} fits this model: train one with the same flags, or leave out --init")
        left = self.load_state_dict(fits, strict=False).missing_keys
        return f"{len(fits)} of {len(own)} tensors; new are {', '.join(left) or 'none'}"

    def save(self, path: str | Path) -> None:
        """Write weights, architecture, config and metrics to one file, all that `CLIP.load` needs.

        The file appears whole or not at all. Raises InputError if the folder cannot be written.
        """
        save_checkpoint(path, "CLIP", self.content())

    def content(self) -> dict:
        """What a file holds of the model: plain values and tensors."""
        content = {"arch": self.arch, "config": self.config, "metrics": self.metrics, "state_dict": self.state_dict()}
        return content | {"fingerprint": self.fingerprint()}

    def save_pretrained(
        self, save_directory: str | Path, *, repo_id: str | None = None, push_to_hub: bool = False, **options
    ) -> str | None:
        """Write model.safetensors, config.json and a model card, README.md; with `push_to_hub` to the hub, too.

        Each file appears whole or not at all. Raises InputError if the folder cannot be written.
        """
        from deploy.pretrained import write  # training needs none of it

        write(self, folder := Path(save_directory))
        return self.push_to_hub(repo_id or folder.name, **options) if push_to_hub else None

    @classmethod
    def from_pretrained(cls, source: str | Path, **options) -> "CLIP":
        """As `load`, with its options. Or a repository OWNER/NAME on the Hugging Face hub, with the mixin's options."""
        if os.path.exists(source) or str(source).count("/") != 1:
            return cls.load(source, **options)
        return super().from_pretrained(source, **options)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, device="cpu", text_model: str | None = None, **download) -> "CLIP":
        folder = snapshot_download(model_id, allow_patterns=["*.json", "*.safetensors"], **download)
        return cls.load(folder, device, text_model)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu", text_model: str | None = None) -> "CLIP":
        """Rebuild the model from its file, or from a folder that `save_pretrained` wrote, in eval mode.

        `text_model`: the new path of the language model, if it moved. Language models other than albert-base-v2 are
        downloaded only if passed here. Raises InputError for a file that is no CLIP, or if its language model is not
        available or has other weights than in training.
        """
        device, checkpoint = pick_device(str(device)), load_checkpoint(path, "CLIP")
        try:
            options = dict(checkpoint["arch"]["text_options"])
            if "text_model" in options:  # never download because a file says so
                options |= {"text_model": text_model or options["text_model"], "download": text_model is not None}
            elif text_model is not None:
                raise InputError("it has no language model: leave out the text model")
            model = cls(**checkpoint["arch"] | {"text_options": options})
            model.load_state_dict(checkpoint["state_dict"])
            model.config, model.metrics = dict(checkpoint["config"]), dict(checkpoint["metrics"])
            if model.fingerprint() != checkpoint["fingerprint"]:
                if not model.towers["text"].frozen_hash:
                    raise InputError("its weights were changed after it was saved: train again")
                raise InputError(
                    "its language model has other weights than in training: name the right one's folder with"
                    " CLIP.load(path, text_model=...) or --text-model"
                )
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        except Exception as error:  # a file can hold anything
            raise InputError(f"{path} holds another architecture than this version builds: {short(error)}") from None
        return model.to(device).eval()


def pixels(images, size: tuple[int, int] | None = None) -> Tensor:
    """Pillow images, arrays and tensors, or a list of them -> a tensor of the same pixels.

    Pillow images become grey; or [C, H, H] with `size` (C, H).

    Raises InputError for anything else.
    """
    if isinstance(images, Tensor):
        return images
    try:
        if isinstance(images, list | tuple):
            return torch.stack([pixels(one, size) for one in images])
        if isinstance(images, Image.Image) and size:
            return fit(images, *size)
        array = np.array(grey(images) if isinstance(images, Image.Image) else images)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))  # big-endian numbers too
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError):
        raise InputError("images must be one array of uint8 or float pixels, all of one size") from None


def fit(image: Image.Image, channels: int, side: int) -> Tensor:
    """A Pillow image, turned as its camera says, `on_background` -> a square, uint8 [channels, side, side]."""
    image = on_background(ImageOps.exif_transpose(image))
    image = grey(image, "L" if channels == 1 else "RGB").resize((side, side))
    return torch.from_numpy(np.array(image)).view(side, side, channels).permute(2, 0, 1)


def on_background(image: Image.Image) -> Image.Image:
    """A Pillow image whose transparent parts become white, or black if all that is visible is bright."""
    if not image.has_transparency_data:
        return image
    levels = np.asarray(image := image.convert("RGBA"))  # [H, W, 4]
    visible = levels[levels[..., 3] > 127, :3]
    background = "black" if visible.min(initial=255) > 127 and visible.size else "white"
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")


def grey(image: Image.Image, mode: str = "L") -> Image.Image:
    """A Pillow image of any mode with 8 bits a channel -> its grey levels, or its colours with `mode` RGB.

    Raises InputError for transparency (its background is unknown) and for modes with more bits.
    """
    if image.has_transparency_data:
        raise InputError("the image is transparent: put it on a background first, with Image.alpha_composite")
    if image.mode not in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"):
        raise InputError(f"mode {image.mode} has more than 8 bits: pass floats, such as np.array(image) / 65535")
    return (image.convert("RGB") if image.mode in ("P", "LAB", "HSV") else image).convert(mode)
