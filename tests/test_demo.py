import base64
import concurrent.futures
import io
import json
import os
import re
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from playwright.sync_api import expect, sync_playwright
from scipy.io import wavfile

from captions import DIGIT_WORDS
from clip import CLIP
from conftest import train_here
from demo import app, page
from demo.playground import N_BARS, N_NEAREST, N_SAMPLES, PNG, Playground, decode_drawing
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


def save_tiny_generator(clip, path: Path, fingerprint: str) -> Path:
    sizes = {"latent_dim": 6, "autoencoder_width": 2, "decoder_width": 16, "decoder_blocks": 1}
    Generator(clip.arch["embed_dim"], fingerprint, **sizes, prior_width=16, prior_blocks=1).save(path)
    return path


@pytest.fixture(scope="module")
def model(data_path, tmp_path_factory) -> Playground:
    """A model of one epoch, which reads digits; its tower for speech and its generator are untrained."""
    runs = tmp_path_factory.mktemp("demo")
    train_here("--image-encoder", "fast", "--epochs", 1, "--data-path", data_path, "--runs-dir", runs)
    clip = CLIP.load(runs / "best_model.pth")
    torch.manual_seed(0)
    clip.add_tower("speech").eval()
    generator = save_tiny_generator(clip, runs / "generator.pth", clip.fingerprint())
    return Playground(clip, load_mnist("test", data_path), generator)


@pytest.fixture(scope="module")
def few(data_path) -> Split:
    return Split(*(x[:500] for x in load_mnist("test", data_path)))


@pytest.fixture(scope="module")
def digit_model(few) -> Playground:
    """An untrained model whose captions name the digit alone, without a generator."""
    torch.manual_seed(0)
    clip = CLIP(embed_dim=8, width=2, image_encoder="fast", captions="digit").eval()
    return Playground(clip, few, "runs/no such generator.pth")


def data_url(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, "PNG")
    return PNG + base64.b64encode(content.getvalue()).decode()


def drawing(path, width=18, scale=1.0, shift=(0, 0)) -> str:
    """What the canvas sends for a path of the pen."""
    canvas = Image.new("RGBA", (280, 280), "white")
    points = [(140 + (x - 140) * scale + shift[0], 140 + (y - 140) * scale + shift[1]) for x, y in path]
    ImageDraw.Draw(canvas).line(points, fill="black", width=width, joint="curve")
    return data_url(canvas)


def captions_in(answer: str) -> list[str]:
    """The sentences of an answer's bars, the best first."""
    return re.findall("class='name'>(.*?)<", answer)


def labels_in(answer: str) -> list[str]:
    """The digits below an answer's images."""
    return re.findall("<figcaption>(.*?)<", answer)


# ---- what the page asks of the model ----


@pytest.mark.parametrize(
    "how", [{"width": 8}, {"width": 40}, {"scale": 0.4, "width": 8, "shift": (-80, 80)}, {"shift": (60, -50)}]
)
def test_a_drawing_is_read_with_any_pen_anywhere(model, how):
    for path, word in ((SEVEN, "seven"), (ZERO, "zero")):
        url = drawing(path, **how)
        assert captions_in(page.see(model, url, "\n".join(DIGIT_WORDS)))[0] == word
        assert word in captions_in(page.see(model, url, "\n".join(model.suggested)))[0]
        assert (decode_drawing(url) > 127).float().mean() < 0.5, "bright on dark"


def test_a_zigzag_is_not_a_digit(model):
    answer = page.see(model, drawing(ZIGZAG), "\n".join(model.suggested))
    assert captions_in(answer)[0] == "not a digit"


def test_a_description_finds_and_generates_images(model):
    answer = page.find(model, "a  THICK\nseven ")
    found = answer[: answer.index("<h3>generated")]
    assert (len(labels_in(found)), len(labels_in(answer))) == (N_NEAREST, N_NEAREST + N_SAMPLES)
    assert labels_in(found).count("seven") > N_NEAREST / 2
    widths = [float(width) for width in re.findall(r"<br>([\d.]+) px<br>[+-][\d.]+ rad", found)]
    assert sum(width > 2.85 for width in widths) > N_NEAREST / 2
    embed = model.embed_text("seven")
    assert not torch.equal(model.sample(embed, "seven")[0], model.sample(embed, "seven")[0]), "new samples each time"


def test_what_a_checkpoint_lacks_is_named_with_the_command_that_makes_it(digit_model, few, tmp_path):
    assert digit_model.suggested == list(DIGIT_WORDS), "its captions name no attributes"
    assert "`make generator`" in page.find(digit_model, "seven")
    wavfile.write(tmp_path / "noise.wav", 8000, np.random.default_rng(0).normal(size=8000))
    assert "`make speech`" in page.answer(page.hear, digit_model, str(tmp_path / "noise.wav"), "seven")
    other = save_tiny_generator(digit_model.clip, tmp_path / "generator.pth", "of another model")
    assert "another CLIP" in Playground(digit_model.clip, few, other).no_generator


def test_a_sentence_that_cannot_be_read_leaves_the_others(model):
    answer = page.see(model, drawing(SEVEN), "seven\na purple cow\n\nzero\nseven")
    assert captions_in(answer) == ["seven", "zero"]
    assert "&#x27;purple&#x27;" in answer
    assert "is empty" in page.see(model, drawing(SEVEN), " \n ")


@pytest.mark.parametrize("text", [" \n", "seven" * 100, "a purple cow", "?!", "<img src=x onerror=a(1)>"])
def test_a_description_that_cannot_be_read_is_one_sentence_that_is_only_text(model, text):
    assert re.fullmatch("<p class='problem' role='alert'>[^<]*</p>", page.answer(page.find, model, text))


@pytest.mark.parametrize("url", ["", data_url(Image.new("L", (28, 28), 255)), PNG + "AAAA", PNG + "%", 7, ["x"]])
def test_an_invalid_drawing_is_one_sentence(model, url):
    assert re.fullmatch("<p class='problem' role='alert'>[^<]*</p>", page.answer(page.see, model, url, "seven"))


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
    os.environ["GRADIO_TEMP_DIR"] = str(tmp_path_factory.mktemp("sounds"))
    site = app.serve(model, port)
    url = f"http://{app.HOST}:{port}"
    yield SimpleNamespace(url=url, port=port, called=called, client=httpx.Client(base_url=url, trust_env=False))
    site.close(verbose=False)


def test_a_second_page_on_one_port_is_told_to_choose_another(served, digit_model):
    with pytest.raises(InputError, match=f"port {served.port} is used by another program: choose another"):
        app.serve(digit_model, served.port)


def test_no_file_of_the_machine_and_no_other_site_can_be_read(served):
    assert served.client.get("/config").status_code == 200
    for file in ("/etc/passwd", "//etc/passwd", "../../../../../etc/passwd", "README.md"):
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
        body, headers = json.dumps({"data": job[1:]}), {"Content-Type": "application/json"}
        answer = served.client.post(f"/gradio_api/run/{job[0]}", content=body, headers=headers, timeout=30)
        return answer.json()["data"][0]

    jobs = [("see", drawing(path), "seven \ud800\nzero") for path in (SEVEN, ZERO) * 3]
    jobs += [("find", word) for word in DIGIT_WORDS[:4]]
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(ask, jobs))
    assert [captions_in(text)[0] for text in answers[:6]] == ["seven ?", "zero"] * 3
    assert {len(labels_in(text)) for text in answers[6:]} == {N_NEAREST + N_SAMPLES}


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
    draw_with_mouse(tab, ZERO)
    expect(tab.locator(BEST_CAPTION)).to_have_text("zero")
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
    box.press("Enter")
    expect(problem).to_contain_text("has no word")
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
