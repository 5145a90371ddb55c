import json
import re
import shutil
import warnings

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import captions
import text_encoder_plus
from captions import Texts, all_sentences, fill
from clip import CLIP
from conftest import TINY, train_here
from evaluation.metrics import digit_classifier
from my_utils import InputError
from text_encoder_plus import TextEncoderPlus, load_language_model, mean_pool
from training.optimizers import make_optimizers
from training.settings import read_flags

# ---- templates ----


def test_templates_are_many_of_several_kinds_and_split():
    for_training, held_out = captions.TRAIN_TEMPLATES, captions.HELD_OUT_TEMPLATES
    assert len(for_training) >= 30
    assert len(held_out) >= 10
    assert len({*for_training, *held_out, *captions.BARE_TEMPLATES}) == len(for_training) + len(held_out) + 2
    for template in (*for_training, *held_out):
        assert ("{word}" in template) != ("{numeral}" in template), template
    assert sum("{numeral}" in template for template in for_training) >= 5
    assert fill("a {word}, a {numeral}", 7) == "a seven, a 7"
    lies = r"slant|thin|thick|bold|neat|messy|sloppy|hurried|child|crooked|wobbly|pen\b|pencil|ink\b|marker|chalk"
    assert not re.search(lies, " ".join(for_training)), "none says what is not measured"


def test_sentences_that_are_no_digit_name_none():
    others = captions.OTHER_SENTENCES
    words = set(captions.DIGIT_WORDS)
    for sentence in others:
        assert not words & set(sentence.lower().strip(".!?").split()), sentence
        assert not any(character.isdigit() for character in sentence), sentence
    assert len(set(others)) == len(others)


# ---- the encoder, with a tiny ALBERT from disk ----


def test_pooling_is_the_mean_over_the_real_tokens():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]], [[5.0, 5.0], [7.0, 1.0], [0.0, 3.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert torch.equal(mean_pool(hidden, mask), torch.tensor([[2.0, 4.0], [4.0, 3.0]]))


@pytest.mark.parametrize("frozen", [True, False])
def test_encoder_equals_a_reference_written_by_hand(tiny_albert, frozen):
    """Sentences one at a time, so without padding, each through the model, mean over tokens, projection."""
    encoder = TextEncoderPlus(8, str(tiny_albert), frozen).eval()
    sentences = ["a sloppy handwritten seven", "three", "Which digit is it? It is two.", "three"]
    model, tokenizer = AutoModel.from_pretrained(tiny_albert).eval(), AutoTokenizer.from_pretrained(tiny_albert)
    rows = []
    for sentence in sentences:
        hidden = model(torch.tensor([tokenizer(sentence)["input_ids"]])).last_hidden_state
        rows.append(encoder.projection(hidden[0].mean(dim=0)))
    torch.testing.assert_close(encoder(encoder.tokenize(sentences)), torch.stack(rows), atol=1e-5, rtol=1e-4)


def plus(folder, frozen) -> CLIP:
    torch.manual_seed(0)
    return CLIP(8, width=2, captions="digit", text_encoder="plus", text_model=str(folder), freeze_text=frozen).eval()


SENTENCES = all_sentences(captions.TRAIN_TEMPLATES)


@pytest.mark.parametrize("frozen", [True, False])
def test_no_sentence_is_encoded_twice(tiny_albert, frozen, monkeypatch):
    seen = []
    run = TextEncoderPlus.run
    monkeypatch.setattr(TextEncoderPlus, "run", lambda self, model, rows: seen.append(rows) or run(self, model, rows))
    monkeypatch.setattr(text_encoder_plus, "POOLED", {})
    for _ in range(2):
        model = plus(tiny_albert, frozen).train()
        for _ in range(3):
            model.encode_text(Texts(SENTENCES, torch.randint(len(SENTENCES), (512,))))
        model.eval().encode_text(["a quiet seven", "a quiet seven", "three"])
        model.encode_text(["a quiet seven", "three"])
    if frozen:  # once per process
        assert sum(len(rows) for rows in seen) == len(SENTENCES) + 2
    else:  # once per batch
        assert all(len(rows) == len(rows.unique(dim=0)) for rows in seen)
        assert [len(rows) for rows in seen[-2:]] == [2, 2]


@pytest.mark.parametrize("frozen", [True, False])
def test_texts_of_a_list_embed_as_strings_do_in_any_mode(tiny_albert, frozen):
    model = plus(tiny_albert, frozen)
    texts = Texts(SENTENCES, torch.tensor([0, 299, 5, 0]))
    with torch.inference_mode():
        first = model.encode_text(texts)
    torch.testing.assert_close(first, model.encode_text(texts.strings()))
    later = model.train().encode_text(texts)  # from the rows that inference has read
    later.sum().backward()
    torch.testing.assert_close(later, first)


@pytest.mark.parametrize("frozen", [True, False])
def test_gradient_reaches_albert_only_when_it_is_not_frozen(tiny_albert, frozen):
    model = plus(tiny_albert, frozen).train()
    encoder = model.towers["text"]
    (model.encode_text(Texts(SENTENCES, torch.arange(0, 300, 30))) * torch.randn(10, 8)).sum().backward()
    assert encoder.projection[1].weight.grad.abs().sum() > 0
    names = {name for name, _ in encoder.named_parameters()}
    assert any(name.startswith("language_model.") for name in names) != frozen
    if not frozen:
        layer = encoder.language_model.encoder.albert_layer_groups[0].albert_layers[0]
        assert layer.ffn.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("kind", ["double", "bfloat16", "half"])
def test_models_of_other_float_types_embed(tiny_albert, kind, frozen):
    model, texts = plus(tiny_albert, frozen), ["a sloppy handwritten seven", "8"]
    exact = model.encode_text(texts)
    model.encode_text(Texts(SENTENCES, torch.arange(3)))  # rows that stay from before the change
    model = getattr(model, kind)()
    torch.testing.assert_close(model.encode_text(texts).float(), exact, atol=0.05, rtol=0)
    assert model.encode_text(Texts(SENTENCES, torch.arange(3))).shape == (3, 8)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("", "must be a sentence"),
        ("   ", "must be a sentence"),
        (7, "must be a string"),
        (None, "must be a string"),
        ("a \ud83d seven", "lone surrogate"),
        ("\udcff", "lone surrogate"),
    ],
)
def test_a_text_that_is_no_sentence_is_refused(tiny_albert, frozen, bad, message):
    with pytest.raises(InputError, match=message) as error:
        plus(tiny_albert, frozen).encode_text(["a seven", bad])
    str(error.value).encode()  # it can be printed


@pytest.mark.parametrize("frozen", [True, False])
def test_a_sentence_that_is_cut_is_warned_of(tiny_albert, frozen, monkeypatch):
    monkeypatch.setattr(text_encoder_plus, "POOLED", {})
    model = plus(tiny_albert, frozen)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode_text(["This is a handwritten digit seven."] * 3)
    long = "This is a handwritten digit, " * 30
    with pytest.warns(UserWarning, match="only its first 64 tokens are read"):
        a = model.encode_text([long + "seven"])
    with pytest.warns(UserWarning, match="only its first 64 tokens are read"):
        b = model.encode_text([long + "eight", "eight"])[:1]
    torch.testing.assert_close(a, b)


# ---- the same surface, saved and loaded ----


@pytest.mark.parametrize("frozen", [True, False])
def test_a_checkpoint_holds_the_language_model_only_when_it_was_trained(tiny_albert, tmp_path, frozen):
    model = plus(tiny_albert, frozen)
    if not frozen:
        with torch.no_grad():
            next(model.towers["text"].language_model.parameters()).add_(1.0)
    model.save(tmp_path / "model.pth")
    again = CLIP.load(tmp_path / "model.pth")
    texts = ["a sloppy handwritten seven", "8"]
    torch.testing.assert_close(again.encode_text(texts), model.encode_text(texts))
    state = torch.load(tmp_path / "model.pth", weights_only=True)
    assert state["arch"]["text_model"] == str(tiny_albert)
    assert any("language_model" in name for name in state["state_dict"]) != frozen


def test_classification_with_one_prompt_or_an_ensemble(tiny_albert):
    model = plus(tiny_albert, True)
    one = digit_classifier(model, ["a photo of the digit {word}"])
    torch.testing.assert_close(one, model.encode_text([fill("a photo of the digit {word}", d) for d in range(10)]))
    some = ["a photo of the digit {word}", "a messy {numeral}"]
    mean = torch.stack([model.encode_text([fill(template, d) for d in range(10)]) for template in some]).mean(dim=0)
    torch.testing.assert_close(digit_classifier(model, some), mean / mean.norm(dim=1, keepdim=True))
    torch.testing.assert_close(digit_classifier(model), digit_classifier(model, captions.TRAIN_TEMPLATES))


def test_loading_says_when_the_language_model_is_gone_or_another(tiny_albert, tmp_path):
    folder = tmp_path / "albert"
    shutil.copytree(tiny_albert, folder)
    plus(folder, True).save(tmp_path / "model.pth")
    language_model = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        next(language_model.parameters()).add_(1.0)
    language_model.save_pretrained(folder)
    with pytest.raises(InputError, match="other weights"):
        CLIP.load(tmp_path / "model.pth")
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="is not on this machine"):
        CLIP.load(tmp_path / "model.pth")
    moved = CLIP.load(tmp_path / "model.pth", text_model=str(tiny_albert))
    assert moved.arch["text_model"] == str(tiny_albert)


def test_what_a_checkpoint_names_is_not_fetched_unasked(tiny_albert, tmp_path, monkeypatch):
    """Only albert-base-v2, the one that this program names itself; any other when the user names it."""
    asked = []

    def not_here(name, local):
        raise OSError(f"{name} is not here")

    def ask(name, timeout):
        asked.append(name)
        raise OSError("no answer")

    plus(tiny_albert, True).save(tmp_path / "model.pth")
    content = torch.load(tmp_path / "model.pth", weights_only=True)
    monkeypatch.setattr(text_encoder_plus, "read_language_model", not_here)
    monkeypatch.setattr(text_encoder_plus, "model_info", ask)

    def load(name: str, **options) -> str:
        content["arch"]["text_model"] = name
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(InputError) as error:
            CLIP.load(tmp_path / "other.pth", **options)
        return str(error.value)

    assert "somebody/else is not on this machine" in (message := load("somebody/else"))
    assert "text_model=" in message
    assert "\n" not in message
    assert asked == []
    assert "no answer" in load("somebody/else", text_model="somebody/else")
    assert "no answer" in load("albert-base-v2")
    assert asked == ["somebody/else", "albert-base-v2"]


def test_no_network_is_one_message(monkeypatch):
    monkeypatch.setattr(text_encoder_plus.model_info.__self__, "endpoint", "http://127.0.0.1:9")
    with pytest.raises(InputError) as error:
        load_language_model("no-such-person/no-such-model")
    assert "--text-model" in str(error.value)
    assert "model.safetensors" in str(error.value)


@pytest.fixture
def albert_copy(tiny_albert, tmp_path):
    return shutil.copytree(tiny_albert, tmp_path / "copy")


def test_weights_that_are_no_safetensors_are_not_read(albert_copy):
    torch.save(AutoModel.from_pretrained(albert_copy).state_dict(), albert_copy / "pytorch_model.bin")
    (albert_copy / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"holds no usable language model.*model\.safetensors are needed"):
        load_language_model(str(albert_copy))


@pytest.mark.parametrize("known", [True, False])
def test_code_that_a_language_model_brings_is_not_run(albert_copy, tmp_path, known):
    config = json.loads((albert_copy / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"}
    config["model_type"] = "albert" if known else "evil"
    (albert_copy / "config.json").write_text(json.dumps(config))
    (albert_copy / "evil.py").write_text(f"open({str(tmp_path / 'boom')!r}, 'w')\n")
    if known:
        load_language_model(str(albert_copy))  # by transformers' own ALBERT
    else:
        with pytest.raises(InputError, match="holds no usable language model"):
            load_language_model(str(albert_copy))
    assert not (tmp_path / "boom").exists()


def test_a_folder_that_is_no_language_model_is_one_message(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="holds no usable language model"):
        load_language_model(str(tmp_path))


def test_a_model_without_pooler_weights_is_known_again(tiny_albert, tmp_path):
    """Such as one that was pretrained on masked words only: what its file lacks must not be drawn at random."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_albert, tmp_path / "albert")
    weights = load_file(tmp_path / "albert" / "model.safetensors")
    weights = {name: value for name, value in weights.items() if "pooler" not in name}
    save_file(weights, tmp_path / "albert" / "model.safetensors", metadata={"format": "pt"})
    plus(tmp_path / "albert", True).save(tmp_path / "model.pth")
    CLIP.load(tmp_path / "model.pth")


def test_weights_that_are_missing_are_never_made_up(tiny_albert, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_albert, tmp_path / "albert")
    weights = load_file(tmp_path / "albert" / "model.safetensors")
    weights = {name: value for name, value in weights.items() if "ffn" not in name}
    save_file(weights, tmp_path / "albert" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="lacks weights"):
        load_language_model(str(tmp_path / "albert"))


# ---- training ----

PLUS = [*TINY, "--text-encoder", "plus", "--embed-dim", 16, "--run-name", "run"]


def test_training_with_albert_that_learns_too(tiny_albert, tmp_path, small_mnist, monkeypatch):
    monkeypatch.setattr("training.optimizers.TEXT_LR", 1e-3)  # its weights are random, so there is much to learn
    train_here(*PLUS, "--epochs", 2, "--batch-size", 100, "--text-model", tiny_albert, "--runs-dir", tmp_path)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["test_digit_accuracy"] > 0.5
    trained = CLIP.load(tmp_path / "best_model.pth").towers["text"].language_model.state_dict()
    before = AutoModel.from_pretrained(tiny_albert).state_dict()
    assert all(not torch.equal(value, before[name]) for name, value in trained.items() if "ffn.weight" in name)


def test_the_language_model_has_a_learning_rate_of_its_own(tiny_albert, monkeypatch):
    monkeypatch.setattr("training.optimizers.TEXT_LR", 0.25)
    optimizers = make_optimizers(model := plus(tiny_albert, False), read_flags(["--lr", "0.5", "--muon-lr", "0"])[0])
    peaks = {id(p): group["peak_lr"] for o in optimizers for group in o.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert peaks[id(parameter)] == (0.25 if "language_model" in name else 0.5), name


def test_training_with_a_real_pretrained_encoder(tmp_path, data_path, minilm):
    flags = ["--width", 8, "--epochs", 1, "--text-model", minilm, "--freeze-text", "--runs-dir", tmp_path]
    train_here(*PLUS, *flags)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["test_digit_accuracy"] > 0.95
    model = CLIP.load(tmp_path / "best_model.pth")
    text = model.encode_text(["a crooked seven drawn with a marker", "a crooked eight drawn with a marker"])
    digits = digit_classifier(model)
    assert (text @ digits.T).argmax(dim=1).tolist() == [7, 8], "a sentence it has never seen finds its digit"


def test_training_with_a_model_that_is_nowhere_is_one_sentence(tmp_path, data_path):
    with pytest.raises(InputError, match=r"^the language model") as error:
        train_here(*PLUS, "--text-model", tmp_path / "nowhere", "--runs-dir", tmp_path / "runs")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()
