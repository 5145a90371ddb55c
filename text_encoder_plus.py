"""Text tower for free sentences: a pretrained language model, masked mean pooling, a projection.

digit -> English word -> random template -> language model -> mean over the tokens -> projection -> L2 (in clip.py).
Mean pooling as in Sentence-BERT (Reimers and Gurevych, 2019, arXiv 1908.10084); ALBERT: Lan et al., 2020,
arXiv 1909.11942.
"""

import hashlib
from pathlib import Path

import torch
from huggingface_hub import model_info
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from my_utils import InputError, short
from templates import TRAIN_TEMPLATES, fill

MAX_TOKENS = 64  # a longer sentence is cut
POOLED: dict[tuple[str, str], Tensor] = {}  # (hash of a frozen model, sentence) -> [width], once per process
HUB_TIMEOUT = 10  # seconds
CHUNK = 64  # sentences a pass through the language model, where no gradient is wanted


class TextEncoderPlus(nn.Module):
    """Any sentences, or digit labels -> features [B, embed_dim], not normalised.

    In training mode a label becomes a sentence of a random training template, otherwise of the first one.
    `text_model` is a Hugging Face name or a folder. `freeze_text` keeps the language model as it is: it is then
    no part of the parameters or of the saved state, and each sentence goes through it once per process.
    """

    def __init__(self, embed_dim: int, text_model: str, freeze_text: bool):
        super().__init__()
        self.tokenizer, language_model = load_language_model(text_model)
        self.text_model, self.frozen = text_model, freeze_text
        if freeze_text:
            # In a tuple, out of torch's sight: neither optimised nor saved nor put into training mode.
            self._hidden = (language_model.eval().requires_grad_(False),)
            self._fingerprint = hash_weights(language_model)
        else:
            self.language_model = language_model
            self._fingerprint = ""
        width = language_model.config.hidden_size
        self.projection = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, embed_dim))
        self.train_sentences = [fill(template, digit) for digit in range(10) for template in TRAIN_TEMPLATES]
        self.class_prompts = [[fill(template, digit) for template in TRAIN_TEMPLATES] for digit in range(10)]
        self._train_table: Tensor | None = None  # [10 * templates, width], of a frozen model

    def forward(self, texts: Tensor | list[str]) -> Tensor:
        if isinstance(texts, Tensor):
            return self.encode_labels(texts)
        for text in texts:
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"a text must be a sentence, not {text!r}")
        sentences = list(dict.fromkeys(texts))  # each once
        place = {sentence: i for i, sentence in enumerate(sentences)}
        index = torch.tensor([place[text] for text in texts], device=self.device)
        return self.project(self.pool(sentences))[index]  # [B, embed_dim]

    def encode_labels(self, labels: Tensor) -> Tensor:
        templates = len(TRAIN_TEMPLATES)
        drawn = torch.randint(templates, labels.shape, device=labels.device) if self.training else 0
        index = labels * templates + drawn  # [B], into train_sentences
        if self.frozen:
            # All training sentences go through the projection once, however large the batch is: a matrix
            # product of some hundred rows, and no look at which ones were drawn, which would wait for the GPU.
            if self._train_table is None or self._train_table.device != labels.device:
                self._train_table = self.pool(self.train_sentences)
            return self.project(self._train_table)[index]
        unique, inverse = index.unique(return_inverse=True)
        return self.project(self.pool([self.train_sentences[i] for i in unique.tolist()]))[inverse]

    def project(self, pooled: Tensor) -> Tensor:
        """As float32, for what indexes the rows: backwards a row sums over all its copies, too many for bf16."""
        return self.projection(pooled).float()  # [S, embed_dim]

    def pool(self, sentences: list[str]) -> Tensor:
        """Distinct sentences [S] -> mean of their token vectors [S, width]."""
        if not self.frozen:
            return self.run(self.language_model, sentences)
        key = self._fingerprint
        missing = [sentence for sentence in sentences if (key, sentence) not in POOLED]
        if missing:
            model = self._hidden[0].to(self.device)
            # Plain tensors whatever the caller's mode: they may serve training later.
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                for i in range(0, len(missing), CHUNK):
                    chunk = missing[i : i + CHUNK]
                    POOLED.update({(key, text): row for text, row in zip(chunk, self.run(model, chunk), strict=True)})
        return torch.stack([POOLED[key, sentence].to(self.device) for sentence in sentences])

    def run(self, model: nn.Module, sentences: list[str]) -> Tensor:
        tokens = self.tokenizer(sentences, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        tokens = tokens.to(self.device)
        hidden = model(**tokens).last_hidden_state  # [S, T, width]
        return mean_pool(hidden, tokens["attention_mask"])

    @property
    def device(self) -> torch.device:
        return self.projection[1].weight.device

    # torch saves this with the weights and hands it back on loading: a checkpoint without the frozen language
    # model's weights knows them again by their hash.

    def get_extra_state(self) -> str:
        return self._fingerprint

    def set_extra_state(self, fingerprint: str) -> None:
        if fingerprint != self._fingerprint:
            raise InputError(
                f"the language model {self.text_model} has other weights than the checkpoint was trained with:"
                " name the right one's folder with CLIP.load(path, text_model=...)"
            )


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Token vectors [S, T, width], mask [S, T] of 1 and 0 -> mean over the tokens that count, [S, width]."""
    weight = mask[:, :, None].to(hidden.dtype)
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1)


def hash_weights(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_language_model(name: str) -> tuple:
    """Tokenizer and model of a Hugging Face name or a local folder, what is on this machine first.

    Raises InputError when it cannot be had, lacks weights, or cannot encode sentences.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        try:
            return read_language_model(name, local=True)
        except Exception as error:  # whatever the library raises for a missing or damaged model
            if isinstance(error, InputError):
                raise
            if Path(name).is_dir():
                raise InputError(f"the folder {name} holds no usable language model: {short(error)}") from None
        try:
            model_info(name, timeout=HUB_TIMEOUT)  # one question; the loaders would ask for minutes
            return read_language_model(name, local=False)
        except Exception as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"the language model {name} is neither on this machine nor could it be fetched ({short(error)})."
                f" Download config.json, tokenizer.json and model.safetensors of {name} from its page on the Hugging"
                " Face hub into a folder, and name that folder with --text-model"
            ) from None
    finally:
        logging.set_verbosity(verbosity)


def read_language_model(name: str, local: bool) -> tuple:
    tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local)
    model, info = AutoModel.from_pretrained(name, local_files_only=local, output_loading_info=True, dtype=torch.float32)
    missing = [key for key in info["missing_keys"] if "pooler" not in key]
    if missing:
        raise InputError(f"the language model {name} lacks weights ({missing[0]}, ...): download it again")
    if hasattr(model, "pooler"):
        model.pooler = None  # pooling is our own: its weights would get no gradient, and are random where they lack
    try:
        with torch.no_grad():
            model.eval()(**tokenizer(["a seven", "a handwritten eight"], padding=True, return_tensors="pt"))
    except Exception as error:
        raise InputError(f"the language model {name} cannot encode sentences: {short(error)}") from None
    return tokenizer, model
