import math

import numpy as np
import PIL.Image
import pytest
import torch

from clip import CLIP
from my_utils import InputError
from text_encoder import TextEncoder


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CLIP(embed_dim=8, width=2).eval()


def digits(count: int) -> torch.Tensor:
    return torch.randint(256, (count, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_embeddings_have_length_one(model):
    for features in (model.encode_image(digits(5)), model.encode_text(["7", "two"])):
        torch.testing.assert_close(features.norm(dim=1), torch.ones(len(features)))


def test_logits_are_scaled_cosines(model):
    images, texts = digits(3), ["zero", "1", "TWO ", "three"]
    per_image, per_text = model(images, texts)
    cosine = torch.cosine_similarity(model.encode_image(images)[:, None], model.encode_text(texts)[None], dim=-1)
    torch.testing.assert_close(per_image, cosine / 0.07)
    assert per_image.shape == (3, 4)
    assert torch.equal(per_text, per_image.T)


def test_texts_are_strings_words_numerals_and_labels(model):
    expected = model.encode_text(torch.tensor([7]))
    for text in ("7", "seven", " Seven\n", ["7"], ["seven"]):
        assert torch.equal(model.encode_text(text), expected)


@pytest.mark.parametrize("text", ["ten", "10", "-1", "", "³", "a seven"])
def test_unknown_text_is_refused(model, text):
    with pytest.raises(InputError, match="does not know the text"):
        model.encode_text([text])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("bad", [[-1], [10], [1.0], [True], [[1, 2]]])
def test_what_is_no_label_is_refused(model, bad, training):
    with pytest.raises(InputError, match="digit labels must"):
        model.train(training).encode_text(torch.tensor(bad))


def test_labels_of_any_integer_type_are_labels(model):
    expected = model.encode_text(torch.arange(10))
    for kind in (torch.uint8, torch.int32):
        assert torch.equal(model.encode_text(torch.arange(10, dtype=kind)), expected)
    assert torch.equal(model.encode_text(np.arange(10)), expected)
    assert torch.equal(model.encode_text(torch.tensor(3)), expected[3:4])


@pytest.mark.parametrize("bad", [7, None, [], {"seven"}, [7.5], ["seven", None], np.array(["seven"])])
def test_what_is_no_text_is_refused(model, bad):
    with pytest.raises(InputError, match="texts must be"):
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
    ],
)
def test_what_is_no_image_is_refused(model, bad, message):
    with pytest.raises(InputError, match=message):
        model.encode_image(bad)


def test_temperature_starts_and_stops_as_in_the_paper(model):
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    model.clamp_logit_scale()
    assert model.logit_scale.exp().item() == pytest.approx(100)


@pytest.mark.parametrize("bias", [None, -2.2])
def test_a_file_alone_rebuilds_the_model(tmp_path, bias):
    model = CLIP(embed_dim=12, width=3, init_logit_bias=bias).eval()
    model.config, model.metrics = {"lr": 0.1}, {"val_zero_shot_accuracy": 0.5}
    model.save(tmp_path / "model.pth")
    again = CLIP.load(tmp_path / "model.pth")
    assert torch.equal(again(digits(4), ["1", "2"])[0], model(digits(4), ["1", "2"])[0])
    assert (again.arch, again.config, again.metrics) == (model.arch, model.config, model.metrics)
    assert not again.training


@pytest.mark.parametrize("margin", [0, 3, 10])
@pytest.mark.parametrize("stem_pool", [False, True])
@pytest.mark.parametrize("pool", ["mean", "flatten"])
def test_a_cnn_of_any_shape_embeds_what_lies_within_its_margin(tmp_path, margin, stem_pool, pool):
    shape = {"blocks": [1, 0, 1], "block_convs": 1, "margin": margin, "stem_pool": stem_pool, "pool": pool}
    model = CLIP(embed_dim=8, width=2, **shape).eval()
    images, within = digits(4), torch.zeros(28, 28, dtype=torch.bool)
    within[margin : 28 - margin, margin : 28 - margin] = True
    features = model.encode_image(images)
    assert features.shape == (4, 8)
    assert torch.equal(model.encode_image(images * within), features)
    assert not torch.allclose(model.encode_image(images * ~within), features)
    model.save(tmp_path / "model.pth")
    assert torch.equal(CLIP.load(tmp_path / "model.pth").encode_image(images), features)


def test_the_stems_pooling_halves_its_map():
    for pooled, side in ((False, 14), (True, 7)):
        stages = CLIP(8, 2, blocks=[0], stem_pool=pooled).image_encoder.stages
        assert stages(torch.rand(1, 1, 28, 28)).shape == (1, 2, side, side)


def test_files_that_are_no_checkpoint_are_refused(tmp_path, model):
    model.save(tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    weights = model.image_encoder.projection.weight.detach().numpy().tobytes()
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


def test_another_architecture_is_refused(tmp_path, model):
    model.arch = model.arch | {"width": 3}
    model.save(tmp_path / "wider.pth")
    with pytest.raises(InputError, match="another architecture"):
        CLIP.load(tmp_path / "wider.pth")
    model.arch = {"embed_dim": 8, "patch_size": 4}
    model.save(tmp_path / "vit.pth")
    with pytest.raises(InputError, match="another architecture"):
        CLIP.load(tmp_path / "vit.pth")


def test_a_checkpoint_that_carries_code_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "boom"), "w"))

    torch.save({"format": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(InputError, match="not a checkpoint"):
        CLIP.load(tmp_path / "bomb.pth")
    assert not (tmp_path / "boom").exists()


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
    encoder, labels, directions = TextEncoder(16), torch.arange(20_000) % 10, torch.randn(10, 16)

    def gradient(bf16: bool) -> torch.Tensor:
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            features = encoder(labels)
        (features.float() * directions[labels]).sum().backward()
        return encoder.mlp[2].weight.grad.clone()

    exact = gradient(bf16=False)
    assert (gradient(bf16=True) - exact).norm() < 0.02 * exact.norm()
