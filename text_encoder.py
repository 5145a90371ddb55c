"""Text tower: an embedding table over the ten captions and a small MLP."""

import torch
from torch import Tensor, nn

from my_utils import InputError

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def check_labels(labels: Tensor, training: bool) -> Tensor:
    """Digit labels of any integer type, [B] or a single one -> int64 [B]. Raises InputError for anything else."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool or labels.ndim > 1:
        raise InputError(f"digit labels must be integers [B], not {labels.dtype} {list(labels.shape)}")
    labels = labels.long().reshape(-1)
    # Looking at the values waits for the GPU, so the training loop goes without there.
    if not (training and labels.is_cuda) and not ((labels >= 0) & (labels < len(DIGIT_WORDS))).all():
        raise InputError("digit labels must lie in 0..9")
    return labels


class TextEncoder(nn.Module):
    """Digit captions -> features [B, embed_dim], not normalised.

    A caption is a label 0..9 (in a LongTensor [B]) or a string, "7" or "seven" in any case.
    """

    def __init__(self, embed_dim: int):
        super().__init__()
        self.class_prompts = [[word] for word in DIGIT_WORDS]  # what a digit is called, for zero-shot classification
        self.table = nn.Embedding(len(DIGIT_WORDS), embed_dim)
        self.mlp = nn.Sequential(nn.Linear(embed_dim, embed_dim), nn.ReLU(), nn.Linear(embed_dim, embed_dim))

    def forward(self, texts: Tensor | list[str]) -> Tensor:
        labels = texts if isinstance(texts, Tensor) else self.tokenize(texts)
        # All ten captions go through the MLP once, however large the batch is.
        # (As float32: backwards a row sums over all its copies, and in bf16 such a sum soon stops growing.)
        features = self.mlp(self.table.weight).float()  # [10, embed_dim]
        return features[labels]  # [B, embed_dim]

    def tokenize(self, texts: list[str]) -> Tensor:
        """Strings -> labels [B]. Raises InputError for a text that names no digit."""
        words = [str(text).strip().lower() for text in texts]
        vocabulary = {str(digit): digit for digit in range(10)} | {word: i for i, word in enumerate(DIGIT_WORDS)}
        for text, word in zip(texts, words, strict=True):
            if word not in vocabulary:
                raise InputError(f"the table encoder does not know the text {text!r}: it reads 0..9 and zero..nine")
        return torch.tensor([vocabulary[word] for word in words], device=self.table.weight.device)
