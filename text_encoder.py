"""Text tower: an embedding table over the ten digits' names and a small MLP."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from captions import DIGIT_WORDS
from my_utils import InputError


class TextEncoder(nn.Module):
    """Rows that `tokenize` makes of texts, int64 [B] -> features [B, embed_dim], not normalised.

    A text is a digit's name, "7" or "seven", in any case.
    """

    def __init__(self, embed_dim: int):
        super().__init__()
        self.table = nn.Embedding(len(DIGIT_WORDS), embed_dim)
        self.mlp = nn.Sequential(nn.Linear(embed_dim, embed_dim), nn.ReLU(), nn.Linear(embed_dim, embed_dim))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """B strings -> int64 [B]. Raises InputError for a text that names no digit."""
        vocabulary = {str(digit): digit for digit in range(10)} | {word: i for i, word in enumerate(DIGIT_WORDS)}
        words = [text.strip().lower() for text in texts]
        for text, word in zip(texts, words, strict=True):
            if word not in vocabulary:
                raise InputError(f"the table encoder does not know the text {text!a}: it reads 0..9 and zero..nine")
        return torch.tensor([vocabulary[word] for word in words], device=self.table.weight.device)

    def forward(self, rows: Tensor) -> Tensor:
        return self.mlp(self.table(rows))  # [B, embed_dim]
