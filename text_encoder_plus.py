"""Text tower for free sentences: a pretrained language model, masked mean pooling, a projection.

digit -> English word -> random template (captions.py) -> language model -> mean over the tokens -> projection -> L2
(clip.py). Mean pooling as in Sentence-BERT (Reimers and Gurevych, 2019, arXiv 1908.10084); ALBERT: Lan et al., 2020,
arXiv 1909.11942.
"""

import hashlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from my_utils import InputError, is_valid_unicode, quote, short

TEXT_MODEL = "albert-base-v2"
FILES = "config.json, tokenizer.json and model.safetensors"  # of a language model
PATTERNS = ["*.json", "*.txt", "*.model", "*.safetensors"]  # what is downloaded of one
MAX_TOKENS = 64  # a longer sentence is cut
POOLED: dict[str, dict[str, Tensor]] = {}  # hash of a frozen model -> sentence -> [width], once per process
CHUNK = 256  # sentences in a pass through the language model


class TextEncoderPlus(nn.Module):
    """Rows that `tokenize` makes of any sentences -> features [B, embed_dim], not normalised.

    `text_model` is a Hugging Face name or a folder. `freeze_text` does not train the language model: it belongs neither
    to the parameters nor to the saved state, each sentence goes through it once per process, and a row is a sentence's
    pooled vector [width]. Otherwise a row holds token ids and their mask, [2, tokens]. `sentences` are not needed. A
    model that is not on this machine is downloaded if `download` is true, or if it is albert-base-v2.
    Raises InputError if the language model is not available.
    """

    def __init__(
        self,
        embed_dim: int,
        sentences: Sequence[str] = (),
        text_model: str = TEXT_MODEL,
        freeze_text: bool = False,
        download: bool = False,
    ):
        super().__init__()
        self.tokenizer, language_model = load_language_model(text_model, download or text_model == TEXT_MODEL)
        # A folder is kept as a whole path, so that it is found from anywhere.
        path = str(Path(text_model).resolve()) if os.path.isdir(text_model) else text_model
        self.options = {"text_model": path, "freeze_text": freeze_text}
        self.frozen_hash = hash_weights(language_model) if freeze_text else ""
        if freeze_text:  # in a tuple, out of torch's sight: neither optimised nor saved nor put into training mode
            self._hidden = (language_model.eval().requires_grad_(False),)
        else:
            self.language_model = language_model
        width = language_model.config.hidden_size
        self.projection = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, embed_dim))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """B strings -> a row for each. Raises InputError for a text that is empty or invalid Unicode."""
        for text in texts:
            if not text.strip() or not is_valid_unicode(text):
                raise InputError(f"the text {quote(text)} is empty, or holds a lone surrogate: write a sentence")
        return self.pooled(texts) if self.frozen_hash else self.token_rows(texts)

    def forward(self, rows: Tensor) -> Tensor:
        if self.frozen_hash:
            return self.projection(rows)  # [B, embed_dim]
        distinct, place = rows.unique(dim=0, return_inverse=True)  # the language model reads each text once
        # As float32, for what indexes the rows: backwards a row sums over all its copies, too many for bf16.
        return self.projection(self.run(self.language_model, distinct)).float()[place]  # [B, embed_dim]

    def token_rows(self, texts: Sequence[str]) -> Tensor:
        """B strings -> token ids and their mask, int64 [B, 2, tokens]. Warns once of a sentence that is cut."""
        length = max(len(ids) for ids in self.tokenizer(list(texts), verbose=False)["input_ids"])
        if length > MAX_TOKENS:
            warnings.warn(f"a text is too long and is cut: only its first {MAX_TOKENS} tokens are read", stacklevel=2)
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        return torch.stack([tokens["input_ids"], tokens["attention_mask"]], dim=1).to(self.device)

    def pooled(self, texts: Sequence[str]) -> Tensor:
        """B strings -> mean of their token vectors under the frozen language model, [B, width]."""
        known = POOLED.setdefault(self.frozen_hash, {})
        if missing := [text for text in dict.fromkeys(texts) if text not in known]:
            model = self._hidden[0].to(self.device)
            # Plain tensors whatever the caller's mode: they may serve training later.
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                known.update(zip(missing, self.run(model, self.token_rows(missing)), strict=True))
        return torch.stack([known[text].to(self.device) for text in texts])

    def run(self, model: nn.Module, rows: Tensor) -> Tensor:
        """Rows [S, 2, tokens] -> mean of the token vectors [S, width]."""
        pooled = []
        for ids, mask in (part.unbind(dim=1) for part in rows.split(CHUNK)):
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state  # [CHUNK, tokens, width]
            weight = mask[:, :, None].to(hidden.dtype)
            pooled.append((hidden * weight).sum(dim=1) / weight.sum(dim=1))
        return torch.cat(pooled)

    @property
    def device(self) -> torch.device:
        return self.projection[1].weight.device


def hash_weights(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_language_model(name: str, download: bool = True) -> tuple:
    """Tokenizer and model of a folder or a Hugging Face name. Raises InputError if it is not available or unusable."""
    if os.path.isdir(name):
        try:
            return read_language_model(name)
        except Exception as error:  # damaged files lead the library to any error
            reason = f"{short(error)} ({FILES} are needed)"
            raise InputError(f"the folder {name} holds no usable language model: {reason}") from None
    failed = ""
    for is_local in (True, False) if download else (True,):
        try:
            return read_language_model(snapshot_download(name, allow_patterns=PATTERNS, local_files_only=is_local))
        except Exception as error:  # it is not there, or in part
            failed = f" and cannot be downloaded ({short(error)})" if download else ""
    raise InputError(
        f"the language model {quote(name)} is not on this machine{failed}: name a folder that holds {FILES},"
        " or a name on the Hugging Face hub to download it, with --text-model or text_model="
    )


def read_language_model(folder: str) -> tuple:
    """Tokenizer and model, which have encoded a sentence. Raises whatever goes wrong."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Code in a model's folder is never run; weights come from safetensors, which hold no code.
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right", trust_remote_code=False)
    options = {"use_safetensors": True, "trust_remote_code": False, "dtype": torch.float32}
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True, **options)
    if missing := [key for key in info["missing_keys"] if "pooler" not in key]:
        raise ValueError(f"it lacks weights ({missing[0]}, ...)")
    if hasattr(model, "pooler"):
        model.pooler = None  # we pool ourselves: its weights would get no gradient, and may be missing
    with torch.no_grad():
        model.eval()(**tokenizer(["a seven", "a handwritten eight"], padding=True, return_tensors="pt"))
    return tokenizer, model
