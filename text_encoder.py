"""Text tower: an embedding table over the ten captions and a small MLP."""

import torch
from torch import Tensor, nn

from my_utils import InputError

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class TextEncoder(nn.Module):
    """Digit captions -> features [B, embed_dim], not normalised.

    A caption is a label 0..9 (in a LongTensor [B]) or a string, "7" or "seven" in any case.
    """

    def __init__(self, embed_dim: int):
        super().__init__()
        self.table = nn.Embedding(len(DIGIT_WORDS), embed_dim)
        self.mlp = nn.Sequential(nn.Linear(embed_dim, embed_dim), nn.ReLU(), nn.Linear(embed_dim, embed_dim))

    def forward(self, texts: Tensor | list[str]) -> Tensor:
        labels = texts if isinstance(texts, Tensor) else self.tokenize(texts)
        # As in CLIP.preprocess: looking at the values waits for the GPU, so training goes without.
        if not self.training and not ((labels >= 0) & (labels < len(DIGIT_WORDS))).all():
            raise InputError("digit labels must lie in 0..9")
        # All ten captions go through the MLP once, however large the batch is.
        features = self.mlp(self.table.weight)  # [10, embed_dim]
        return features[labels]  # [B, embed_dim]

    def tokenize(self, texts: list[str]) -> Tensor:
        """Strings -> labels [B]. Raises InputError for a text that names no digit."""
        words = [str(text).strip().lower() for text in texts]
        vocabulary = {str(digit): digit for digit in range(10)} | {word: i for i, word in enumerate(DIGIT_WORDS)}
        for text, word in zip(texts, words, strict=True):
            if word not in vocabulary:
                raise InputError(f"the table encoder does not know the text {text!r}: it reads 0..9 and zero..nine")
        return torch.tensor([vocabulary[word] for word in words], device=self.table.weight.device)
