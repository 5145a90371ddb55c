import csv
import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import predict
from benchmarks.photos import photograph
from clip import CLIP
from conftest import first_tenth
from data.photo import SIDE, photo_to_mnist, read_picture
from my_utils import InputError


@pytest.fixture(scope="module")
def seven(data_path) -> torch.Tensor:
    """The first test digit, uint8 [28, 28]."""
    image, label = (x[0] for x in first_tenth("test", data_path))
    assert label == 7
    return image


def page(ink: torch.Tensor, size=(300, 240), place=(90, 70), scale=4) -> Image.Image:
    """Black ink on white paper, mode L."""
    paper = Image.new("L", size, 255)
    paper.paste(ImageOps.invert(Image.fromarray(ink.numpy())).resize([scale * 28] * 2), place)
    return paper


def likeness(image: torch.Tensor, ink: torch.Tensor) -> float:
    """The correlation of the pixels of two images in MNIST's form."""
    return float(np.corrcoef(image.flatten(), ink.flatten())[0, 1])


# ---- any picture -> 28x28 ----


def sixteen_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image).astype(np.uint16) * 20 + 9000)


def transparent(image: Image.Image, ink: str) -> Image.Image:
    layer = Image.new("RGBA", image.size, ink)
    layer.putalpha(ImageOps.invert(image))
    return layer


MODES = {
    mode: lambda image, mode=mode: image.convert(mode) for mode in ("1", "L", "P", "RGB", "CMYK", "HSV", "F", "LA")
}
MODES |= {"I;16": sixteen_bits, "black ink on nothing": lambda image: transparent(image, "black")}
MODES |= {"white ink on nothing": lambda image: transparent(image, "white"), "light on dark": ImageOps.invert}
MODES |= {"red on yellow": lambda image: ImageOps.colorize(image, "red", "yellow")}


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_of_any_mode_becomes_the_digit(mode, seven):
    image = photo_to_mnist(MODES[mode](page(seven)))
    assert (image.dtype, image.shape, int(image.max())) == (torch.uint8, (28, 28), 255)
    assert likeness(image, seven) > 0.9


def test_a_photograph_in_bad_light_becomes_the_digit(seven):
    for seed in range(4):
        photo = photograph(seven, seed, is_hard=True)
        assert photo.tobytes() == photograph(seven, seed, is_hard=True).tobytes()
        assert likeness(photo_to_mnist(photo), seven) > 0.5  # it is rotated a little


def test_the_camera_may_have_been_turned(seven):
    photo, turned = page(seven), page(seven).rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn it by 90 degrees clockwise to see it upright"
    content = io.BytesIO()
    turned.save(content, "PNG", exif=exif)
    assert torch.equal(photo_to_mnist(Image.open(content)), photo_to_mnist(photo))


def test_dirt_and_distant_things_are_erased_and_near_strokes_kept(seven):
    clean = photo_to_mnist(page(seven))
    dirty = page(seven)
    dirty.paste(0, (5, 5, 30, 12))
    dirty.paste(0, (150, 60, 152, 62))
    assert torch.equal(photo_to_mnist(dirty), clean)
    broken = seven.clone()
    broken[:, 14] = 0
    assert likeness(photo_to_mnist(page(broken)), broken) > 0.9


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 1), (50, 50)])
def test_empty_paper_of_any_size_is_black(size):
    for image in (Image.new("L", size, 200), Image.new("RGBA", size), Image.new("F", size, float("nan"))):
        assert not photo_to_mnist(image).any()


# ---- files ----


def test_each_wrong_file_has_one_sentence(tmp_path, seven, monkeypatch):
    page(seven).save(good := tmp_path / "good.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:-200])
    (tmp_path / "nothing.png").touch()
    for name in ("text.png", "cut.png", "nothing.png"):
        with pytest.raises(InputError, match=f"{name} is not a picture, or is damaged: give a JPEG"):
            read_picture(tmp_path / name)
    with pytest.raises(InputError, match="is a folder"):
        read_picture(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30_000)
    with pytest.raises(InputError, match="more than 0 million pixels: make it smaller"):
        read_picture(good)


def test_a_large_jpeg_is_decoded_at_a_reduced_size(tmp_path, seven):
    page(seven).resize((3000, 2400)).save(tmp_path / "large.jpg")
    image = read_picture(tmp_path / "large.jpg")
    assert 2 * SIDE <= max(image.size) < 1000
    assert likeness(photo_to_mnist(image), seven) > 0.9


# ---- predict.py ----


@pytest.fixture(scope="module")
def attributes(tmp_path_factory):
    """An untrained model of attributes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("attributes") / "model.pth"
    CLIP(8, "fast", width=2).save(path)
    return path


@pytest.fixture
def scans(tmp_path, seven):
    (tmp_path / "scans" / "inner").mkdir(parents=True)
    page(seven).save(tmp_path / "scans" / "a.jpg")
    page(seven).save(tmp_path / "scans" / "inner" / "b.PNG")
    (tmp_path / "scans" / "notes.txt").touch()
    return tmp_path / "scans"


def test_a_folder_is_read_and_wrong_files_are_listed_at_the_end(scans, trained, capsys):
    (scans / "c.png").touch()
    places = [scans, scans / "a.jpg", scans / "no.png"]
    assert predict.main([*map(str, places), "--clip", str(trained.checkpoint)]) == 1
    out, err = capsys.readouterr()
    head, first, second, total = out.splitlines()
    assert head.split()[:4] == ["file", "digit", "caption", "1"]
    assert ("a.jpg" in first, "b.PNG" in second, " seven " in first, " px" in head) == (True,) * 4
    assert total.endswith("of 2 pictures show a digit")
    assert ["c.png" in line or "no.png" in line for line in err.splitlines() if "left out" in line] == [True, True]


def test_the_csv_holds_the_nearest_captions_and_is_written_whole(scans, attributes, tmp_path, read_only):
    found = tmp_path / "found.csv"
    assert predict.main([str(scans), "--clip", str(attributes), "--csv", str(found)]) == 0
    rows = list(csv.DictReader(found.open(encoding="utf-8")))
    assert [row["file"] for row in rows] == [str(scans / "a.jpg"), str(scans / "inner" / "b.PNG")]
    cosines = [float(rows[0][f"cosine description {k}"]) for k in (1, 2, 3)]
    assert cosines == sorted(cosines, reverse=True)
    assert 1 < float(rows[0]["thickness px"]) < 5
    with pytest.raises(InputError, match="cannot write"):
        predict.main([str(scans), "--clip", str(attributes), "--csv", str(read_only(tmp_path / "file") / "x.csv")])


def test_sentences_of_ones_own_replace_the_captions(scans, trained, tmp_path, capsys):
    (tmp_path / "own.txt").write_text("seven\n\n1\n")
    for flags in (["--texts", "seven", "1"], ["--texts-from", str(tmp_path / "own.txt")]):
        assert predict.main([str(scans), "--clip", str(trained.checkpoint), *flags]) == 0
        assert "seven" in capsys.readouterr().out.splitlines()[1].split()[2]
    (tmp_path / "own.txt").write_text(" \n")
    wrong = {"'sevven' is not in the vocabulary": ["--texts", "sevven"], "it is empty": ["--texts", " "]}
    for message, flags in (wrong | {"holds no sentence": ["--texts-from", str(tmp_path / "own.txt")]}).items():
        with pytest.raises(InputError, match=message):
            predict.main([str(scans), "--clip", str(trained.checkpoint), *flags])


def test_a_model_of_scenes_is_refused(scans, tmp_path):
    CLIP(8, "scene", width=2, captions="scenes").save(tmp_path / "scenes.pth")
    with pytest.raises(InputError, match="reads scenes of two digits"):
        predict.main([str(scans), "--clip", str(tmp_path / "scenes.pth")])
