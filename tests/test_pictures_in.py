"""Every kind of picture that Pillow and numpy hand over is read right or refused."""

import io
import math
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from clip import CLIP
from my_dataset import load_mnist
from my_utils import InputError


@pytest.fixture(scope="module")
def model() -> CLIP:
    torch.manual_seed(0)
    return CLIP(8, width=2, captions="digit").eval()


@pytest.fixture(scope="module")
def pixels(data_path) -> np.ndarray:
    """uint8 [28, 28]."""
    return load_mnist("val", data_path).images[0].numpy()


@pytest.mark.parametrize("mode", [*Image.MODES, "RGBX", "PA", "La", "RGBa", "I;16", "I;16L", "I;16B"])
def test_a_pillow_image_of_any_mode_is_read_right_or_refused(mode, model, pixels):
    image = Image.fromarray(pixels)
    try:
        image = image.convert(mode)
    except ValueError:  # not in one step
        image = image.convert("RGBA" if mode in ("PA", "La", "RGBa") else "I").convert(mode)
    if mode in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"):
        expected = torch.from_numpy(np.array(image.convert("L"))) if mode == "1" else torch.from_numpy(pixels)
        difference = model.preprocess(image)[0, 0] - expected / 255
        assert difference.abs().max() < 0.01
    else:
        with pytest.raises(InputError, match=r"transparent|more than 8 bits"):
            model.preprocess(image)


@pytest.mark.parametrize("form", ["GIF", "PNG", "BMP", "WEBP", "TIFF", "PPM"])
def test_an_image_file_is_read_as_its_grey_levels(form, model, pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **({"lossless": True} if form == "WEBP" else {}))
    torch.testing.assert_close(model.preprocess(Image.open(file))[0, 0], torch.from_numpy(pixels) / 255)


@pytest.mark.parametrize(
    "dtype", [*np.typecodes["AllInteger"], *np.typecodes["AllFloat"], "?", "O", ">u2", ">f4", ">f8"]
)
def test_an_array_of_any_type_is_read_right_or_refused(dtype, model, pixels):
    kind = np.dtype(dtype)
    is_read = kind == np.uint8 or (kind.kind == "f" and kind.itemsize <= 8)
    array = pixels.astype(kind) if kind.kind in "iuO?" else (pixels / 255).astype(kind)
    if is_read:
        torch.testing.assert_close(model.preprocess(array)[0, 0], torch.from_numpy(pixels) / 255, atol=1e-3, rtol=0)
    else:
        with pytest.raises(InputError, match=r"must be uint8|one array of uint8 or float pixels"):
            model.preprocess(array)


def test_an_image_has_one_embedding_in_every_form_and_in_a_list_of_many(model, pixels):
    palette = Image.fromarray(pixels).quantize(256)
    assert (np.array(palette) != pixels).any(), "its numbers are places in the palette"
    image, floats = torch.from_numpy(pixels), pixels / 255
    expected = torch.from_numpy(pixels)[None, None] / 255
    same = [pixels, pixels[None], image, image[None], image[None, None], floats, floats[None], image / 255]
    for form in (*same, palette, [palette], [[palette]]):
        torch.testing.assert_close(model.preprocess(form), expected)
    torch.testing.assert_close(model.preprocess([palette, pixels, image]), expected.expand(3, 1, 28, 28))
    torch.testing.assert_close(model.encode_image(palette), model.encode_image(image))
    with pytest.raises(InputError, match="divide by 255"):
        model.preprocess([palette, floats])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("photo.png", "one array of uint8 or float pixels"),
        ([np.zeros((28, 28)), np.zeros((32, 32))], "one array of uint8 or float pixels"),
        (np.zeros((2, 28, 28), int), r"uint8 \(0..255\) or float \(0..1\), not torch.int64"),
        (np.zeros((2, 32, 32), np.uint8), "resize"),
        (np.zeros(784, np.uint8), "resize"),
        (torch.ones(28, 28, dtype=torch.uint8), "multiply by 255"),
        (torch.full((2, 28, 28), 255.0), "divide by 255"),
        (torch.full((2, 28, 28), math.nan), r"\[0, 1\]"),
    ],
)
def test_images_that_would_be_misread_are_refused(model, bad, message):
    with pytest.raises(InputError, match=message):
        model.preprocess(bad)


def test_a_bright_image_causes_one_warning_at_the_callers_line(model, pixels):
    dark = torch.from_numpy(pixels)[None]
    bright = 255 - dark
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for images in (dark, dark / 255, bright, bright / 255, torch.cat([dark, bright])):
            for _ in range(3):
                model.encode_image(images)
    assert [warning.category for warning in seen] == [UserWarning]
    assert "bright" in str(seen[0].message)
    assert seen[0].filename == __file__
