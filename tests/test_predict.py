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
    return first_tenth("test", data_path).images[0]


def page(ink: torch.Tensor) -> Image.Image:
    """Black ink on white paper, mode L."""
    paper = Image.new("L", (300, 240), 255)
    paper.paste(ImageOps.invert(Image.fromarray(ink.numpy())).resize((112, 112)), (90, 70))
    return paper


def likeness(image: torch.Tensor, ink: torch.Tensor) -> float:
    """The correlation of the pixels of two images, one of which may be moved by a pixel."""
    moved = [ink.roll((row, column), dims=(0, 1)) for row in (-1, 0, 1) for column in (-1, 0, 1)]
    return max(float(np.corrcoef(image.flatten(), one.flatten())[0, 1]) for one in moved)


def sixteen_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image).astype(np.uint16) * 20 + 9000)


def transparent(image: Image.Image, ink: str) -> Image.Image:
    layer = Image.new("RGBA", image.size, ink)
    layer.putalpha(ImageOps.invert(image))
    return layer


MODES = {mode: lambda image, mode=mode: image.convert(mode) for mode in ("1", "L", "P", "CMYK", "F", "LA")}
MODES |= {"16 bits": sixteen_bits, "light on dark": ImageOps.invert}
MODES |= {f"{ink} on nothing": lambda image, ink=ink: transparent(image, ink) for ink in ("black", "white")}
MODES |= {"red on yellow": lambda image: ImageOps.colorize(image, "red", "yellow")}


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_of_any_mode_becomes_the_digit(mode, seven):
    image = photo_to_mnist(MODES[mode](page(seven)))
    assert (image.dtype, image.shape, int(image.max())) == (torch.uint8, (28, 28), 255)
    assert likeness(image, seven) > 0.85


def test_a_photograph_in_bad_light_becomes_the_digit(seven):
    for seed in range(4):
        photo = photograph(seven, seed, is_hard=True)
        assert photo == photograph(seven, seed, is_hard=True)
        assert likeness(photo_to_mnist(photo), seven) > 0.5, "it is rotated by a few degrees"


def test_the_camera_may_have_been_turned(seven):
    (exif := Image.Exif())[0x0112] = 6  # turn it by 90 degrees clockwise to see it upright
    page(seven).rotate(90, expand=True).save(content := io.BytesIO(), "PNG", exif=exif)
    assert torch.equal(photo_to_mnist(Image.open(content)), photo_to_mnist(page(seven)))


def test_dirt_and_distant_things_are_erased_and_near_strokes_kept(seven):
    dirty = page(seven)
    dirty.paste(0, (5, 5, 30, 12))
    assert likeness(photo_to_mnist(dirty), photo_to_mnist(page(seven))) > 0.99
    broken = seven.clone()
    broken[14:16] = 0
    assert likeness(photo_to_mnist(page(broken)), broken) > 0.85


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 1), (50, 50)])
def test_empty_paper_of_any_size_is_black(size):
    for image in (Image.new("L", size, 200), Image.new("RGBA", size), Image.new("F", size, float("nan"))):
        assert not photo_to_mnist(image).any()


def test_each_wrong_file_has_one_sentence_and_a_large_one_is_reduced(tmp_path, seven, monkeypatch):
    page(seven).resize((3000, 2400)).save(large := tmp_path / "large.jpg")
    assert SIDE <= max(read_picture(large).size) < 500
    assert likeness(photo_to_mnist(read_picture(large)), seven) > 0.85
    (tmp_path / "cut.jpg").write_bytes(large.read_bytes()[:20_000])
    (tmp_path / "text.png").write_text("no picture")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3_000_000)
    wrong = {"cut.jpg": "is not a picture, or is damaged: give a JPEG", "text.png": "is not a picture, or is damaged"}
    for name, message in (wrong | {"": "is a folder", "large.jpg": "more than 3 million pixels"}).items():
        with pytest.raises(InputError, match=f"{name}.* {message}"):
            read_picture(tmp_path / name)


# ---- predict.py ----


@pytest.fixture
def scans(tmp_path, seven):
    """A folder of two pictures of a seven."""
    (tmp_path / "scans" / "inner").mkdir(parents=True)
    for name in ("a.jpg", "inner/b.PNG"):
        page(seven).save(tmp_path / "scans" / name)
    (tmp_path / "scans" / "notes.txt").touch()
    return tmp_path / "scans"


def test_a_folder_is_read_and_wrong_files_are_listed_at_the_end(scans, trained, capsys):
    (scans / "c.png").touch()
    places = [scans, scans / "a.jpg", scans / "no.png"]
    assert predict.main([*map(str, places), "--clip", str(trained.checkpoint)]) == 1
    (head, first, second, total), err = (text.splitlines() for text in capsys.readouterr())
    assert head.split()[:4] == ["file", "digit", "caption", "1"]
    assert ("a.jpg" in first, "b.PNG" in second, " seven " in first) == (True, True, True)
    assert total.endswith("of 2 pictures show a digit")
    assert ["c.png" in err[-2], "no.png" in err[-1]] == [True, True]


def test_the_csv_is_written_whole_with_the_nearest_captions(scans, tmp_path, read_only):
    CLIP(8, "fast", width=2).save(tmp_path / "attributes.pth")
    flags = [str(scans), "--clip", str(tmp_path / "attributes.pth"), "--csv"]
    assert predict.main([*flags, str(tmp_path / "found.csv")]) == 0
    rows = list(csv.DictReader((tmp_path / "found.csv").open(encoding="utf-8")))
    assert [row["file"] for row in rows] == [str(scans / "a.jpg"), str(scans / "inner" / "b.PNG")]
    cosines = [float(rows[0][f"cosine description {k}"]) for k in (1, 2, 3)]
    assert cosines == sorted(cosines, reverse=True)
    assert 1 < float(rows[0]["thickness px"]) < 5
    with pytest.raises(InputError, match="cannot write"):
        predict.main([*flags, str(read_only(tmp_path / "file") / "x.csv")])


def test_sentences_of_ones_own_replace_the_captions(scans, trained, tmp_path, capsys):
    (own := tmp_path / "own.txt").write_text("seven\n\n1\n")
    flags = [str(scans), "--clip", str(trained.checkpoint)]
    for texts in (["--texts", "seven", "1"], ["--texts-from", str(own)]):
        assert predict.main([*flags, *texts]) == 0
        assert capsys.readouterr().out.splitlines()[1].split()[2:5:2] == ["seven", "1"]
    own.write_text(" \n")
    wrong = {"'sevven' in 'sevven' is not in the vocabulary": ["--texts", "sevven"], "empty": ["--texts", " "]}
    for message, texts in (wrong | {"holds no sentence": ["--texts-from", str(own)]}).items():
        with pytest.raises(InputError, match=message):
            predict.main([*flags, *texts])


def test_a_model_of_scenes_is_refused(scans, tmp_path):
    CLIP(8, "scene", width=2, captions="scenes").save(tmp_path / "scenes.pth")
    with pytest.raises(InputError, match="reads scenes of two digits"):
        predict.main([str(scans), "--clip", str(tmp_path / "scenes.pth")])
