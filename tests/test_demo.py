import base64
import concurrent.futures
import io
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import torch
from PIL import Image, ImageDraw
from playwright.sync_api import expect, sync_playwright

from captions import DIGIT_WORDS
from clip import CLIP
from conftest import ROOT, train_here
from demo import app, page, playground
from demo.playground import N_BARS, N_NEAREST, N_SAMPLES, PNG, Playground, decode_png, ink_of
from evaluation.metrics import embed_images
from evaluation.ood import ood_score
from generation.model import Generator
from my_dataset import Split, load_mnist
from my_utils import InputError, exit_on_error

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ("--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync")
FLAGS += ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")  # a microphone that beeps
BEST_CAPTION = "#seen .bar .name >> nth=0"

# Paths of the pen on the canvas of 280 by 280.
SEVEN = [(80, 70), (200, 70), (130, 220)]
ZERO = [(140, 60), (100, 80), (85, 140), (100, 200), (140, 220), (180, 200), (195, 140), (180, 80), (140, 60)]
ZIGZAG = [(40 + 200 * (i % 2), 40 + 12 * i) for i in range(17)]


def tiny_generator(clip, fingerprint: str = "") -> Generator:
    sizes = {"latent_dim": 6, "autoencoder_width": 2, "decoder_width": 16, "decoder_blocks": 1}
    return Generator(clip.arch["embed_dim"], fingerprint, **sizes, prior_width=16, prior_blocks=1).eval()


@pytest.fixture(scope="module")
def model(data_path, tmp_path_factory) -> Playground:
    """A model of one epoch, which reads digits; its tower for speech and its generator are untrained."""
    runs = tmp_path_factory.mktemp("demo")
    train_here("--image-encoder", "fast", "--epochs", 1, "--data-path", data_path, "--runs-dir", runs)
    clip = CLIP.load(runs / "best_model.pth")
    torch.manual_seed(0)
    clip.add_tower("speech").eval()
    return Playground(clip, load_mnist("test", data_path), load_mnist("val", data_path), tiny_generator(clip))


@pytest.fixture(scope="module")
def digit_model(data_path) -> Playground:
    """An untrained model whose captions name the digit alone, without a generator."""
    torch.manual_seed(0)
    clip = CLIP(embed_dim=8, width=2, image_encoder="fast", captions="digit").eval()
    few = Split(*(x[:500] for x in load_mnist("test", data_path)))
    return Playground.load(clip, few, few, "runs/no such generator.pth")


def data_url(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, "PNG")
    return PNG + base64.b64encode(content.getvalue()).decode()


def drawing(path, width=18, scale=1.0, shift=(0, 0), bright=False) -> str:
    """What the canvas sends for a path of the pen."""
    ink, background = ("white", "black") if bright else ("black", "white")
    canvas = Image.new("RGBA", (280, 280), background)
    points = [(140 + (x - 140) * scale + shift[0], 140 + (y - 140) * scale + shift[1]) for x, y in path]
    ImageDraw.Draw(canvas).line(points, fill=ink, width=width, joint="curve")
    return data_url(canvas)


# ---- what the page asks of the model ----


@pytest.mark.parametrize("bright", [False, True])
@pytest.mark.parametrize(
    "how", [{"width": 8}, {"width": 40}, {"scale": 0.4, "width": 8, "shift": (-80, 80)}, {"shift": (60, -50)}]
)
def test_a_drawing_is_read_in_both_colours_with_any_pen_anywhere(model, how, bright):
    for path, word in ((SEVEN, "seven"), (ZERO, "zero")):
        seen = model.see(drawing(path, **how, bright=bright), "\n".join(DIGIT_WORDS))
        assert seen.bars[0][0] == word
        assert seen.is_digit
        assert word in seen.caption
        assert (seen.image > 127).float().mean() < 0.5, "bright on dark"


def test_attributes_are_those_of_the_drawing(model):
    assert "thick)" in model.see(drawing(SEVEN, width=40), "seven").measured
    described = playground.describe_values(torch.tensor([2.5, 0.3]))
    assert described == "thickness 2.5 px (medium), slant +0.30 rad (leaning right)"


def test_a_zigzag_is_no_digit_by_the_score_of_the_evaluation(model, data_path):
    assert "This is no digit" in page.see(model, drawing(ZIGZAG), "seven")
    features = embed_images(model.clip, load_mnist("val", data_path).images)
    scores = model.digit_score(features)
    assert scores == pytest.approx(ood_score(model.clip, features), abs=1e-6)
    assert (scores < model.threshold).float().mean() == pytest.approx(0.01, abs=1e-3)


def test_a_description_finds_and_generates_images(model):
    found, samples = model.find("a  THICK\nseven ")
    assert (len(found), len(samples)) == (N_NEAREST, N_SAMPLES)
    assert sum(one.lines[0] == "seven" for one in found) > N_NEAREST / 2
    for one in found:
        word, thickness, slant = one.lines
        assert one.is_match == (word == "seven" and float(thickness.removesuffix(" px")) > 2.85)
        assert slant.endswith(" rad")
    once, again = (torch.stack([one.image for one in model.find("seven")[1]]) for _ in range(2))
    assert not torch.equal(once, again), "new samples each time"
    found, samples = model.find("nothing but a seven")
    assert {one.is_match for one in found + samples} == {None}, "a negation is not understood, and not judged"


def test_what_a_checkpoint_lacks_is_named_with_the_command_that_makes_it(digit_model, model, tmp_path):
    assert digit_model.suggested_sentences() == list(DIGIT_WORDS), "its captions name no attributes"
    assert digit_model.see(drawing(SEVEN), "seven").caption in DIGIT_WORDS
    assert "<code>make generator</code>" in page.find(digit_model, "seven")
    tiny_generator(digit_model.clip, "of another model").save(tmp_path / "generator.pth")
    few = digit_model.test
    assert "another CLIP" in Playground.load(digit_model.clip, few, few, tmp_path / "generator.pth").no_generator
    texts = [str(getattr(block, "value", "")) for block in page.build(digit_model, "name").blocks.values()]
    assert any("<code>make speech</code>" in text for text in texts)


def test_a_sentence_that_cannot_be_read_leaves_the_others(model):
    seen = model.see(drawing(SEVEN), f"seven\na purple cow\n\n{'7 ' * 200}\nzero")
    assert [name for name, _ in seen.bars] == ["seven", "zero"]
    assert "'purple'" in seen.problems[0]
    assert "more than 200" in seen.problems[1]
    assert "is empty" in model.see(drawing(SEVEN), " \n ").problems[0]
    many = "\n".join(" ".join(["7"] * n) for n in range(1, 62))
    assert "only the first 60" in model.see(drawing(SEVEN), many).problems[0]


@pytest.mark.parametrize(
    "text", [" \n", "seven" * 100, "a purple cow", "?!", "seven \ud800", "<img src=x onerror=a(1)>"]
)
def test_a_description_that_cannot_be_read_is_one_sentence_that_is_only_text(model, text):
    answer = page.answer(page.find, model, text)
    assert answer.startswith("<p class='problem' role='alert'>")
    assert answer.count("<") == 2


def test_an_invalid_drawing_is_refused():
    too_large = data_url(Image.new("L", (2000, 20)))
    for url in ("https://127.0.0.1/7.png", PNG, PNG + "AAAA", PNG + "%", PNG + "A" * 3_000_000, too_large, 7, ["x"]):
        with pytest.raises(InputError, match="cannot be read"):
            decode_png(url)
    for empty in (torch.ones(28, 28), torch.zeros(28, 28)):
        with pytest.raises(InputError, match="canvas is empty"):
            ink_of(empty)


def test_an_invalid_sound_is_one_sentence_without_its_folder(model, tmp_path):
    (tmp_path / "text.wav").write_text("a text, not a sound")
    (tmp_path / "long.wav").touch()
    os.truncate(tmp_path / "long.wav", 2**31)
    for file, message in (("text.wav", "no wav file"), ("long.wav", "too much"), ("none.wav", "no file none.wav")):
        answer = page.answer(page.hear, model, str(tmp_path / file), "seven")
        assert answer.startswith("<p class='problem' role='alert'>The sound cannot be used: ")
        assert message in answer
        assert str(tmp_path) not in answer


# ---- the script, and the page that it serves ----


def test_a_missing_checkpoint_is_one_sentence(capsys, tmp_path):
    with pytest.raises(SystemExit) as end, exit_on_error():
        app.main(["--clip", str(tmp_path / "no.pth"), "--no-browser", "--device", "cpu"])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: there is no file {tmp_path / 'no.pth'}")
    assert error.count("\n") == 1


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    """The page at `url`; `called` are the names of the machines that this process calls."""
    with socket.create_server((app.HOST, 0)) as probe:
        port = probe.getsockname()[1]
    called = []
    sys.addaudithook(lambda event, args: called.append(args[0]) if event == "socket.getaddrinfo" else None)
    site = app.serve(model, "runs/best_model.pth", port, str(tmp_path_factory.mktemp("sounds")))
    url = f"http://{app.HOST}:{port}"
    yield SimpleNamespace(url=url, port=port, called=called, client=httpx.Client(base_url=url, trust_env=False))
    site.close(verbose=False)


def test_a_second_page_on_one_port_is_told_to_choose_another(served, digit_model):
    with pytest.raises(InputError, match=f"port {served.port} is used by another program: choose another"):
        app.serve(digit_model, "name", served.port, os.environ["GRADIO_TEMP_DIR"])


def test_no_file_of_the_machine_and_no_other_site_can_be_read(served):
    assert served.client.get("/config").status_code == 200
    for file in ("/etc/passwd", "//etc/passwd", "../../../../../etc/passwd", str(ROOT / "README.md"), "README.md"):
        for path in (f"/gradio_api/file={file}", f"/gradio_api/file/{file}", f"/file={file}", f"/static/{file}"):
            answer = served.client.get(path)
            assert answer.status_code in (403, 404), path
            assert "root:" not in answer.text
            assert "MINIST" not in answer.text
    assert served.client.get("/gradio_api/proxy=https://example.org/").status_code == 400
    other_name = served.client.get("/config", headers={"Host": "example.org"})
    assert other_name.status_code == 400, "a web site that gives its own name this machine's address"


def test_ten_requests_at_once_are_answered(served):
    def ask(job) -> str:
        return served.client.post(f"/gradio_api/run/{job[0]}", json={"data": job[1:]}, timeout=30).json()["data"][0]

    jobs = [("see", drawing(path), "seven\nzero") for path in (SEVEN, ZERO) * 3]
    jobs += [("find", word) for word in DIGIT_WORDS[:4]]
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(ask, jobs))
    assert [text.split("class='name'>")[1].split("<")[0] for text in answers[:6]] == ["seven", "zero"] * 3
    assert {text.count("<figure") for text in answers[6:]} == {N_NEAREST + N_SAMPLES}


# ---- the page in a browser ----


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}: apt-get install chromium")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


@pytest.fixture
def open_page(browser, served):
    """Opens the page in the browser; at the end nothing but this machine was asked for anything."""
    asked, errors = [], []
    expect.set_options(timeout=20_000)

    def open_page(width: int, height: int, **options):
        tab = browser.new_page(viewport={"width": width, "height": height}, **options)
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(served.url)
        expect(tab.locator("#seen .problem")).to_contain_text("The canvas is empty")
        return tab

    yield open_page
    assert [url for url in asked if not url.startswith((served.url, "data:", "blob:"))] == []
    assert errors == []
    assert set(served.called) <= {app.HOST, "localhost", None}, "the server, too, calls this machine alone"


def on_canvas(tab, path) -> list[tuple[float, float]]:
    """The path in pixels of the window."""
    box = tab.locator("#pad canvas").bounding_box()
    return [(box["x"] + x * box["width"] / 280, box["y"] + y * box["width"] / 280) for x, y in path]


def draw_with_mouse(tab, path) -> None:
    for i, place in enumerate(on_canvas(tab, path)):
        tab.mouse.move(*place, steps=4)
        if i == 0:
            tab.mouse.down()
    tab.mouse.up()


def test_a_seven_and_a_zero_drawn_with_the_mouse(open_page):
    tab = open_page(1280, 900)
    tab.fill("#sentences textarea", "\n".join(DIGIT_WORDS))
    draw_with_mouse(tab, SEVEN)
    expect(tab.locator(BEST_CAPTION)).to_have_text("seven")
    assert tab.locator("#seen figure").count() == N_NEAREST
    tab.click("#pad .clear")
    expect(tab.locator("#seen .problem")).to_contain_text("The canvas is empty")
    tab.click("#pad .colours")
    draw_with_mouse(tab, ZERO)
    expect(tab.locator(BEST_CAPTION)).to_have_text("zero")
    tab.click("#pad .colours")  # its negative
    tab.fill("#sentences textarea", "a zero\na purple cow")
    expect(tab.locator(BEST_CAPTION)).to_have_text("a zero")


def test_a_finger_draws_on_a_phone(open_page):
    tab = open_page(390, 844, has_touch=True, is_mobile=True)
    tab.fill("#sentences textarea", "\n".join(DIGIT_WORDS))
    device = tab.context.new_cdp_session(tab)
    for i, (x, y) in enumerate(on_canvas(tab, SEVEN)):
        touch = {"type": "touchMove" if i else "touchStart", "touchPoints": [{"x": x, "y": y}]}
        device.send("Input.dispatchTouchEvent", touch)
    device.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    expect(tab.locator(BEST_CAPTION)).to_have_text("seven")
    right = "Math.max(...[...document.querySelectorAll('#seen *, #pad *')].map(x => x.getBoundingClientRect().right))"
    assert tab.evaluate(right) <= 390, "nothing is clipped"


def test_descriptions_typed_into_the_page(open_page):
    tab = open_page(1280, 900)
    tab.get_by_role("tab", name="Type").click()
    box, problem = tab.locator("#text input, #text textarea").first, tab.locator("#found .problem")
    tab.click("#find")
    expect(problem).to_contain_text("There is no description yet")
    tab.get_by_role("button", name="a thin zero").click()
    expect(tab.locator("#found figure")).to_have_count(N_NEAREST + N_SAMPLES)
    box.fill("a purple cow")
    box.press("Enter")
    expect(problem).to_contain_text("'purple'")


def test_a_recording_and_a_file_are_heard(open_page, tmp_path):
    tab = open_page(1280, 900)
    tab.get_by_role("tab", name="Say").click()
    sound, heard = tab.locator("#sound"), tab.locator("#heard")
    sound.get_by_role("button", name="Record", exact=True).click()
    expect(sound.get_by_role("button", name="Stop").first).to_be_visible()
    tab.wait_for_timeout(1500)
    sound.get_by_role("button", name="Stop").first.click()
    expect(heard.locator("figure")).to_have_count(N_NEAREST + N_SAMPLES)
    expect(heard.locator(".bar")).to_have_count(N_BARS)
    sound.get_by_role("button", name="Clear").click()
    expect(heard.locator(".bar")).to_have_count(0)
    sound.get_by_role("button", name="Upload file").click()
    (tmp_path / "text.wav").write_text("a text, not a sound")
    sound.locator("input[type=file]").set_input_files(tmp_path / "text.wav")
    expect(heard.locator(".problem")).to_contain_text("no wav file")
