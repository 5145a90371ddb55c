"""The page: its scripts in node beside PyTorch, and the whole of it in a browser without a network."""

import random
import re
import shutil
from urllib.request import urlopen

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from playwright.sync_api import expect, sync_playwright

from benchmarks.page import compare, run_in_node
from captions import negated_words
from clip import CLIP
from conftest import train_here
from data.photo import photo_to_mnist
from demo import build
from evaluation.metrics import caption_accuracy, embed_images
from evaluation.scenes import candidate_captions, evaluation_scenes
from generation.model import STEPS, Generator
from modalities.speech import mel_spectrogram, standardized_log_mel
from my_dataset import Split, load_mnist
from my_utils import InputError

CHROMIUM = shutil.which("chromium")
FLAGS = ("--no-sandbox", "--disable-background-networking", "--use-fake-device-for-media-stream")
needs_node = pytest.mark.skipif(not shutil.which("node"), reason="no node: install Node.js 18 or later")

# Paths of the pen on the canvas of 280 by 280.
SEVEN = [(80, 70), (200, 70), (130, 220)]
SCENE = [[(30, 120), (120, 120), (70, 230)], [(240, 110), (240, 230)]]  # of 336 by 336: a seven left of a one
SCENE_CAPTIONS = candidate_captions()
ZERO = [(140, 60), (100, 80), (85, 140), (100, 200), (140, 220), (180, 200), (195, 140), (180, 80), (140, 60)]


@pytest.fixture(scope="module")
def split(data_path) -> Split:
    return load_mnist("test", data_path)


@pytest.fixture(scope="module")
def clip(data_path, tmp_path_factory) -> CLIP:
    """A model that reads digits, with an untrained tower for speech."""
    runs = tmp_path_factory.mktemp("demo")
    flags = ["--width", 4, "--embed-dim", 32, "--epochs", 1, "--augment", "none", "--device", "cpu"]
    train_here(*flags, "--data-path", data_path, "--runs-dir", runs)
    clip = CLIP.load(runs / "best_model.pth")
    torch.manual_seed(0)
    clip.add_tower("speech").eval()
    return clip


@pytest.fixture(scope="module")
@torch.no_grad()
def scenes() -> CLIP:
    """An untrained model of scenes, random where a new one has zeros and ones, and in what batch norms know."""
    torch.manual_seed(0)
    clip = CLIP(32, "scene", width=4, captions="scenes", text_encoder="transformer").eval()
    for x in clip.state_dict().values():
        if x.is_floating_point():
            x.add_(0.3 * (torch.rand(x.shape) if x.ndim == 1 else torch.randn(x.shape)))  # variances stay positive
    return clip


@pytest.fixture(scope="module")
def page(clip, split, scenes) -> build.Page:
    """With an untrained generator, random where a new one has zeros."""
    sizes = {"latent_dim": 6, "autoencoder_width": 2, "decoder_width": 16, "decoder_blocks": 2}
    generator = Generator(32, clip.fingerprint(), **sizes, prior_width=16, prior_blocks=1).eval()
    for parameter in generator.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return build.build(clip, generator, split, scenes)


def draw(path, width=18, paper="white", ink="black", side=280) -> Image.Image:
    canvas = Image.new("RGBA", (280, 280), paper)
    ImageDraw.Draw(canvas).line(path, fill=ink, width=width, joint="curve")
    return canvas.resize((side, side))


# ---- the scripts beside PyTorch ----


@needs_node
def test_the_towers_are_those_of_pytorch(page, clip, split):
    embeds, differences = compare(page, split.images, list(dict.fromkeys(clip.captions.sentences)))
    assert differences.pop("other_caption") == 0
    assert max(differences.values()) < 1e-4, differences
    digits = clip.zero_shot_classifier().T  # of the weights before rounding
    accuracies = [caption_accuracy(x @ digits, split.labels) for x in (embeds, embed_images(clip, split.images))]
    assert abs(accuracies[0] - accuracies[1]) <= 0.0005
    assert accuracies[0] > 0.8


@needs_node
@torch.no_grad()
def test_the_towers_of_scenes_are_those_of_pytorch(page, split):
    images = (255 * evaluation_scenes(split, per_pair=2)[0].images[::9, 0]).round().byte()  # [40, 48, 48]
    images = torch.cat([images, *(images.roll(shift, dims=2) for shift in (-4, -2, 2, 4))])  # 200
    embeds, differences = compare(page, images, [*SCENE_CAPTIONS, *candidate_captions(is_chinese=True)])
    assert differences.pop("other_caption") == 0
    assert max(differences.values()) < 1e-4, differences
    texts = page.scenes.encode_text(SCENE_CAPTIONS)
    assert len((embeds @ texts.T).argmax(dim=1).unique()) > 1
    swapped = page.scenes.encode_text(["a seven left of a three", "a three left of a seven"])
    assert (swapped[0] - swapped[1]).abs().max() > 1e-2, "order counts"


@needs_node
def test_the_digits_of_a_caption_are_exchanged_with_their_articles(page):
    texts = ["An 8 left of a thick one", "a fine two with an eight", "一个粗体的七在一左侧", "a seven", "1, 2 and 3"]
    exchanged = run_in_node(page, "return inputs.texts.map((text) => exchange_digits(text).slice(1));", texts=texts)
    assert exchanged == [["A one left of a thick 8"], ["a fine eight with a two"], ["一个粗体的一在七左侧"], [], []]


@needs_node
@torch.no_grad()
def test_a_sentence_that_both_models_read_is_embedded_by_each(page):
    embed, models = torch.ones(32), (page.clip, page.scenes)
    job = """return [encode_text, encode_caption].map((encode) =>
      compare(model, Float32Array.from(inputs.embed), ["seven"], encode).captions[0][1]);"""
    cosines = [(model.encode_text(["seven"])[0] @ embed).item() for model in models]
    assert run_in_node(page, job, embed=embed) == pytest.approx(cosines, abs=1e-4)


@needs_node
def test_words_and_negations_are_those_of_captions(page, clip):
    texts = ["It's LEFT-leaning, not 7.0! -7 7th 07 \u22127 \u0667 ½ ²x x_y 不是七，粗的。一个7 no\u2019t; ß İ", ""]
    texts += random.Random(0).choices(clip.captions.sentences, k=200)
    letters = random.Random(0).choices("7 7-+.,;:'_aé不七，not nob½ⅧٱΣ\n", k=4000)
    texts += ["".join(letters[i : i + 20]) for i in range(0, 4000, 20)]
    words = run_in_node(page, "return inputs.texts.map(negated_words);", texts=texts)
    assert words == [[list(word) for word in negated_words(text)] for text in texts]


@needs_node
def test_pictures_become_those_of_photo_to_mnist(page, split):
    pictures = [draw(path, width) for path in (SEVEN, ZERO) for width in (8, 18, 40)]
    pictures += [draw(SEVEN, 18, "#204060", "#f0e0d0", side) for side in (50, 161, 400)]
    pictures += [draw(ZERO, 18, (0, 0, 0, 0), ink) for ink in ("black", "white")] + [Image.new("RGB", (90, 40), "tan")]
    for i, image in enumerate(split.images[:38]):  # dark on paper, of any size, with noise
        side, noise = 60 + 6 * i, np.random.default_rng(i)
        grey = 230 - 0.7 * np.asarray(Image.fromarray(image.numpy()).resize((side, side + i)), float)
        pictures.append(Image.fromarray((grey + noise.normal(0, 6, grey.shape)).clip(0, 255).astype(np.uint8)))
    job = "return inputs.all.map(([rgba, ...size]) => photo_to_mnist(model, Uint8ClampedArray.from(rgba), ...size));"
    got = run_in_node(page, job, all=[[list(x.convert("RGBA").tobytes()), *x.size] for x in pictures])
    got, want = torch.tensor(got).view(-1, 28, 28).byte(), torch.stack([photo_to_mnist(x) for x in pictures])
    assert (got.float() - want.float()).abs().mean() < 0.1, "levels of 255"
    nearest = [(embed_images(page.clip, x) @ page.clip.zero_shot_classifier().T).argmax(dim=1) for x in (got, want)]
    assert torch.equal(*nearest)


@needs_node
@torch.no_grad()
def test_drawings_from_the_same_noise_are_the_same(page):
    generator, embeds = page.generator, page.clip.encode_text(["a thick seven", "zero", "不是七"])
    noise = [torch.randn(3, flow.dim) for flow in (generator.prior, generator.decoder)]
    vectors = F.normalize(generator.prior.sample(generator.scale * embeds, noise[0], STEPS), dim=1)
    images = generator.autoencoder.decode(generator.decoder.sample(generator.scale * vectors, noise[1], STEPS))
    job = """const own = (i) => [inputs.embeds[i], inputs.prior[i], inputs.decoder[i]].map((x) => Float32Array.from(x));
      return inputs.embeds.map((_, i) => sample(model, ...own(i)));"""
    got = torch.tensor(run_in_node(page, job, embeds=embeds, prior=noise[0], decoder=noise[1]))
    assert images.std() > 0.01
    assert (got - (255 * images).flatten(1)).abs().max() < 0.51, "rounded to whole levels"


@needs_node
@torch.no_grad()
def test_sounds_are_heard_as_by_pytorch(page):
    times, random_ = torch.arange(16_000) / 8_000, torch.Generator().manual_seed(0)
    sounds = []
    for i in range(20):  # a tone that rises, in noise, silent around it; from 0.02 to 2 seconds
        tone = torch.sin(1000 * (1 + i / 4) * times**1.5) * (times > 0.2 * (i % 3)) * (times < 0.5 + 0.05 * i)
        sound = (tone + 1e-3 * torch.randn(16_000, generator=random_))[: 160 + 800 * i]
        sounds.append(sound - sound.mean())
    mels = torch.stack([mel_spectrogram(sound) for sound in sounds])
    job = """return inputs.sounds.map((x) => Float32Array.from(x)).map((x) => [encode_speech(model, x),
      standardized_log_mel(model, mel_spectrogram(model, x))]);"""
    embeds, logs = zip(*run_in_node(page, job, sounds=[sound.tolist() for sound in sounds]), strict=True)
    assert (torch.tensor(logs) - standardized_log_mel(mels).flatten(1)).abs().max() < 1e-3
    assert (torch.tensor(embeds) - page.clip.encode("speech", mels)).abs().max() < 1e-3


# ---- the command ----


def test_the_command_writes_the_page_and_opens_it(clip, data_path, tmp_path, capsys, monkeypatch):
    clip.save(tmp_path / "clip.pth")
    opened, path = [], tmp_path / "new" / "page.html"
    monkeypatch.setattr("webbrowser.open", opened.append)
    flags = {"clip": tmp_path / "clip.pth", "data-path": data_path, "page": path, "generator": tmp_path / "none.pth"}
    flags = [f"--{name}={value}" for name, value in flags.items()]
    build.main([*flags, "--no-open"])
    assert opened == []
    build.main(flags)
    assert opened == [path.as_uri()]
    output = capsys.readouterr().out
    assert "draws no images from texts: there is no file" in output
    assert f"{path.stat().st_size / 1e6:.2f} MB" in output


def test_without_a_trained_model_the_page_is_that_of_the_pretrained_one(clip, data_path, tmp_path, capsys, monkeypatch):
    clip.save_pretrained(tmp_path / "pretrained")
    monkeypatch.setattr(build, "PRETRAINED", tmp_path / "pretrained")
    monkeypatch.chdir(tmp_path)  # where there is no model of scenes either
    build.main(["--no-open", "--page", "page.html", "--data-path", str(data_path)])
    assert (tmp_path / "page.html").exists()
    output = capsys.readouterr().out
    assert "there is no runs/best_model.pth (`make train` makes it)" in output
    assert """ARGS="--captions scenes"`): there is no file""" in output


def test_a_model_that_the_page_cannot_run_is_one_sentence(split):
    with pytest.raises(InputError, match="runs the towers residual and table, not fast and table"):
        build.build(CLIP(8, "fast", width=2, captions="digit"), None, split)
    with pytest.raises(InputError, match=r"there is no file .*no\.pth"):
        build.main(["--clip", "no.pth", "--no-open"])


def test_a_model_that_is_not_of_scenes_is_one_sentence(clip, scenes, split):
    for other in (clip, CLIP(8, "scene", width=2, captions="scenes")):
        with pytest.raises(InputError, match="--scenes needs a CLIP of scenes, with a transformer"):
            build.build(clip, None, split, other)
    with pytest.raises(InputError, match="reads scenes of two digits"):
        build.build(scenes, None, split)


# ---- in a browser, from a file, without a network ----


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("no browser: apt-get install chromium")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


@pytest.fixture
def open_page(browser, page, tmp_path):
    """Opens the page. At the end it has asked for nothing but itself, and no script has failed."""
    asked, errors = [], []
    expect.set_options(timeout=20_000)

    def open_page(html=page.html, width=1280, locale="en-US", **options):
        (tmp_path / "page.html").write_text(html, "utf-8")
        options |= {"viewport": {"width": width, "height": 844}, "locale": locale, "offline": True}
        tab = browser.new_context(**options).new_page()
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto((tmp_path / "page.html").as_uri())
        expect(tab.locator("#seen .problem")).to_have_count(1)  # the canvas is empty
        return tab

    yield open_page
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert errors == []


def draw_line(tab, canvas, path, side) -> None:
    tab.locator(canvas).scroll_into_view_if_needed()
    box = tab.locator(canvas).bounding_box()
    for i, (x, y) in enumerate(path):
        tab.mouse.move(box["x"] + x * box["width"] / side, box["y"] + y * box["width"] / side, steps=4)
        if i == 0:
            tab.mouse.down()
    tab.mouse.up()


def draw_with_mouse(tab, path) -> None:
    draw_line(tab, "#pad canvas", path, side=280)
    expect(tab.locator("#seen figure")).to_have_count(12)


def test_a_drawing_is_read_as_python_reads_it(open_page, page):
    tab = open_page()
    for path in (SEVEN, ZERO):
        draw_with_mouse(tab, path)
        drawing = Image.open(urlopen(tab.evaluate("pen.canvas.toDataURL()")))
        embed = embed_images(page.clip, photo_to_mnist(drawing)[None])
        sentences = tab.locator("#sentences").input_value().split("\n")
        best = sentences[(page.clip.encode_text(sentences) @ embed[0]).argmax()]
        assert tab.locator("#seen .bar span").first.text_content() == best
        tab.click("#clear")
        expect(tab.locator("#seen .problem")).to_contain_text("The canvas is empty")
    draw_with_mouse(tab, SEVEN)
    tab.fill("#sentences", "seven\na purple cow\n<b>zero</b>")
    expect(tab.locator("#seen .problem").first).to_contain_text("“purple”")
    expect(tab.locator("#seen .bar")).to_have_count(1)


def test_descriptions_find_and_draw_images_in_both_languages_on_a_phone(open_page):
    tab = open_page(width=390, locale="zh-CN", has_touch=True, is_mobile=True)
    tab.get_by_role("button", name="一个细体的零").click()
    expect(tab.locator("#found figure")).to_have_count(12 + 8)
    tab.get_by_role("button", name="测试场景").click()
    expect(tab.locator("#scene-seen .bar").last).to_contain_text("在")
    tab.get_by_role("button", name="English").click()
    expect(tab.locator("#scene-seen .bar").last).not_to_contain_text("在")
    expect(tab.get_by_role("heading", name="Describe a digit")).to_be_visible()
    assert tab.locator("#sentences").input_value().startswith("zero\none\n")
    for text, problem in (("a purple cow", "“purple”"), (" ?! ", "has no word"), ("<img src=x onerror=a()>", "“img”")):
        tab.fill("#text", text)
        tab.press("#text", "Enter")
        expect(tab.locator("#found .problem")).to_contain_text(problem)
    draw_with_mouse(tab, SEVEN)
    expect(tab.locator("#scene-seen .bar")).to_have_count(2 + 8)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390, "nothing is clipped"


@torch.no_grad()
def test_a_scene_is_compared_with_all_captions_and_with_one_of_the_users_own(open_page, page, split):
    tab = open_page()
    problem, bars = (tab.locator(f"#scene-seen {name}") for name in (".problem", ".bar span"))
    expect(problem).to_contain_text("The canvas is empty")
    tab.evaluate("Math.random = () => 0")
    tab.get_by_role("button", name="test scene").click()  # the first one
    expect(bars).to_have_count(2 * (2 + 8))
    embed = embed_images(page.scenes, evaluation_scenes(split, per_pair=1)[0].images[:1])[0]
    own, cosines = (
        page.scenes.encode_text(x) @ embed for x in (["a 7 left of a 3", "a 3 left of a 7"], SCENE_CAPTIONS)
    )
    shown = bars.all_text_contents()
    assert [float(x) for x in shown[1:4:2]] == pytest.approx(own.sort(descending=True).values.tolist(), abs=6e-3)
    assert shown[4] == SCENE_CAPTIONS[cosines.argmax()]
    for caption, sentence in (("a purple 7 and a 3", "“purple”"), ("a " * 17, "more than 16 words"), ("", "no word")):
        tab.fill("#caption", caption)
        expect(problem).to_contain_text(sentence)  # once
        expect(bars).to_have_count(2 * 8)
    tab.locator("#clear-scene").click()
    expect(bars).to_have_count(0)
    tab.fill("#caption", "an upper half")
    for line in SCENE:
        draw_line(tab, "#scene-pad canvas", line, side=336)
    expect(bars).to_have_count(2 * (1 + 8))


def test_files_and_recordings_are_read_or_refused_in_one_sentence(open_page, tmp_path):
    tab = open_page(permissions=[])
    (tmp_path / "text.png").write_text("a text, not a picture")
    (tmp_path / "huge.png").write_bytes(bytes(65_000_000))
    draw(SEVEN, paper="black", ink="white", side=900).save(tmp_path / "seven.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "seven.png").read_bytes()[:60])
    for name, problem in (("text.png", "no picture"), ("cut.png", "no picture"), ("huge.png", "more than 64 MB")):
        tab.set_input_files("#picture", tmp_path / name)
        expect(tab.locator("#seen .problem")).to_contain_text(problem)
    tab.set_input_files("#picture", tmp_path / "seven.png")
    expect(tab.locator("#seen figure")).to_have_count(12)
    tab.set_input_files("#sound", tmp_path / "text.png")
    expect(tab.locator("#heard .problem")).to_contain_text("no sound")
    tab.click("#record")
    expect(tab.locator("#heard .problem")).to_contain_text("The microphone cannot be used")
    tab.context.grant_permissions(["microphone"])
    tab.click("#record")
    tab.get_by_role("button", name="stop").wait_for()
    tab.wait_for_timeout(1200)  # it beeps once in a second
    tab.click("#record")
    expect(tab.locator("#heard figure")).to_have_count(12 + 8)


def test_the_keyboard_alone_draws_and_every_control_has_a_name(open_page):
    tab = open_page()
    for key in ("Tab", "Tab", "Space", *["ArrowDown"] * 12, "Space"):  # the canvas is second
        tab.keyboard.press(key)
    expect(tab.locator("#seen .bar")).to_have_count(8)
    tab.locator("#scene-pad canvas").focus()
    for key in ("Space", *["ArrowDown"] * 12, "Space"):
        tab.keyboard.press(key)
    expect(tab.locator("#scene-seen .bar")).to_have_count(2 + 8)
    for control in tab.locator("button, input, textarea, canvas, progress").all():
        assert re.match(r"""- '?\w+ "\w""", control.aria_snapshot()), control.aria_snapshot()  # role "name"


def test_a_page_without_generator_speech_and_attributes_says_so(open_page, split):
    tab = open_page(build.build(CLIP(8, width=2, captions="digit").eval(), None, split).html)
    assert tab.locator("#record").is_disabled()
    expect(tab.locator("#scenes")).to_be_hidden()
    tab.get_by_role("button", name="seven").click()
    expect(tab.locator("#found .problem")).to_contain_text("make generator")
    draw_with_mouse(tab, SEVEN)
