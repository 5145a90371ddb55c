"""Build an ALBERT with random weights, of any size, and save it as a folder that `--text-model` takes.

    python -m benchmarks.make_albert FOLDER          the size of albert-base-v2

Its tokenizer is trained on the captions. Nothing in it is pretrained: it measures time and memory, not accuracy.
"""

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AlbertConfig, AlbertModel, PreTrainedTokenizerFast

from captions import HELD_OUT_TEMPLATES, TRAIN_TEMPLATES, all_sentences, described_captions

# Published sizes of albert-base-v2 (Lan et al., 2020, table 1, and the configuration on its model page).
BASE = {"vocab_size": 30_000, "embedding_size": 128, "hidden_size": 768, "num_hidden_layers": 12}


def make_albert(folder: str | Path, vocab_size: int = 400, embedding_size: int = 16, **sizes) -> Path:
    """Save tokenizer and model into the folder and return it. `sizes` goes to AlbertConfig."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<pad>", "<unk>", "[CLS]", "[SEP]"])
    sentences = all_sentences(TRAIN_TEMPLATES + HELD_OUT_TEMPLATES) + described_captions().sentences
    tokenizer.train_from_iterator(sentences, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(folder)
    hidden = sizes["hidden_size"]
    config = AlbertConfig(
        vocab_size=vocab_size,
        embedding_size=embedding_size,
        num_attention_heads=hidden // 64 or 1,
        intermediate_size=4 * hidden,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **sizes,
    )
    AlbertModel(config).save_pretrained(folder)
    return Path(folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("error: name the folder to write: python -m benchmarks.make_albert FOLDER")
    print(f"random weights in albert-base-v2's architecture: {make_albert(sys.argv[1], **BASE)}")
