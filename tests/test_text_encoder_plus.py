import json
import shutil

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import templates
import text_encoder_plus
import train
from clip import CLIP
from conftest import run_train
from metrics import zero_shot_classifier
from my_utils import InputError
from templates import fill
from text_encoder_plus import TextEncoderPlus, load_language_model, mean_pool

# ---- templates ----


def test_templates_are_many_of_several_kinds_and_split():
    for_training, held_out = templates.TRAIN_TEMPLATES, templates.HELD_OUT_TEMPLATES
    assert len(for_training) >= 30
    assert len(held_out) >= 10
    assert len({*for_training, *held_out, *templates.BARE_TEMPLATES}) == len(for_training) + len(held_out) + 2
    for template in (*for_training, *held_out):
        assert ("{word}" in template) != ("{numeral}" in template), template
    assert sum("{numeral}" in template for template in for_training) >= 5
    assert fill("a {word}, a {numeral}", 7) == "a seven, a 7"


def test_sentences_that_are_no_digit_name_none():
    others = templates.OTHER_SENTENCES
    words = {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"}
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
    torch.testing.assert_close(encoder(sentences), torch.stack(rows), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("frozen", [True, False])
def test_no_sentence_is_encoded_twice(tiny_albert, frozen, monkeypatch):
    seen = []
    run = TextEncoderPlus.run
    monkeypatch.setattr(TextEncoderPlus, "run", lambda self, model, s: seen.append(list(s)) or run(self, model, s))
    monkeypatch.setattr(text_encoder_plus, "POOLED", {})
    for _ in range(2):
        encoder = TextEncoderPlus(8, str(tiny_albert), frozen).train()
        for _ in range(3):
            encoder(torch.randint(10, (512,)))
        encoder.eval()(["a seven", "a seven", "three"])
        encoder(["a seven", "three"])
    if frozen:  # once per process
        everything = [sentence for chunk in seen for sentence in chunk]
        assert len(everything) == len(set(everything)) == 10 * len(templates.TRAIN_TEMPLATES) + 2
    else:  # once per batch
        assert all(len(chunk) == len(set(chunk)) for chunk in seen)
        assert [len(chunk) for chunk in seen[-2:]] == [2, 2]


def test_labels_draw_training_templates_at_random_only_in_training(tiny_albert):
    encoder = TextEncoderPlus(8, str(tiny_albert), True)
    same = torch.full((200,), 3)
    assert len(encoder.train()(same).unique(dim=0)) > 20
    assert len(encoder.eval()(same).unique(dim=0)) == 1
    torch.testing.assert_close(encoder(same[:1]), encoder(["This is a handwritten digit three."]))


def test_gradient_reaches_albert_only_when_it_is_not_frozen(tiny_albert):
    for frozen in (True, False):
        torch.manual_seed(0)
        encoder = TextEncoderPlus(8, str(tiny_albert), frozen).train()
        encoder(torch.arange(10)).square().sum().backward()
        assert encoder.projection[1].weight.grad.abs().sum() > 0
        names = {name for name, _ in encoder.named_parameters()}
        assert any(name.startswith("language_model.") for name in names) != frozen
        if not frozen:
            layer = encoder.language_model.encoder.albert_layer_groups[0].albert_layers[0]
            assert layer.ffn.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("bad", ["", "   ", 7, None])
def test_a_text_that_is_no_sentence_is_refused(tiny_albert, bad):
    with pytest.raises(InputError, match="must be a sentence"):
        TextEncoderPlus(8, str(tiny_albert), True)([bad])


# ---- the same surface, saved and loaded ----


def plus(tiny_albert, frozen) -> CLIP:
    torch.manual_seed(0)
    return CLIP(8, 2, text_encoder="plus", text_model=str(tiny_albert), freeze_text=frozen).eval()


@pytest.mark.parametrize("frozen", [True, False])
def test_a_checkpoint_holds_the_language_model_only_when_it_was_trained(tiny_albert, tmp_path, frozen):
    model = plus(tiny_albert, frozen)
    if not frozen:
        with torch.no_grad():
            next(model.text_encoder.language_model.parameters()).add_(1.0)
    model.save(tmp_path / "model.pth")
    again = CLIP.load(tmp_path / "model.pth")
    texts = ["a sloppy handwritten seven", "8"]
    torch.testing.assert_close(again.encode_text(texts), model.encode_text(texts))
    state = torch.load(tmp_path / "model.pth", weights_only=True)
    assert state["arch"]["text_model"] == str(tiny_albert)
    assert any("language_model" in name for name in state["state_dict"]) != frozen


def test_classification_with_one_prompt_or_an_ensemble(tiny_albert):
    model = plus(tiny_albert, True)
    one = zero_shot_classifier(model, ["a photo of the digit {word}"])
    torch.testing.assert_close(one, model.encode_text([fill("a photo of the digit {word}", d) for d in range(10)]))
    some = ["a photo of the digit {word}", "a messy {numeral}"]
    mean = torch.stack([model.encode_text([fill(template, d) for d in range(10)]) for template in some]).mean(dim=0)
    torch.testing.assert_close(zero_shot_classifier(model, some), mean / mean.norm(dim=1, keepdim=True))
    torch.testing.assert_close(zero_shot_classifier(model), zero_shot_classifier(model, templates.TRAIN_TEMPLATES))


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
    with pytest.raises(InputError, match="could it be fetched"):
        CLIP.load(tmp_path / "model.pth")
    moved = CLIP.load(tmp_path / "model.pth", text_model=str(tiny_albert))
    assert moved.arch["text_model"] == str(tiny_albert)


def test_no_network_is_one_message(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError) as error:
        load_language_model("no-such-person/no-such-model")
    assert "--text-model" in str(error.value)
    assert "model.safetensors" in str(error.value)


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

FLAGS = ["--text-encoder", "plus", "--width", 4, "--embed-dim", 16, "--device", "cpu", "--run-name", "run"]


def test_training_with_albert_that_learns_too(tiny_albert, tmp_path, data_path):
    done = run_train(*FLAGS, "--epochs", 1, "--batch-size", 512, "--text-model", tiny_albert, "--text-lr", 1e-3,
                     "--runs-dir", tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["test_zero_shot_accuracy"] > 0.5
    trained = CLIP.load(tmp_path / "best_model.pth").text_encoder.language_model.state_dict()
    before = AutoModel.from_pretrained(tiny_albert).state_dict()
    assert all(not torch.equal(value, before[name]) for name, value in trained.items() if "ffn.weight" in name)


def test_the_language_model_has_a_learning_rate_of_its_own(tiny_albert):
    args = train.build_parser().parse_args(["--lr", "0.5", "--text-lr", "0.25"])
    model = plus(tiny_albert, frozen=False)
    peaks = {
        id(p): group["peak_lr"] for group in train.make_optimizers(model, args)[0].param_groups for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        assert peaks[id(parameter)] == (0.25 if "language_model" in name else 0.5), name


def test_training_with_a_real_pretrained_encoder(tmp_path, data_path, minilm):
    done = run_train(
        *FLAGS, "--width", 8, "--epochs", 2, "--text-model", minilm, "--freeze-text", "--runs-dir", tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["test_zero_shot_accuracy"] > 0.97
    model = CLIP.load(tmp_path / "best_model.pth")
    text = model.encode_text(["a crooked seven drawn with a marker", "a crooked eight drawn with a marker"])
    digits = zero_shot_classifier(model)
    assert (text @ digits.T).argmax(dim=1).tolist() == [7, 8], "a sentence it has never seen finds its digit"


def test_training_with_a_model_that_is_nowhere_is_one_sentence(tmp_path, data_path):
    done = run_train(*FLAGS, "--text-model", tmp_path / "nowhere", "--runs-dir", tmp_path / "runs")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the language model")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()
