import math

import numpy
import pytest
import torch

from captions import Texts
from clip import CLIP
from image_encoder import IMAGE_ENCODERS
from my_utils import InputError
from text_encoder import TextEncoder


@pytest.fixture
def model() -> CLIP:
    torch.manual_seed(0)
    return CLIP(embed_dim=8, width=2, init_temperature=0.1).eval()


@pytest.fixture
def path(tmp_path, model):
    """The file of a saved model."""
    model.save(tmp_path / "model.pth")
    return tmp_path / "model.pth"


@pytest.fixture
def change(path):
    """Replaces parts of the file's content."""

    def change(**parts):
        torch.save(torch.load(path, weights_only=True) | parts, path)
        return path

    return change


def digits(count: int, side: int = 28) -> torch.Tensor:
    """Noise, mostly dark as digits are: uint8 [count, side, side]."""
    noise = torch.rand(count, side, side, generator=torch.Generator().manual_seed(1))
    return (255 * noise**2).to(torch.uint8)


def test_logits_are_scaled_cosines_of_unit_vectors(model):
    images, texts = digits(3), ["zero", "1", "TWO ", "three"]
    output = model(images, texts)
    assert torch.equal(output.image_embeds, model.encode_image(images))
    assert torch.equal(output.text_embeds, model.encode_text(texts))
    for embeds in output[:2]:
        torch.testing.assert_close(embeds.norm(dim=1), torch.ones(len(embeds)))
    cosines = torch.cosine_similarity(output.image_embeds[:, None], output.text_embeds[None], dim=-1)
    torch.testing.assert_close(output.logits_per_image, cosines / 0.1)  # [3, 4]
    assert torch.equal(output.logits_per_text, output.logits_per_image.T)
    assert output.logit_scale.item() == pytest.approx(1 / 0.1), "the factor, not its logarithm"


@pytest.mark.parametrize(("captions", "minimum"), [("digit", 0.01), ("attributes", 0.1)])
def test_the_temperature_starts_at_its_setting_and_is_clamped_to_its_minimum(captions, minimum):
    model = CLIP(embed_dim=8, width=2, captions=captions, init_temperature=0.2)
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.2)
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    model.clamp_logit_scale()
    assert model.logit_scale.exp().item() == pytest.approx(1 / minimum)


def test_a_zero_shot_classifier_is_the_normalised_mean_of_its_paraphrases(model):
    texts = ["a seven", "seven", "an eight", "8"]
    means = model.encode_text(texts).view(2, 2, 8).mean(dim=1)
    torch.testing.assert_close(model.train().prompt_ensemble(texts, 2), means / means.norm(dim=1, keepdim=True))
    assert model.training, "it is in training mode as before"
    paraphrases = model.captions.all_paraphrases(model.captions.digit_ids)
    expected = model.prompt_ensemble(paraphrases.strings(), model.captions.paraphrases)
    torch.testing.assert_close(model.zero_shot_classifier(), expected)


@pytest.mark.parametrize("image_encoder", sorted(IMAGE_ENCODERS.keys() - {"scene"}))
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_of_other_float_types_embed_and_are_saved(tmp_path, dtype, image_encoder):
    torch.manual_seed(0)
    model = CLIP(8, image_encoder, 2).eval()
    exact = model(digits(5), ["7", "two"])
    model.to(dtype).save(tmp_path / "model.pth")
    for coarse in (model, CLIP.load(tmp_path / "model.pth")):
        for found, expected in zip(coarse(digits(5), ["7", "two"])[:2], exact[:2], strict=True):
            torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0)


def test_a_list_of_sentences_is_tokenized_once(model, monkeypatch):
    seen, tokenize = [], TextEncoder.tokenize
    monkeypatch.setattr(TextEncoder, "tokenize", lambda self, texts: seen.append(texts) or tokenize(self, texts))
    sentences = ("seven", "2", "two")
    for index in ([0, 2, 1, 0], [1]):
        texts = Texts(sentences, torch.tensor(index))
        with torch.inference_mode():
            model.encode_text(texts)
        assert torch.equal(model.encode_text(texts), model.train().encode_text(texts.strings()))
    assert seen.count(sentences) == 1
    others = Texts(("one", "two", "three"), torch.tensor([0]))
    assert torch.equal(model.encode_text(others), model.encode_text("one"))


def test_a_caption_is_the_sum_of_its_words():
    torch.manual_seed(0)
    encoder = TextEncoder(8, ["a bold seven leaning to the right", "two"])
    texts = ["bold 7", " Two\n", "a bold, bold SEVEN leaning right"]
    encoder.negation.data.normal_()
    bold, seven, two, a, leaning, right = (
        encoder.table.weight[encoder.vocabulary[word]] for word in ("bold", "seven", "two", "a", "leaning", "right")
    )
    sums = torch.stack([bold + seven, two, a + bold + bold + seven + leaning + right])
    embeds = encoder(encoder.tokenize(texts))
    torch.testing.assert_close(embeds, encoder.linear(sums))
    embeds.sum().backward()
    assert encoder.table.weight.grad[0].eq(0).all(), "padding learns nothing"


def test_not_multiplies_each_word_up_to_the_comma_by_one_vector():
    torch.manual_seed(0)
    encoder = TextEncoder(8, ["not a bold seven"])
    encoder.negation.data.normal_()
    not_, a, bold, seven = (encoder.table.weight[encoder.vocabulary[word]] for word in ("not", "a", "bold", "seven"))
    sums = torch.stack([not_ + encoder.negation * (a + seven) + bold, a + seven + not_ + encoder.negation * bold])
    embeds = encoder(encoder.tokenize(["Not a 7, bold", "a seven, not bold"]))
    torch.testing.assert_close(embeds, encoder.linear(sums))


def test_a_text_that_cannot_be_read_is_one_sentence_that_names_the_word(model):
    for text, message in {
        "thikc 7": r"the word 'thikc' in 'thikc 7' is not in the vocabulary: .*'thick'.* it has ",
        "7.0": "the word '7.0' in '7.0' is not in the vocabulary",
        "-7": "the word '-7'",
        "the 7th": "the word '7th' in 'the 7th'",
        "不粗的七": "the text .* negates with 不 alone: write 不是",
        "紫色的七": "the word '紫' in '紫色的七'",
        "x" * 9000: "the word 'xxxxx",
        "": "the text '' has no word: name a digit, such as 'seven'",
        "?!": r"the text '\?!' has no word",
        "\ud800": r"the text '\\ud800' has no word",
    }.items():
        with pytest.raises(InputError, match=f"^{message}") as error:
            model.encode_text(["seven", text])
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 400
        str(error.value).encode()  # it can be printed


@pytest.mark.parametrize("bad", [7, [], {"seven"}, ["seven", None], torch.tensor([7]), numpy.array(["7"])], ids=str)
def test_texts_that_are_no_strings_are_refused(model, bad):
    with pytest.raises(InputError, match="texts must be a string or a list of strings"):
        model.encode_text(bad)


# ---- files ----


@pytest.mark.parametrize("image_encoder", sorted(IMAGE_ENCODERS))
def test_a_file_alone_rebuilds_the_model(tmp_path, image_encoder):
    arch, images = {"embed_dim": 12, "width": 3, "init_logit_bias": -2.2, "loss": "sigmoid"}, digits(4)
    if image_encoder == "scene":
        arch, images = arch | {"captions": "scenes", "text_encoder": "transformer"}, digits(4, side=48)
    model = CLIP(image_encoder=image_encoder, **arch).eval()
    model.config, model.metrics = {"lr": 0.1}, {"val_digit_accuracy": 0.5}
    model.save(tmp_path / "model.pth")
    again = CLIP.load(tmp_path / "model.pth")
    for a, b in zip(again(images, ["one", "two"]), model(images, ["one", "two"]), strict=True):
        assert torch.equal(a, b)
    assert (again.arch, again.config, again.metrics) == (model.arch, model.config, model.metrics)
    assert again.fingerprint() == model.fingerprint()
    assert not again.training
    with pytest.raises(InputError, match="it has no language model: leave out the text model"):
        CLIP.load(tmp_path / "model.pth", text_model="albert-base-v2")


def test_files_that_are_no_checkpoint_are_refused_in_one_sentence(path, tmp_path, model):
    whole = path.read_bytes()
    weights = model.towers["image"].projection.weight.detach().numpy().tobytes()
    flipped = whole.replace(weights, bytes([weights[0] ^ 1]) + weights[1:])
    assert flipped != whole
    for content in (b"hello", b"", whole[: len(whole) // 2], flipped):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is not a checkpoint, or is damaged"):
            CLIP.load(path)
    torch.save(torch.ones(3), path)
    with pytest.raises(InputError, match="is not a checkpoint"):
        CLIP.load(path)
    with pytest.raises(InputError, match=r"there is no file .*missing.pth: name the checkpoint of a CLIP"):
        CLIP.load(tmp_path / "missing.pth")
    with pytest.raises(InputError, match=r"there is no file .*config.json: name a folder that save_pretrained wrote"):
        CLIP.load(tmp_path)


IMPOSSIBLE = [{"width": 3}, {"embed_dim": "wide"}, {"text_encoder": "bert"}, {"captions": ["digit"]}]
IMPOSSIBLE += [{"loss": "triplet"}, {"init_temperature": 0}, {"unknown": True}, {1: 2}]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"format": "minist-clip-4"}, "was saved by another version of this program"),
        ({"kind": "run"}, "is the checkpoint of a run, not of a CLIP: name another"),
        ({"config": None}, "another architecture"),
        ({"metrics": 3}, "another architecture"),
        ({"arch": {"embed_dim": 8, "patch_size": 4}}, "another architecture"),
        *[({"arch": CLIP(8, width=2).arch | change}, "another architecture") for change in IMPOSSIBLE],
        ({"arch": CLIP(8, width=2).arch | {"modalities": ["smell"]}}, "there is no modality"),
        ({"state_dict": [1]}, "another architecture"),
        ({"state_dict": {"logit_scale": torch.tensor(math.nan)}}, "holds numbers that are not finite: train again"),
    ],
    ids=range(16),
)
def test_a_file_of_another_kind_or_content_is_one_sentence(change, parts, message):
    with pytest.raises(InputError, match=message) as error:
        CLIP.load(change(**parts))
    assert "\n" not in str(error.value)


def test_a_checkpoint_that_carries_code_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "boom"), "w"))

    torch.save({"format": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(InputError, match="not a checkpoint"):
        CLIP.load(tmp_path / "bomb.pth")
    assert not (tmp_path / "boom").exists()


def test_what_is_not_finite_or_cannot_be_written_is_not_saved(path, model, monkeypatch, read_only, tmp_path):
    before = path.read_bytes()
    with torch.no_grad():
        model.logit_scale.fill_(math.nan)
    with pytest.raises(ValueError, match="not finite"):
        model.save(path)
    model.logit_scale.data.fill_(1)

    def disk_is_full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_is_full)
    with pytest.raises(InputError, match="No space left"):
        model.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    monkeypatch.undo()
    with pytest.raises(InputError, match="cannot write"):
        model.save(read_only(tmp_path / "file") / "model.pth")
    for name in ("", "."):
        with pytest.raises(InputError, match="names no file"):
            model.save(name)
