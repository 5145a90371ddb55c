"""A small ALBERT with random weights, as a folder that --text-model takes."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AlbertConfig, AlbertModel, PreTrainedTokenizerFast

from captions import TRAIN_TEMPLATES, attribute_captions, fill_templates

VOCABULARY = 400


def make_albert(folder: Path) -> Path:
    """Save a tokenizer, trained on the captions, and a model of two narrow layers into the folder. Returns it."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<pad>", "<unk>", "[CLS]", "[SEP]"])
    tokenizer.train_from_iterator([*fill_templates(TRAIN_TEMPLATES), *attribute_captions().sentences], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    sizes = {"vocab_size": VOCABULARY, "embedding_size": 16, "hidden_size": 32, "intermediate_size": 128}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = AlbertConfig(num_hidden_layers=2, num_attention_heads=1, **sizes, **dropout)
    AlbertModel(config).save_pretrained(folder)
    return folder
