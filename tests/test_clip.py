import math
import warnings

import numpy as np
import PIL.Image
import pytest
import torch

from captions import DIGIT_WORDS, Texts, Truth
from clip import CLIP, FORMAT
from image_encoder import IMAGE_ENCODERS
from my_dataset import Batch
from my_utils import InputError
from text_encoder import TextEncoder


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CLIP(embed_dim=8, width=2, init_temperature=0.1).eval()


def digits(count: int) -> torch.Tensor:
    """Noise, mostly dark as digits are."""
    noise = torch.rand(count, 28, 28, generator=torch.Generator().manual_seed(1))
    return (255 * noise**2).to(torch.uint8)


def test_embeddings_have_length_one(model):
    for features in (model.encode_image(digits(5)), model.encode_text(["7", "two"])):
        torch.testing.assert_close(features.norm(dim=1), torch.ones(len(features)))


def test_logits_are_scaled_cosines(model):
    images, texts = digits(3), ["zero", "1", "TWO ", "three"]
    output = model(images, texts)
    assert torch.equal(output.image_embeds, model.encode_image(images))
    assert torch.equal(output.text_embeds, model.encode_text(texts))
    cosine = torch.cosine_similarity(output.image_embeds[:, None], output.text_embeds[None], dim=-1)
    torch.testing.assert_close(output.logits_per_image, cosine / 0.1)
    assert output.logits_per_image.shape == (3, 4)
    assert torch.equal(output.logits_per_text, output.logits_per_image.T)
    assert output.logit_scale.item() == pytest.approx(1 / 0.1), "the factor, not its logarithm"


def test_the_towers_are_entries_by_modality(model):
    assert list(model.towers) == ["image", "text"]


@pytest.mark.parametrize("loss", ["multi_positive", "infonce", "sigmoid"])
def test_the_model_computes_its_loss_of_a_batch(loss):
    torch.manual_seed(0)
    model = CLIP(8, width=2, loss=loss, init_logit_bias=-2.0 if loss == "sigmoid" else None)
    captions = torch.tensor([3, 3, 7, 1])
    facts = (1 << captions).int()
    truth = Truth(facts, facts)
    batch = Batch(digits(4)[:, None] / 255, Texts(DIGIT_WORDS, captions), truth, 4)
    value = model.loss(batch)
    assert value.shape == ()
    value.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    if loss == "infonce":
        logits = model(batch.images, batch.texts).logits_per_image
        both = [torch.nn.functional.cross_entropy(x, torch.arange(4)) for x in (logits, logits.T)]
        torch.testing.assert_close(value, sum(both) / 2)


def test_texts_are_words_and_numerals_one_or_many(model):
    expected = model.encode_text(["seven"])
    for text in ("7", "seven", " Seven\n", ["7"], ("seven",)):
        assert torch.equal(model.encode_text(text), expected)


def test_texts_may_be_places_in_a_list_which_is_then_read_once(model, monkeypatch):
    read, tokenize = [], TextEncoder.tokenize
    monkeypatch.setattr(TextEncoder, "tokenize", lambda self, texts: read.append(texts) or tokenize(self, texts))
    sentences = ("seven", "2", "two")
    for index in ([0, 2, 1, 0], [1]):
        texts = Texts(sentences, torch.tensor(index))
        with torch.inference_mode():
            model.encode_text(texts)
        assert torch.equal(model.encode_text(texts), model.train().encode_text(texts.strings()))
    assert read.count(sentences) == 1
    others = Texts(("one", "two", "three"), torch.tensor([0]))
    assert torch.equal(model.encode_text(others), model.encode_text("one")), "another list is read anew"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ten", r"does not know the word 'ten' in 'ten': it knows 0..9 and zero..nine, and \d+ words such as thick, "),
        ("10", "does not know the word '10'"),
        ("a sloppy Seven", "does not know the word 'sloppy' in 'a sloppy Seven'"),
        ("³", "does not know the word"),
        ("x" * 9000, "does not know the word"),
        *((text, "has no word: name a digit") for text in ("", " ", "?!", "\ud800")),
    ],
    ids=lambda text: ascii(text)[:20],
)
def test_unknown_text_is_one_sentence_that_names_the_word(model, text, message):
    with pytest.raises(InputError, match=message) as error:
        model.encode_text(["seven", text])
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700
    str(error.value).encode()  # it can be printed


def test_captions_of_digits_know_the_digits_and_nothing_else():
    table = CLIP(embed_dim=8, width=2, captions="digit")
    torch.testing.assert_close(table.encode_text(["7", "Seven."]), table.encode_text(["seven"]).expand(2, -1))
    with pytest.raises(InputError, match=r"the word 'a' in 'a seven': it knows 0\.\.9 and zero\.\.nine; --text-enc"):
        table.encode_text("a seven")


def test_a_caption_is_the_sum_of_its_words():
    torch.manual_seed(0)
    encoder = TextEncoder(8, ["a bold seven leaning to the right", "two"])
    texts = ["bold seven", "two", "a bold, bold SEVEN leaning right"]
    bold, seven, two, a, leaning, right = (
        encoder.table.weight[encoder.vocabulary[word]] for word in ("bold", "seven", "two", "a", "leaning", "right")
    )
    sums = torch.stack([bold + seven, two, a + bold + bold + seven + leaning + right])
    torch.testing.assert_close(encoder(encoder.tokenize(texts)), encoder.mlp(sums))
    assert torch.equal(encoder.tokenize(["bold 7"]), encoder.tokenize(["Bold: seven!"]))
    first, other, another = encoder(encoder.tokenize(["leaning right, a bold 7", "a bold 7 leaning right", "a bold 7"]))
    torch.testing.assert_close(first, other)
    assert not torch.allclose(first, another)
    encoder(encoder.tokenize(texts)).sum().backward()
    assert encoder.table.weight.grad[0].eq(0).all(), "what fills up a shorter text learns nothing"


@pytest.mark.parametrize(
    "bad",
    [
        *(7, None, [], {"seven"}, [7.5], ["seven", None], np.array(["seven"])),
        *(torch.tensor([7]), torch.tensor(7), np.arange(10), [7], [torch.tensor(7)]),  # labels are no texts
    ],
    ids=str,
)
def test_what_is_no_text_is_refused(model, bad):
    with pytest.raises(InputError, match="texts must be a string or a list of strings"):
        model.encode_text(bad)


def test_one_image_in_any_form_gives_one_embedding(model):
    image = digits(1)
    expected = model.encode_image(image)
    pictures = [PIL.Image.fromarray(image[0].numpy())]
    floats = (image / 255).double().numpy()
    for same in (
        image[0],
        image[:, None],
        image.numpy(),
        image / 255,
        floats,
        floats.astype(">f4"),
        pictures,
        pictures[0],
    ):
        torch.testing.assert_close(model.encode_image(same), expected)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("photo.png", "one array of uint8 or float"),
        (None, "one array of uint8 or float"),
        ([np.zeros((28, 28)), np.zeros((32, 32))], "one array of uint8 or float"),
        (np.zeros((2, 28, 28), np.int64), "one array of uint8 or float"),
        (np.zeros((2, 32, 32), np.uint8), "resize"),
        (np.zeros((2, 3, 28, 28), np.float32), "resize"),
        (np.zeros(784, np.uint8), "resize"),
        (torch.zeros(2, 28, 28, dtype=torch.int64), "uint8"),
        (torch.full((2, 28, 28), 255.0), r"\[0, 1\]"),
        (torch.full((2, 28, 28), math.nan), r"\[0, 1\]"),
        (torch.zeros(2, 28, 28).to(torch.float8_e4m3fn), "uint8"),
        (torch.zeros(2, 28, 28, dtype=torch.complex64), "uint8"),
        (torch.zeros(2, 28, 28).to_sparse(), "plain tensor"),
        (torch.zeros(2, 28, 28, device="meta"), "plain tensor"),
        ([torch.zeros(28, 28, requires_grad=True)] * 2, "one array of uint8 or float"),
    ],
)
def test_what_is_no_image_is_refused(model, bad, message):
    with pytest.raises(InputError, match=message):
        model.encode_image(bad)


def test_a_bright_image_is_warned_of_once(model):
    bright, dark = 255 - digits(2), digits(2)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for images in (dark, dark / 255, bright, bright / 255, torch.cat([dark, bright])):
            for _ in range(3):
                model.encode_image(images)
    assert [warning.category for warning in seen] == [UserWarning]
    assert "bright" in str(seen[0].message)
    assert seen[0].filename == __file__, "it points to the caller's line"


@pytest.mark.parametrize("image_encoder", IMAGE_ENCODERS)
@pytest.mark.parametrize("kind", ["double", "bfloat16", "half"])
def test_models_of_other_float_types_embed(kind, image_encoder):
    torch.manual_seed(0)
    model = CLIP(8, image_encoder, 2).eval()
    exact = model(digits(5), ["7", "two"])
    rough = getattr(model, kind)()(digits(5), ["7", "two"])
    for a, b in zip(exact[:2], rough[:2], strict=True):
        torch.testing.assert_close(a, b.float(), atol=0.03, rtol=0)
    torch.testing.assert_close(model.encode_image(digits(5) / 255).float(), rough.image_embeds, atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"text_encoder": "bert"}, "no text encoder 'bert': choose table or plus"),
        ({"image_encoder": "x"}, "no image encoder 'x': choose residual or fast"),
        ({"embed_dim": 0}, "above 0"),
        ({"embed_dim": 8.0}, "whole numbers"),
        ({"width": -1}, "above 0"),
        ({"init_temperature": 0}, "init_temperature must be a number above 0"),
        ({"init_temperature": -0.1}, "init_temperature must be a number above 0"),
        ({"init_temperature": math.nan}, "init_temperature must be a number above 0"),
        ({"init_temperature": math.inf}, "init_temperature must be a number above 0"),
        ({"init_temperature": "warm"}, "init_temperature must be a number above 0"),
        ({"captions": "long"}, "no captions 'long': choose digit or described"),
        ({"loss": "x"}, "no loss 'x'"),
        ({"text_encoder": "plus", "text_model": ""}, "text_model is empty"),
        ({"text_encoder": "plus", "text_model": None}, "text_model is empty"),
    ],
)
def test_a_model_that_cannot_be_is_refused(bad, message):
    with pytest.raises(InputError, match=message):
        CLIP(**bad)


@pytest.mark.parametrize(("captions", "least"), [("digit", 0.01), ("described", 0.1)])
def test_temperature_starts_where_it_is_told_and_has_a_least_value(captions, least):
    model = CLIP(embed_dim=8, width=2, captions=captions, init_temperature=0.2)
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.2)
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    model.clamp_logit_scale()
    assert model.logit_scale.exp().item() == pytest.approx(1 / least)


@pytest.mark.parametrize("image_encoder", IMAGE_ENCODERS)
@pytest.mark.parametrize("bias", [None, -2.2])
def test_a_file_alone_rebuilds_the_model(tmp_path, bias, image_encoder):
    model = CLIP(embed_dim=12, image_encoder=image_encoder, width=3, init_logit_bias=bias, loss="sigmoid").eval()
    model.config, model.metrics = {"lr": 0.1}, {"val_digit_accuracy": 0.5}
    model.save(tmp_path / "model.pth")
    again = CLIP.load(tmp_path / "model.pth")
    for a, b in zip(again(digits(4), ["1", "2"]), model(digits(4), ["1", "2"]), strict=True):
        assert torch.equal(a, b)
    assert (again.arch, again.config, again.metrics) == (model.arch, model.config, model.metrics)
    assert not again.training


def test_the_fast_encoder_embeds_what_lies_within_its_margin():
    torch.manual_seed(0)
    model = CLIP(8, "fast", 2).eval()
    images, within = digits(4), torch.zeros(28, 28, dtype=torch.bool)
    within[4:24, 4:24] = True
    features = model.encode_image(images)
    assert torch.equal(model.encode_image(images * within), features)
    assert not torch.allclose(model.encode_image(images * ~within), features)
    assert model.towers["image"].map(torch.rand(1, 1, 20, 20)).shape == (1, 2, 4, 4), "and all of that is read"


def test_the_residual_encoder_sees_the_border():
    torch.manual_seed(0)
    model, images = CLIP(8, "residual", 2).eval(), digits(4)
    inside = torch.zeros_like(images)
    inside[:, 1:27, 1:27] = images[:, 1:27, 1:27]
    assert not torch.allclose(model.encode_image(inside), model.encode_image(images))


def test_files_that_are_no_checkpoint_are_refused(tmp_path, model):
    model.save(tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    weights = model.towers["image"].projection.weight.detach().numpy().tobytes()
    flipped = whole.replace(weights, bytes([weights[0] ^ 1]) + weights[1:])
    assert flipped != whole
    for name, content in {
        "text": b"hello",
        "csv": b"epoch,loss\n1,2\n",
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "one bit": flipped,
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError):
            CLIP.load(tmp_path / name)
    torch.save({"weights": torch.ones(3)}, tmp_path / "other.pth")
    torch.save(torch.ones(3), tmp_path / "tensor.pth")
    for name in ("other.pth", "tensor.pth", "missing.pth", "."):
        with pytest.raises(InputError):
            CLIP.load(tmp_path / name)


def test_a_checkpoint_of_other_words_is_refused(changed, model):
    state = model.state_dict()
    state["towers.text._extra_state"] = ["fat", *state["towers.text._extra_state"][1:]]
    with pytest.raises(InputError, match="other words than this version's captions"):
        CLIP.load(changed(state_dict=state))


def test_another_architecture_is_refused(tmp_path, model):
    model.arch = model.arch | {"width": 3}
    model.save(tmp_path / "wider.pth")
    with pytest.raises(InputError, match="another architecture"):
        CLIP.load(tmp_path / "wider.pth")
    model.arch = {"embed_dim": 8, "patch_size": 4}
    model.save(tmp_path / "vit.pth")
    with pytest.raises(InputError, match="another architecture"):
        CLIP.load(tmp_path / "vit.pth")


@pytest.fixture
def changed(tmp_path, model):
    """Save the model with parts of its file replaced."""

    def save(**parts):
        model.save(tmp_path / "model.pth")
        torch.save(torch.load(tmp_path / "model.pth", weights_only=True) | parts, tmp_path / "model.pth")
        return tmp_path / "model.pth"

    return save


@pytest.mark.parametrize("name", ["towers.image.projection.weight", "logit_scale", "towers.image.stages.1.running_var"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(changed, model, name, bad):
    state = model.state_dict()
    state[name] = torch.full_like(state[name], bad)
    with pytest.raises(InputError, match=rf"weights that are not finite \({name}\): train it again"):
        CLIP.load(changed(state_dict=state))


@pytest.mark.parametrize(
    "parts",
    [{"config": None}, {"metrics": 3}, {"config": None, "metrics": 3}, {"arch": None}, {"state_dict": [1]}],
    ids=str,
)
def test_a_checkpoint_that_lacks_a_part_is_refused(changed, parts):
    with pytest.raises(InputError, match="lacks a part of a model"):
        CLIP.load(changed(**parts))


@pytest.mark.parametrize("version", ["minist-clip-3", None, 3, ["x"]])
def test_a_checkpoint_of_another_version_is_one_sentence(changed, version):
    with pytest.raises(InputError, match=f"format .*not '{FORMAT}'.*: train one with `make train`") as error:
        CLIP.load(changed(format=version))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arch",
    [
        {"embed_dim": 0},
        {"width": "wide"},
        {"text_encoder": "bert"},
        {"captions": "long"},
        {"captions": ["digit"]},
        {"loss": "triplet"},
        {"loss": ["infonce"]},
        {"init_temperature": 0},
        {"init_logit_bias": "x"},
        {"fetch": True},
        {1: 2},
    ],
    ids=str,
)
def test_a_checkpoint_of_a_model_that_cannot_be_is_refused(changed, model, arch):
    with pytest.raises(InputError):
        CLIP.load(changed(arch=model.arch | arch))


def test_a_table_model_takes_no_language_model(changed):
    with pytest.raises(InputError, match="leave out text_model"):
        CLIP.load(changed(), text_model="albert-base-v2")


def test_a_checkpoint_that_carries_code_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "boom"), "w"))

    torch.save({"format": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(InputError, match="not a checkpoint"):
        CLIP.load(tmp_path / "bomb.pth")
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_save_under_no_name_is_one_sentence(model, name):
    with pytest.raises(InputError, match="names no file"):
        model.save(name)


def test_save_into_a_place_that_cannot_be_written_is_one_sentence(read_only, tmp_path, model):
    with pytest.raises(InputError, match="cannot write"):
        model.save(read_only(tmp_path / "file") / "model.pth")


def test_a_failed_save_leaves_the_old_file(tmp_path, model, monkeypatch):
    model.save(tmp_path / "model.pth")
    before = (tmp_path / "model.pth").read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left"):
        model.save(tmp_path / "model.pth")
    assert (tmp_path / "model.pth").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.pth"]


def test_in_bf16_the_text_gradient_of_a_large_batch_is_that_of_float32():
    torch.manual_seed(0)
    encoder, labels, directions = TextEncoder(16, DIGIT_WORDS), torch.arange(20_000) % 10, torch.randn(10, 16)
    rows = encoder.tokenize(DIGIT_WORDS)[labels]

    def gradient(bf16: bool) -> torch.Tensor:
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            features = encoder(rows)
        (features.float() * directions[labels]).sum().backward()
        return encoder.mlp[2].weight.grad.clone()

    exact = gradient(bf16=False)
    assert (gradient(bf16=True) - exact).norm() < 0.02 * exact.norm()
