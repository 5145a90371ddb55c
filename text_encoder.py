"""Text tower: an embedding table over words; a caption is the sum of its words' vectors, then a small MLP."""

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from captions import words_of
from my_utils import InputError, quote


class TextEncoder(nn.Module):
    """Bag of words: rows that `tokenize` makes of texts, int64 [B, L] -> features [B, embed_dim], not normalised.

    Its vocabulary is the words of `sentences`, or a given one; word order does not count.
    """

    frozen_hash = ""  # it has no weights outside its state_dict

    def __init__(self, embed_dim: int, sentences: Sequence[str], vocabulary: Sequence[str] | None = None):
        super().__init__()
        words = vocabulary or list(dict.fromkeys(word for sentence in sentences for word in words_of(sentence)))
        self.options = {"vocabulary": list(words)}
        self.vocabulary = {word: i for i, word in enumerate(words, start=1)}  # 0 is padding
        self.table = nn.EmbeddingBag(len(words) + 1, embed_dim, mode="sum", padding_idx=0)
        self.mlp = nn.Sequential(nn.Linear(embed_dim, embed_dim), nn.ReLU(), nn.Linear(embed_dim, embed_dim))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """B strings -> int64 [B, L], each text's words. Raises InputError for a text with no word or an unknown one."""
        rows = []
        for text in texts:
            words = words_of(text)
            if not words:
                raise InputError(f"the text {quote(text)} has no word: name a digit, such as 'seven'")
            for word in words:
                if word not in self.vocabulary:
                    raise InputError(
                        f"the word {quote(word)} in {quote(text)} is not in the vocabulary: {self.hint(word)}"
                    )
            rows.append(torch.tensor([self.vocabulary[word] for word in words]))
        return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.table.weight.device)

    def hint(self, word: str) -> str:
        """What to do about an unknown word."""
        near = difflib.get_close_matches(word, self.vocabulary, n=1)
        instead = f"perhaps {quote(near[0])}; " if near else ""
        some = ", ".join(list(self.vocabulary)[:10])
        return f"{instead}it has {some} ... (model.arch['text_options']); --text-encoder plus reads any sentence"

    def forward(self, rows: Tensor) -> Tensor:
        return self.mlp(self.table(rows))  # [B, embed_dim]


def plus(*arguments, **options) -> nn.Module:
    """text_encoder_plus.py: any sentence, through a pretrained language model."""
    from text_encoder_plus import TextEncoderPlus  # transformers takes seconds to import

    return TextEncoderPlus(*arguments, **options)


# Each is called with (embed_dim, sentences, **options) and has `tokenize`, `options` and `frozen_hash`.
TEXT_ENCODERS = {"table": TextEncoder, "plus": plus}
