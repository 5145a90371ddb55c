"""Text towers over a table of word vectors: a bag of words that reads "not"; and two in which order counts, too."""

import difflib
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from captions import negated_words, words_of
from my_utils import InputError, quote


class WordEncoder(nn.Module):
    """What the three have in common: `tokenize` makes rows of texts, int64 [B, L], of the numbers of their words.

    A negated word has a negative number. The vocabulary is the words of `sentences`, or a given one.
    """

    frozen_hash = ""  # of weights outside the state_dict: there are none
    max_words: int | None = None  # of a text; None: any number

    def __init__(self, sentences: Sequence[str], vocabulary: Sequence[str] | None):
        super().__init__()
        words = vocabulary or list(dict.fromkeys(word for sentence in sentences for word in words_of(sentence)))
        self.options = {"vocabulary": list(words)}
        self.vocabulary = {word: i for i, word in enumerate(words, start=1)}  # 0 is padding

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """B strings -> int64 [B, L], each text's words, then zeros.

        Raises InputError for a text with no word or an unknown one.
        """
        rows = []
        for text in texts:
            words = negated_words(text)
            if not words:
                raise InputError(f"the text {quote(text)} has no word: name a digit, such as 'seven'")
            if self.max_words and len(words) > self.max_words:
                raise InputError(
                    f"the text {quote(text)} has {len(words)} words, more than {self.max_words}: shorten it"
                )
            if re.search("不(?!是)", text):
                raise InputError(f"the text {quote(text)} negates with 不 alone: write 不是, such as 七，不是粗体的")
            for word, _ in words:
                if word not in self.vocabulary:
                    raise InputError(
                        f"the word {quote(word)} in {quote(text)} is not in the vocabulary: {self.hint(word)}"
                    )
            rows.append([-self.vocabulary[word] if is_negated else self.vocabulary[word] for word, is_negated in words])
        longest_row = max(map(len, rows))
        rows = [row + [0] * (longest_row - len(row)) for row in rows]
        return torch.tensor(rows, device=self.table.weight.device)

    def hint(self, word: str) -> str:
        """What to do about an unknown word."""
        near = difflib.get_close_matches(word, self.vocabulary, n=1)
        instead = f"perhaps {quote(near[0])}; " if near else ""
        some = ", ".join(list(self.vocabulary)[:10])
        return f"{instead}it has {some} ... (model.arch['text_options']); --text-encoder plus reads any sentence"


class TextEncoder(WordEncoder):
    """Bag of words: rows [B, L] -> features [B, embed_dim], not normalised. The order of words does not count.

    A negated word enters with its vector times `negation`, at first -1: what "not" does to one word it does to all.
    """

    def __init__(self, embed_dim: int, sentences: Sequence[str], vocabulary: Sequence[str] | None = None):
        super().__init__(sentences, vocabulary)
        self.table = nn.Embedding(len(self.vocabulary) + 1, embed_dim, padding_idx=0)
        self.negation = nn.Parameter(-torch.ones(embed_dim))
        self.linear = nn.Linear(embed_dim, embed_dim)

    def forward(self, rows: Tensor) -> Tensor:
        words = self.table(rows.abs())  # [B, L, embed_dim]
        words = torch.where(rows[..., None] < 0, words * self.negation, words)
        return self.linear(words.sum(dim=1))  # [B, embed_dim]


class OrderTextEncoder(WordEncoder):
    """The least that is no bag of words: each word's vector times a vector of its place, summed; then an MLP."""

    def __init__(self, embed_dim: int, sentences: Sequence[str], vocabulary=None, max_words: int | None = None):
        super().__init__(sentences, vocabulary)
        self.options["max_words"] = self.max_words = max_words or longest(sentences)
        self.table = nn.Embedding(len(self.vocabulary) + 1, embed_dim, padding_idx=0)
        self.places = nn.Embedding(self.max_words, embed_dim)
        self.mlp = nn.Sequential(nn.Linear(embed_dim, embed_dim), nn.ReLU(), nn.Linear(embed_dim, embed_dim))

    def forward(self, rows: Tensor) -> Tensor:
        # (Without the signs: what "not" means is learned from its place.)
        words = self.table(rows.abs()) * self.places.weight[: rows.shape[1]]  # [B, L, embed_dim]
        return self.mlp(words.sum(dim=1))  # [B, embed_dim]


class TransformerTextEncoder(WordEncoder):
    """Two layers of self-attention over words and places (Vaswani et al., 2017, arXiv 1706.03762), then their mean."""

    width, heads, layers = 64, 4, 2

    def __init__(self, embed_dim: int, sentences: Sequence[str], vocabulary=None, max_words: int | None = None):
        super().__init__(sentences, vocabulary)
        self.options["max_words"] = self.max_words = max_words or longest(sentences)
        self.table = nn.Embedding(len(self.vocabulary) + 1, self.width, padding_idx=0)
        self.places = nn.Embedding(self.max_words, self.width)
        options = {"dropout": 0.0, "batch_first": True, "norm_first": True}
        layer = nn.TransformerEncoderLayer(self.width, self.heads, 4 * self.width, **options)
        norm = nn.LayerNorm(self.width)
        self.attention = nn.TransformerEncoder(layer, self.layers, norm, enable_nested_tensor=False)
        for parameter in self.attention.parameters():  # torch starts all layers with the same weights
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.normal_(self.places.weight, std=0.1)
        self.projection = nn.Linear(self.width, embed_dim)

    def forward(self, rows: Tensor) -> Tensor:
        is_word = rows != 0  # [B, L]
        words = self.table(rows.abs()) + self.places.weight[: rows.shape[1]]  # [B, L, width]
        words = self.attention(words, src_key_padding_mask=~is_word) * is_word[..., None]
        return self.projection(words.sum(dim=1) / is_word.sum(dim=1, keepdim=True))  # [B, embed_dim]


def longest(sentences: Sequence[str]) -> int:
    """The number of words of the longest sentence: places behind it are never trained."""
    return max(len(words_of(sentence)) for sentence in sentences)


def plus(*arguments, **options) -> nn.Module:
    """text_encoder_plus.py: any sentence, through a pretrained language model."""
    from text_encoder_plus import TextEncoderPlus  # transformers takes seconds to import

    return TextEncoderPlus(*arguments, **options)


# Each is called with (embed_dim, sentences, **options) and has `tokenize`, `options` and `frozen_hash`.
TEXT_ENCODERS = {"table": TextEncoder, "order": OrderTextEncoder, "transformer": TransformerTextEncoder, "plus": plus}
