import math
import warnings

import numpy
import pytest
import torch
from PIL import Image

from captions import DIGIT_WORDS, Texts, one_hot_labels
from clip import CLIP
from image_encoder import IMAGE_ENCODERS
from losses import LOSSES
from my_dataset import Batch, load_mnist
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


def digits(count: int) -> torch.Tensor:
    """Noise, mostly dark as digits are: uint8 [count, 28, 28]."""
    noise = torch.rand(count, 28, 28, generator=torch.Generator().manual_seed(1))
    return (255 * noise**2).to(torch.uint8)


# ---- the method ----


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


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_has_a_loss_that_reaches_every_parameter(name):
    torch.manual_seed(0)
    model, captions = CLIP(8, width=2, loss=name, init_logit_bias=-2.0), torch.tensor([3, 3, 7, 1])
    batch = Batch(digits(4)[:, None] / 255, Texts(DIGIT_WORDS, captions), one_hot_labels(captions))
    loss = model.loss(batch)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    if name == "infonce":
        logits = model(batch.images, batch.texts).logits_per_image
        sides = [torch.nn.functional.cross_entropy(side, torch.arange(4)) for side in (logits, logits.T)]
        torch.testing.assert_close(loss, sum(sides) / 2)


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


@pytest.mark.parametrize("image_encoder", IMAGE_ENCODERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_of_other_float_types_embed_and_are_saved(tmp_path, dtype, image_encoder):
    torch.manual_seed(0)
    model = CLIP(8, image_encoder, 2).eval()
    exact = model(digits(5), ["7", "two"])
    model.to(dtype).save(tmp_path / "model.pth")
    for coarse in (model, CLIP.load(tmp_path / "model.pth")):
        for found, expected in zip(coarse(digits(5), ["7", "two"])[:2], exact[:2], strict=True):
            torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0)


# ---- texts ----


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
    bold, seven, two, a, leaning, right = (
        encoder.table.weight[encoder.vocabulary[word]] for word in ("bold", "seven", "two", "a", "leaning", "right")
    )
    sums = torch.stack([bold + seven, two, a + bold + bold + seven + leaning + right])
    embeds = encoder(encoder.tokenize(texts))
    torch.testing.assert_close(embeds, encoder.mlp(sums))
    embeds.sum().backward()
    assert encoder.table.weight.grad[0].eq(0).all(), "padding learns nothing"


def test_a_text_that_cannot_be_read_is_one_sentence_that_names_the_word(model):
    for text, message in {
        "thikc 7": r"the word 'thikc' in 'thikc 7' is not in the vocabulary: .*'thick'.* it has ",
        "7.0": "the word '7.0' in '7.0' is not in the vocabulary",
        "-7": "the word '-7'",
        "the 7th": "the word '7th' in 'the 7th'",
        "一个七": "the word '一个七'",
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


# ---- images ----


def test_an_image_has_one_embedding_in_every_form(model, data_path, tmp_path):
    image = load_mnist("val", data_path).images[:1]
    picture, floats = Image.fromarray(image[0].numpy()), (image / 255).double().numpy()
    expected = model.encode_image(image)
    picture.save(tmp_path / "palette.gif")
    picture.quantize(256).save(tmp_path / "palette.png")
    same = [image[0], image[:, None], image.numpy(), image / 255, floats, floats.astype(">f4")]
    same += [picture, [picture], Image.open(tmp_path / "palette.gif"), Image.open(tmp_path / "palette.png")]
    same += [picture.convert(mode) for mode in ("RGB", "CMYK", "HSV")]
    for form in same:
        torch.testing.assert_close(model.encode_image(form), expected)
    for mode in ("YCbCr", "LAB"):  # these round
        torch.testing.assert_close(
            model.encode_image(picture.convert("RGB").convert(mode)), expected, atol=0.02, rtol=0
        )
    black_and_white = (255 * (image > 127)).byte()
    one_bit = picture.point(lambda level: 255 * (level > 127)).convert("1")
    torch.testing.assert_close(model.encode_image(one_bit), model.encode_image(black_and_white))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("photo.png", "one array of uint8 or float pixels"),
        ([numpy.zeros((28, 28)), numpy.zeros((32, 32))], "one array of uint8 or float pixels"),
        (numpy.zeros((2, 28, 28), int), r"uint8 \(0..255\) or float \(0..1\), not torch.int64"),
        (numpy.zeros((2, 32, 32), numpy.uint8), "resize"),
        (numpy.zeros(784, numpy.uint8), "resize"),
        (torch.ones(28, 28, dtype=torch.uint8), "multiply by 255"),
        (torch.full((2, 28, 28), 255.0), "divide by 255"),
        (torch.full((2, 28, 28), math.nan), r"\[0, 1\]"),
        (Image.new("RGBA", (28, 28)), "transparent"),
        (Image.new("I;16", (28, 28)), "mode I;16 have more than 8 bits"),
    ],
)
def test_images_that_would_be_misread_are_refused(model, bad, message):
    with pytest.raises(InputError, match=message):
        model.encode_image(bad)


def test_a_bright_image_causes_one_warning_at_the_callers_line(model):
    bright, dark = 255 - digits(2), digits(2)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for images in (dark, dark / 255, bright, bright / 255, torch.cat([dark, bright])):
            for _ in range(3):
                model.encode_image(images)
    assert [warning.category for warning in seen] == [UserWarning]
    assert "bright" in str(seen[0].message)
    assert seen[0].filename == __file__


# ---- files ----


@pytest.mark.parametrize("image_encoder", IMAGE_ENCODERS)
def test_a_file_alone_rebuilds_the_model(tmp_path, image_encoder):
    model = CLIP(embed_dim=12, image_encoder=image_encoder, width=3, init_logit_bias=-2.2, loss="sigmoid").eval()
    model.config, model.metrics = {"lr": 0.1}, {"val_digit_accuracy": 0.5}
    model.save(tmp_path / "model.pth")
    again = CLIP.load(tmp_path / "model.pth")
    for a, b in zip(again(digits(4), ["1", "2"]), model(digits(4), ["1", "2"]), strict=True):
        assert torch.equal(a, b)
    assert (again.arch, again.config, again.metrics) == (model.arch, model.config, model.metrics)
    assert again.fingerprint() == model.fingerprint()
    assert not again.training


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
    with pytest.raises(InputError, match="is a folder"):
        CLIP.load(tmp_path)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"format": "minist-clip-4"}, "was saved by another version of this program"),
        ({"kind": "run"}, "is the checkpoint of a run, not of a CLIP: name another"),
        ({"config": None}, "another architecture"),
        ({"metrics": 3}, "another architecture"),
        ({"arch": {"embed_dim": 8, "patch_size": 4}}, "another architecture"),
        ({"state_dict": [1]}, "another architecture"),
        ({"state_dict": {"logit_scale": torch.tensor(math.nan)}}, "holds numbers that are not finite: train again"),
    ],
    ids=str,
)
def test_a_file_of_another_kind_or_content_is_one_sentence(change, parts, message):
    with pytest.raises(InputError, match=message) as error:
        CLIP.load(change(**parts))
    assert "\n" not in str(error.value)


def test_a_file_of_a_model_that_cannot_be_built_is_refused(change, model):
    values = {"width": 3, "embed_dim": "wide", "text_encoder": "bert", "captions": ["digit"], "loss": "triplet"}
    values |= {"init_temperature": 0, "modalities": ["smell"], "unknown": True, 1: 2}
    for name, value in values.items():
        with pytest.raises(InputError, match=r"another architecture|there is no modality"):
            CLIP.load(change(arch=model.arch | {name: value}))


def test_a_checkpoint_that_carries_code_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "boom"), "w"))

    torch.save({"format": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(InputError, match="not a checkpoint"):
        CLIP.load(tmp_path / "bomb.pth")
    assert not (tmp_path / "boom").exists()


def test_a_model_without_language_model_takes_none(path):
    with pytest.raises(InputError, match="it has no language model: leave out the text model"):
        CLIP.load(path, text_model="albert-base-v2")


def test_what_cannot_be_loaded_again_is_not_saved(path, model, monkeypatch):
    before = path.read_bytes()
    model.metrics["f1"] = numpy.float64(0.5)
    with pytest.raises(TypeError, match="plain Python values"):
        model.save(path)
    model.metrics["f1"] = 0.5
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


def test_a_path_that_cannot_be_written_is_one_sentence(read_only, tmp_path, model):
    with pytest.raises(InputError, match="cannot write"):
        model.save(read_only(tmp_path / "file") / "model.pth")
    for name in ("", "."):
        with pytest.raises(InputError, match="names no file"):
            model.save(name)
