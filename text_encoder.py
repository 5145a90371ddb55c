"""Text tower: an embedding table over words; a caption is the sum of its words' vectors, then a small MLP."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from captions import DIGIT_WORDS
from my_utils import InputError, short

NUMERALS = {str(digit): word for digit, word in enumerate(DIGIT_WORDS)}


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case; a numeral is its word: "7" and "seven" are one."""
    return [NUMERALS.get(word, word) for word in re.findall(r"[\w']+", text.lower())]


class TextEncoder(nn.Module):
    """Rows that `tokenize` makes of texts, int64 [B, L] -> features [B, embed_dim], not normalised.

    It knows the words of `sentences` and no others. Their order does not count.
    """

    def __init__(self, embed_dim: int, sentences: Sequence[str]):
        super().__init__()
        words = dict.fromkeys(word for sentence in sentences for word in words_of(sentence))
        self.vocabulary = {word: i for i, word in enumerate(words, start=1)}  # 0 fills up shorter texts
        self.table = nn.EmbeddingBag(len(self.vocabulary) + 1, embed_dim, mode="sum", padding_idx=0)
        self.mlp = nn.Sequential(nn.Linear(embed_dim, embed_dim), nn.ReLU(), nn.Linear(embed_dim, embed_dim))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """B strings -> int64 [B, L], each text's words. Raises InputError for a text with no word or an unknown one."""
        rows = []
        for text in texts:
            words = words_of(text)
            if not words:
                raise InputError(f"the text {short(ascii(text))} has no word: name a digit, such as 'seven'")
            for word in words:
                if word not in self.vocabulary:
                    raise InputError(
                        f"the table encoder does not know the word {short(ascii(word))} in {short(ascii(text))}: it"
                        f" knows {self.known()}; --text-encoder plus reads any sentence"
                    )
            rows.append(torch.tensor([self.vocabulary[word] for word in words]))
        return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.table.weight.device)

    # torch saves this with the weights and hands it back on loading: the vectors are those of these words.

    def get_extra_state(self) -> list[str]:
        return list(self.vocabulary)

    def set_extra_state(self, words: list[str]) -> None:
        if words != list(self.vocabulary):
            raise InputError("it was trained on other words than this version's captions have: train it again")

    def known(self) -> str:
        """The words for a message: all where they are few."""
        words = [word for word in self.vocabulary if word not in DIGIT_WORDS]
        return "0..9 and zero..nine" + (f", and {len(words)} words such as thick, leaning, left" if words else "")

    def forward(self, rows: Tensor) -> Tensor:
        return self.mlp(self.table(rows))  # [B, embed_dim]
