import json
import re
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

import text_encoder_plus
from captions import DIGIT_WORDS, TRAIN_TEMPLATES, Texts, fill_templates
from clip import CLIP
from conftest import TINY, train_here
from my_utils import InputError
from text_encoder_plus import TextEncoderPlus, load_language_model

SENTENCES = fill_templates(TRAIN_TEMPLATES)
BOTH = pytest.mark.parametrize("freeze", [True, False], ids=["frozen", "trained"])


def plus(folder, freeze: bool) -> CLIP:
    torch.manual_seed(0)
    options = {"text_model": str(folder), "freeze_text": freeze}
    return CLIP(8, width=2, captions="digit", text_encoder="plus", text_options=options).eval()


def test_templates_are_many_and_say_nothing_that_is_not_known():
    assert len(set(TRAIN_TEMPLATES)) == len(TRAIN_TEMPLATES) >= 30
    assert all(("{word}" in template) != ("{numeral}" in template) for template in TRAIN_TEMPLATES)
    lies = r"slant|thin|thick|bold|neat|messy|sloppy|hurried|child|crooked|wobbly|pen\b|pencil|ink\b|marker|chalk"
    assert not re.search(lies, " ".join(TRAIN_TEMPLATES))


# ---- the encoder, with a tiny ALBERT from disk ----


@BOTH
def test_the_encoder_equals_a_reference_without_padding(tiny_albert, freeze):
    """One sentence at a time through transformers' own model, mean over tokens, projection."""
    encoder = TextEncoderPlus(8, text_model=str(tiny_albert), freeze_text=freeze).eval()
    sentences = ["a sloppy handwritten seven", "three", "Which digit is it? It is two.", "three"]
    model, tokenizer = AutoModel.from_pretrained(tiny_albert).eval(), AutoTokenizer.from_pretrained(tiny_albert)
    rows = []
    for sentence in sentences:
        hidden = model(torch.tensor([tokenizer(sentence)["input_ids"]])).last_hidden_state
        rows.append(encoder.projection(hidden[0].mean(dim=0)))
    torch.testing.assert_close(encoder(encoder.tokenize(sentences)), torch.stack(rows), atol=1e-5, rtol=1e-4)


@BOTH
def test_no_sentence_is_encoded_twice(tiny_albert, freeze, monkeypatch):
    seen, run = [], TextEncoderPlus.run
    monkeypatch.setattr(TextEncoderPlus, "run", lambda self, model, rows: seen.append(rows) or run(self, model, rows))
    monkeypatch.setattr(text_encoder_plus, "POOLED", {})
    for _ in range(2):
        model = plus(tiny_albert, freeze).train()
        for _ in range(3):
            model.encode_text(Texts(SENTENCES, torch.randint(len(SENTENCES), (512,))))
        model.eval().encode_text(["a quiet seven", "a quiet seven", "three"])
    if freeze:  # once per process
        assert sum(len(rows) for rows in seen) == len(SENTENCES) + 2
    else:  # once per batch
        assert all(len(rows) == len(rows.unique(dim=0)) for rows in seen)
        assert len(seen[-1]) == 2


@BOTH
def test_texts_embed_as_strings_do_and_train_after_inference(tiny_albert, freeze):
    model = plus(tiny_albert, freeze)
    texts = Texts(SENTENCES, torch.tensor([0, 299, 5, 0]))
    with torch.inference_mode():
        first = model.encode_text(texts)
    torch.testing.assert_close(first, model.encode_text(texts.strings()))
    later = model.train().encode_text(texts)
    torch.testing.assert_close(later, first)
    (later * torch.randn(4, 8)).sum().backward()
    encoder = model.towers["text"]
    assert encoder.projection[1].weight.grad.any()
    assert freeze == (not any(name.startswith("language_model.") for name, _ in encoder.named_parameters()))
    if not freeze:
        assert encoder.language_model.encoder.albert_layer_groups[0].albert_layers[0].ffn.weight.grad.any()


@pytest.mark.parametrize(
    ("bad", "message"),
    [("   ", "is empty"), (7, "must be a string"), ("a \ud83d seven", "lone surrogate")],
)
def test_a_text_that_is_no_sentence_is_refused(tiny_albert, bad, message):
    with pytest.raises(InputError, match=message) as error:
        plus(tiny_albert, True).encode_text(["a seven", bad])
    str(error.value).encode()  # it can be printed


@BOTH
def test_a_long_sentence_is_cut_with_a_warning(tiny_albert, freeze, monkeypatch):
    monkeypatch.setattr(text_encoder_plus, "POOLED", {})
    model = plus(tiny_albert, freeze)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode_text(["This is a handwritten digit seven."] * 3)
    long = "This is a handwritten digit, " * 30
    with pytest.warns(UserWarning, match="only its first 64 tokens are read"):
        embeds = model.encode_text([long + "seven", long + "eight", "eight"])
    torch.testing.assert_close(embeds[0], embeds[1])


# ---- saved, loaded, moved, downloaded ----


@BOTH
def test_a_checkpoint_holds_the_language_model_only_if_it_was_trained(tiny_albert, tmp_path, freeze):
    model = plus(tiny_albert, freeze)
    if not freeze:
        with torch.no_grad():
            next(model.towers["text"].language_model.parameters()).add_(1.0)
    model.save(tmp_path / "model.pth")
    texts = ["a sloppy handwritten seven", "8"]
    torch.testing.assert_close(CLIP.load(tmp_path / "model.pth").encode_text(texts), model.encode_text(texts))
    content = torch.load(tmp_path / "model.pth", weights_only=True)
    assert content["arch"]["text_options"] == {"text_model": str(tiny_albert), "freeze_text": freeze}
    assert freeze == (not any("language_model" in name for name in content["state_dict"]))


@pytest.fixture
def albert_copy(tiny_albert, tmp_path):
    return shutil.copytree(tiny_albert, tmp_path / "albert")


def rewrite_weights(folder, change) -> None:
    """Replace the weights of a language model, a dict of tensors, by those that `change` returns."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_loading_reports_a_language_model_that_is_gone_or_has_other_weights(tiny_albert, albert_copy, tmp_path):
    plus(albert_copy, True).save(tmp_path / "model.pth")
    rewrite_weights(albert_copy, lambda weights: {name: value + 1 for name, value in weights.items()})
    with pytest.raises(InputError, match="other weights than in training"):
        CLIP.load(tmp_path / "model.pth")
    shutil.rmtree(albert_copy)
    with pytest.raises(InputError, match="is not on this machine"):
        CLIP.load(tmp_path / "model.pth")
    moved = CLIP.load(tmp_path / "model.pth", text_model=str(tiny_albert))
    assert moved.arch["text_options"]["text_model"] == str(tiny_albert)


def test_a_language_model_that_a_file_names_is_downloaded_only_if_the_caller_names_it(
    tiny_albert, tmp_path, monkeypatch
):
    """albert-base-v2 alone, this program's own default, is downloaded for a file."""
    asked = []

    def not_here(name, allow_patterns, local_files_only):
        asked.extend([] if local_files_only else [name])
        raise OSError("no answer")

    path = tmp_path / "model.pth"
    plus(tiny_albert, True).save(path)
    content = torch.load(path, weights_only=True)
    monkeypatch.setattr(text_encoder_plus, "snapshot_download", not_here)

    def message(name: str, **options) -> str:
        content["arch"]["text_options"] = {"text_model": name, "freeze_text": True, "download": True}
        torch.save(content, path)
        with pytest.raises(InputError) as error:
            CLIP.load(path, **options)
        return str(error.value)

    assert "'somebody/else' is not on this machine: name a folder" in message("somebody/else")
    assert asked == []
    assert "cannot be downloaded (no answer): name a folder" in message("somebody/else", text_model="somebody/else")
    assert "no answer" in message("albert-base-v2")
    assert asked == ["somebody/else", "albert-base-v2"]


def test_a_folder_that_holds_no_usable_language_model_is_one_message(albert_copy):
    torch.save(AutoModel.from_pretrained(albert_copy).state_dict(), albert_copy / "pytorch_model.bin")
    (albert_copy / "model.safetensors").unlink()  # weights that may hold code are not read
    with pytest.raises(InputError, match=r"holds no usable language model.*model\.safetensors are needed"):
        load_language_model(str(albert_copy))
    (albert_copy / "config.json").write_text("{}")
    with pytest.raises(InputError, match="holds no usable language model"):
        load_language_model(str(albert_copy))


def test_code_in_the_folder_of_a_language_model_is_not_run(albert_copy, tmp_path):
    config = json.loads((albert_copy / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"}, "model_type": "evil"}
    (albert_copy / "config.json").write_text(json.dumps(config))
    (albert_copy / "evil.py").write_text(f"open({str(tmp_path / 'boom')!r}, 'w')\n")
    with pytest.raises(InputError, match="holds no usable language model"):
        load_language_model(str(albert_copy))
    assert not (tmp_path / "boom").exists()


def test_missing_weights_are_refused_but_for_those_of_the_pooler(albert_copy, tmp_path):
    rewrite_weights(albert_copy, lambda weights: {k: v for k, v in weights.items() if "pooler" not in k})
    plus(albert_copy, True).save(tmp_path / "model.pth")
    CLIP.load(tmp_path / "model.pth")  # the same weights: none were drawn at random
    rewrite_weights(albert_copy, lambda weights: {k: v for k, v in weights.items() if "ffn" not in k})
    with pytest.raises(InputError, match="lacks weights"):
        load_language_model(str(albert_copy))


# ---- training ----

PLUS = [*TINY, "--text-encoder", "plus", "--embed-dim", 16, "--run-name", "run"]


def test_training_moves_the_language_model_too(tiny_albert, tmp_path, small_mnist, monkeypatch):
    monkeypatch.setattr("training.optim.TEXT_LR", 1e-3)  # its weights are random, so there is much to learn
    train_here(*PLUS, "--epochs", 2, "--batch-size", 100, "--text-model", tiny_albert, "--runs-dir", tmp_path)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["test_digit_accuracy"] > 0.5
    trained = CLIP.load(tmp_path / "best_model.pth").towers["text"].language_model.state_dict()
    before = AutoModel.from_pretrained(tiny_albert).state_dict()
    assert all(not torch.equal(value, before[name]) for name, value in trained.items() if "ffn.weight" in name)


def test_training_with_a_real_frozen_language_model_reads_new_sentences(tmp_path, data_path, minilm):
    flags = ["--width", 8, "--epochs", 1, "--text-model", minilm, "--freeze-text", "--runs-dir", tmp_path]
    train_here(*PLUS, *flags)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["test_digit_accuracy"] > 0.95
    model = CLIP.load(tmp_path / "best_model.pth")
    texts = model.encode_text([f"a crooked {word} drawn with a marker" for word in DIGIT_WORDS])
    assert (texts @ model.zero_shot_classifier().T).argmax(dim=1).tolist()[7:9] == [7, 8]
