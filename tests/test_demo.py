import base64
import concurrent.futures
import io
import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from playwright.sync_api import expect, sync_playwright
from scipy.io import wavfile

from captions import DIGIT_WORDS
from clip import CLIP
from conftest import ROOT, train_here
from data.not_digits import MAKERS
from demo import app, look, page
from demo.look import DRAWN, FOUND, PNG, Playground, decode_png, ink_of
from evaluation.metrics import embed_images
from evaluation.sections import open_set_score
from generator import Generator
from my_dataset import Split, load_mnist
from my_utils import InputError, exit_on_input_error

CHROMIUM = Path("/usr/bin/chromium")
needs_browser = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM}: apt-get install chromium")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
QUIET += ("--disable-component-update", "--disable-sync")
MICROPHONE = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")

# Ways of the pen on the canvas of 280 by 280.
SEVEN = [(80, 70), (200, 70), (130, 220)]
ZERO = [(140, 60), (100, 80), (85, 140), (100, 200), (140, 220), (180, 200), (195, 140), (180, 80), (140, 60)]
ZIGZAG = [(40 + 200 * (i % 2), 40 + 12 * i) for i in range(17)]


def tiny_generator(clip, mark: str = "") -> Generator:
    sizes = {"latent_dim": 6, "autoencoder_width": 2, "decoder_width": 16, "decoder_blocks": 1}
    return Generator(clip.arch["embed_dim"], mark, **sizes, prior_width=16, prior_blocks=1).eval()


@pytest.fixture(scope="module")
def playground(data_path, tmp_path_factory) -> Playground:
    """A model of one epoch, which reads digits; its tower for speech and its generator have learned nothing."""
    runs = tmp_path_factory.mktemp("demo")
    flags = ["--captions", "described", "--image-encoder", "fast", "--epochs", 1, "--device", "cpu"]
    assert train_here(*flags, "--data-path", data_path, "--runs-dir", runs, "--run-name", "run").returncode == 0
    clip = CLIP.load(runs / "best_model.pth")
    torch.manual_seed(0)
    clip.add_tower("speech").eval()
    test, val = (load_mnist(split, data_path) for split in ("test", "val"))
    return Playground(clip, test, val, tiny_generator(clip))


@pytest.fixture(scope="module")
def digits_only(data_path) -> Playground:
    """An untrained model whose captions name the digit alone, without a generator."""
    torch.manual_seed(0)
    clip = CLIP(embed_dim=8, width=2, image_encoder="fast", captions="digit").eval()
    test = load_mnist("test", data_path)
    few = Split(test.images[:500], test.labels[:500])
    return Playground.load(clip, few, few, "runs/no such generator.pth")


def drawn(path, width=18, scale=1.0, shift=(0, 0), bright=False) -> str:
    """What the canvas sends for a way of the pen."""
    ink, ground = (255, 0) if bright else (0, 255)
    canvas = Image.new("RGBA", (280, 280), (ground,) * 3 + (255,))
    points = [(140 + (x - 140) * scale + shift[0], 140 + (y - 140) * scale + shift[1]) for x, y in path]
    pen = ImageDraw.Draw(canvas)
    pen.line(points, fill=(ink,) * 3 + (255,), width=width)
    for x, y in points:
        pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=(ink,) * 3 + (255,))
    content = io.BytesIO()
    canvas.save(content, "PNG")
    return PNG + base64.b64encode(content.getvalue()).decode()


# ---- what the page asks of the model ----


@pytest.mark.parametrize("bright", [False, True])
@pytest.mark.parametrize(
    "how",
    [{"width": 8}, {"width": 18}, {"width": 40}, {"scale": 0.4, "width": 8, "shift": (-80, 80)}, {"shift": (60, -50)}],
)
def test_a_drawing_is_read_in_both_colours_with_any_pen_anywhere(playground, how, bright):
    for path, word in ((SEVEN, "seven"), (ZERO, "zero")):
        seen = playground.see(drawn(path, **how, bright=bright), "\n".join(DIGIT_WORDS))
        assert seen.bars[0][0] == word
        assert seen.is_digit
        assert word in seen.reading
        assert seen.image.shape == (28, 28)
        assert seen.image.amax() == 255
        assert (seen.image > 127).float().mean() < 0.5, "bright on dark"


def test_thickness_is_that_of_the_drawing(playground):
    thin, thick = (playground.see(drawn(SEVEN, width), "seven").looks for width in (10, 40))
    assert "thin" in thin
    assert "thick)" in thick


def test_what_is_no_digit_is_called_that(playground):
    assert not playground.see(drawn(ZIGZAG), "seven").is_digit
    assert "This is no digit" in page.see(playground)(drawn(ZIGZAG), "seven")


@pytest.mark.parametrize("which", ["playground", "digits_only"])
def test_the_digit_score_is_that_of_the_evaluation(which, request):
    own = request.getfixturevalue(which)
    digits = own.test.images[:50]
    scribbles = MAKERS["scribble"](digits[:, None].float() / 255, torch.Generator().manual_seed(0))[:, 0]
    features = embed_images(own.clip, torch.cat([digits.float() / 255, scribbles]))
    assert own.digit_score(features) == pytest.approx(open_set_score(own.clip, features), abs=1e-6)


def test_no_more_than_a_hundredth_of_validations_digits_is_called_no_digit(playground, data_path):
    scores = playground.digit_score(embed_images(playground.clip, load_mnist("val", data_path).images))
    assert (scores < playground.least_score).float().mean() == pytest.approx(look.FEWEST_DIGITS, abs=1e-3)


def test_a_description_finds_images_and_is_drawn(playground):
    found, drawings = playground.find("a  THICK\nseven ")
    assert (len(found), len(drawings)) == (FOUND, DRAWN)
    assert sum(one.lines[0] == "seven" for one in found) > FOUND / 2
    for one in found:
        word, px, rad = one.lines
        assert one.fits == (word == "seven" and "thick" in look.in_words(float(px.split()[0]), 0))
        assert rad.endswith(" rad")
    once, again = (torch.stack([one.image for one in playground.find("seven")[1]]) for _ in range(2))
    assert not torch.equal(once, again), "drawn anew each time"


def test_a_model_of_digits_alone_has_their_words_and_marks_nothing(digits_only):
    assert digits_only.first_sentences() == list(DIGIT_WORDS)
    seen = digits_only.see(drawn(SEVEN), "seven\n7\nzero")
    assert seen.reading in DIGIT_WORDS
    assert sorted(name for name, _ in seen.bars) == ["7", "seven", "zero"]
    found, drawings = digits_only.find("seven")
    assert [one.fits for one in found] == [None] * FOUND
    assert drawings == []


def test_what_a_checkpoint_lacks_is_named_with_the_command_that_makes_it(digits_only, playground, tmp_path):
    assert "<code>make generator</code>" in page.look_for(digits_only)("seven")
    file = tmp_path / "generator.pth"
    tiny_generator(digits_only.clip, "of another model").save(file)
    few = digits_only.test
    of_another = Playground.load(digits_only.clip, few, few, file)
    assert "trained with another CLIP" in page.look_for(of_another)("seven")
    assert "make generator" not in page.look_for(playground)("seven")
    texts = [str(block.value) for block in page.build(digits_only, "name").blocks.values() if hasattr(block, "value")]
    assert any("<code>make speech</code>" in text for text in texts)


def test_a_sentence_that_cannot_be_read_leaves_the_others(playground):
    seen = playground.see(drawn(SEVEN), f"seven\na purple cow\n\n{'7 ' * 200}\nzero")
    assert [name for name, _ in seen.bars] == ["seven", "zero"]
    unknown, long = seen.problems
    assert "'purple'" in unknown
    assert "399 characters" in long
    assert "is empty" in playground.see(drawn(SEVEN), " \n ").problems[0]
    assert "at most 60 sentences" in playground.see(drawn(SEVEN), "seven " * 100_000).problems[0]
    many = playground.see(drawn(SEVEN), "\n".join(" ".join(["seven"] * n) for n in range(1, 62))).problems
    assert "only the first 60" in many[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "type one"),
        (" \n", "type one"),
        ("seven" * 100, "500 characters"),
        ("a purple cow", "does not know the word &#x27;purple&#x27;"),
        ("?!", "has no word"),
        ("seven \ud800", "broken character"),
        ("<img src=x onerror=alert(1)>", "&lt;img src"),
    ],
)
def test_a_description_that_cannot_be_read_is_one_sentence_that_is_only_text(playground, text, said):
    answer = page.look_for(playground)(text)
    assert said in answer
    assert answer.startswith("<p class='problem' role='alert'>")
    assert answer.count("<") == 2


def test_a_drawing_that_is_none_is_refused():
    plain = Image.new("L", (2000, 20))
    content = io.BytesIO()
    plain.save(content, "PNG")
    too_large = PNG + base64.b64encode(content.getvalue()).decode()
    for url in ("https://127.0.0.1/7.png", PNG, PNG + "AAAA", PNG + "%", PNG + "A" * 3_000_000, too_large, 7, ["x"]):
        with pytest.raises(InputError, match="cannot be read"):
            decode_png(url)
    for empty in (torch.ones(28, 28), torch.zeros(28, 28)):
        with pytest.raises(InputError, match="canvas is empty"):
            ink_of(empty)
    with pytest.raises(InputError, match="canvas is empty"):
        decode_png("")


def wav(path: Path, samples: np.ndarray) -> Path:
    wavfile.write(path, 8000, samples)
    return path


def a_tone() -> np.ndarray:
    return (9000 * np.sin(np.arange(8000) * 0.2) * np.sin(np.arange(8000) / 8000 * np.pi)).astype(np.int16)


def test_a_sound_is_compared_and_drawn(playground, monkeypatch, tmp_path):
    seven = playground.clip.encode_text(["seven"]).detach()
    monkeypatch.setattr(playground.clip, "encode_speech", lambda sounds: seven)
    heard = playground.hear(str(wav(tmp_path / "seven.wav", a_tone())), "six\nseven")
    assert [name for name, _ in heard.bars] == ["seven", "six"]
    assert (len(heard.similar), len(heard.drawn)) == (FOUND, DRAWN)


def test_a_sound_that_cannot_be_used_is_one_sentence_without_its_place(playground, monkeypatch, tmp_path):
    hear = page.hear(playground)
    (tmp_path / "text.wav").write_text("a text, not a sound")
    for file, said in (
        (tmp_path / "text.wav", "it is no wav file, or is cut off"),
        (wav(tmp_path / "silence.wav", np.zeros(8000, np.int16)), "all silence"),
        (wav(tmp_path / "empty.wav", np.zeros(0, np.int16)), "empty"),
        (tmp_path / "none.wav", "no longer there"),
    ):
        answer = hear(str(file), "seven")
        assert answer.startswith("<p class='problem' role='alert'>The sound cannot be used: ")
        assert said in answer
        assert str(tmp_path) not in answer
    monkeypatch.setattr(look, "LARGEST_SOUND", 100)
    assert "record a single digit" in hear(str(wav(tmp_path / "long.wav", a_tone())), "seven")
    assert hear(None, "seven") == ""


# ---- the script ----


def test_a_wrong_flag_is_one_sentence():
    command = [sys.executable, "-m", "demo.app", "--port", "seven"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: argument --port: 'seven' is not a whole number from 1024")
    assert done.stderr.count("\n") == 1


def test_no_checkpoint_and_a_taken_port_are_one_sentence(capsys, tmp_path):
    def run(*flags) -> str:
        with pytest.raises(SystemExit) as end, exit_on_input_error(interrupts=False):
            app.main(app.read_flags([*map(str, flags), "--no-browser", "--device", "cpu"]))
        assert end.value.code == 2
        return capsys.readouterr().err

    with socket.create_server((app.HOST, 0)) as taken:
        port = taken.getsockname()[1]
        assert run("--port", port) == (
            f"error: port {port} cannot be used (Address already in use): choose another, as in make demo"
            ' ARGS="--port 8000"\n'
        )
    error = run("--port", port, "--clip", tmp_path / "no.pth")
    assert error.startswith(f"error: there is no checkpoint {tmp_path / 'no.pth'}: train one with `make train`")
    assert error.count("\n") == 1


# ---- the page, served ----


@pytest.fixture(scope="module")
def served(playground, tmp_path_factory):
    """The page at `url`; `reached` are the addresses that this process calls meanwhile."""
    with socket.create_server((app.HOST, 0)) as probe:
        port = probe.getsockname()[1]
    reached, listening = [], [True]

    def listen(event, args):
        if listening[0] and event in ("socket.connect", "socket.getaddrinfo"):
            reached.append(args[1] if event == "socket.connect" else args[:2])

    sys.addaudithook(listen)  # (there is no way to take it away)
    site = app.serve(playground, "runs/best_model.pth", port, str(tmp_path_factory.mktemp("sounds")))
    yield SimpleNamespace(url=f"http://{app.HOST}:{port}", port=port, reached=reached)
    listening[0] = False
    site.close(verbose=False)


def ask(served, path: str, *values, **headers) -> tuple[int, str]:
    """GET a path of the page, or POST values to it -> the status and what came back."""
    data = json.dumps({"data": values}).encode() if values else None
    headers = {"Content-Type": "application/json"} | headers
    try:
        with urllib.request.urlopen(urllib.request.Request(served.url + path, data, headers), timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_no_file_of_the_machine_can_be_read(served):
    assert ask(served, "/")[0] == 200
    for file in ("/etc/passwd", "//etc/passwd", "../../../../../etc/passwd", str(ROOT / "README.md"), "README.md"):
        for path in (f"/gradio_api/file={file}", f"/gradio_api/file/{file}", f"/file={file}", f"/static/{file}"):
            status, text = ask(served, path)
            assert status in (403, 404), path
            assert "root:" not in text
            assert "MINIST" not in text
    assert ask(served, "/gradio_api/proxy=https://example.org/")[0] == 400


def test_another_name_for_this_machine_is_refused(served):
    assert ask(served, "/config", Host="example.org")[0] == 400
    assert ask(served, "/config", Host=f"localhost:{served.port}")[0] == 200


def test_ten_requests_at_once_are_answered(served):
    words = "\n".join(DIGIT_WORDS)
    jobs = [("/gradio_api/run/see", drawn(path), words) for path in (SEVEN, ZERO) * 3]
    jobs += [("/gradio_api/run/find", word) for word in DIGIT_WORDS[:4]]
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda job: ask(served, *job), jobs))
    assert [status for status, _ in answers] == [200] * 10
    for i, (_, text) in enumerate(answers[:6]):
        assert f"<span class='name'>{('seven', 'zero')[i % 2]}</span>" in text.split("class='bar'")[1]
    for _, text in answers[6:]:
        assert text.count("<figure") == FOUND + DRAWN


# ---- the page in a browser ----


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET + MICROPHONE)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser, served):
    """A function that opens the page; at the end nothing but this machine was asked for anything."""
    asked, errors, opened = [], [], []

    def open_page(**options):
        one = browser.new_page(**options)
        opened.append(one)
        one.on("request", lambda request: asked.append(request.url))
        one.on("pageerror", lambda error: errors.append(str(error)))
        one.set_default_timeout(20_000)
        one.goto(served.url)
        expect(one.locator("#seen .problem")).to_contain_text("The canvas is empty")
        return one

    expect.set_options(timeout=20_000)
    yield open_page
    for one in opened:
        one.close()
    assert asked
    assert [url for url in asked if not url.startswith((served.url, "data:", "blob:"))] == []
    assert errors == []


def on_canvas(tab, path) -> list[tuple[float, float]]:
    box = tab.locator("#pad canvas").bounding_box()
    size = box["width"] / 280
    return [(box["x"] + x * size, box["y"] + y * size) for x, y in path]


def draw_with_mouse(tab, path) -> None:
    first, *rest = on_canvas(tab, path)
    tab.mouse.move(*first)
    tab.mouse.down()
    for place in rest:
        tab.mouse.move(*place, steps=4)
    tab.mouse.up()


def best_caption(tab):
    return tab.locator("#seen .bar .name").first


@needs_browser
def test_a_seven_and_a_zero_drawn_with_the_mouse(tab, served):
    tab = tab(viewport={"width": 1280, "height": 900})
    tab.fill("#sentences textarea", "\n".join(DIGIT_WORDS))
    draw_with_mouse(tab, SEVEN)
    expect(best_caption(tab)).to_have_text("seven")
    expect(tab.locator("#seen")).to_contain_text("px thick")
    assert tab.evaluate("document.querySelector('#seen .seen img').naturalWidth") == 28
    assert tab.locator("#seen figure").count() == FOUND
    tab.click("#pad .clear")
    expect(tab.locator("#seen .problem")).to_contain_text("The canvas is empty")
    tab.click("#pad .colours")
    draw_with_mouse(tab, ZERO)
    expect(best_caption(tab)).to_have_text("zero")
    tab.click("#pad .colours")  # its negative
    tab.fill("#sentences textarea", "one\nzero\na purple cow")
    expect(tab.locator("#seen .problem")).to_contain_text("'purple'")
    expect(tab.locator("#seen .bar")).to_have_count(2)
    expect(best_caption(tab)).to_have_text("zero")
    hosts = {address[0] for address in served.reached if isinstance(address, tuple)}
    assert hosts <= {app.HOST, "localhost"}, "the server, too, calls this machine alone"


@needs_browser
def test_a_finger_and_a_pen_draw_on_a_phone(tab):
    tab = tab(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    tab.fill("#sentences textarea", "\n".join(DIGIT_WORDS))
    tab.locator("#pad canvas").scroll_into_view_if_needed()
    device = tab.context.new_cdp_session(tab)
    places = on_canvas(tab, SEVEN)
    for kind, place in zip(("touchStart", "touchMove", "touchMove"), places, strict=True):
        x, y = place
        device.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
    device.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    expect(best_caption(tab)).to_have_text("seven")
    tab.click("#pad .clear")
    expect(tab.locator("#seen .problem")).to_contain_text("The canvas is empty")
    tab.locator("#pad canvas").scroll_into_view_if_needed()
    pen = {"button": "left", "buttons": 1, "clickCount": 1, "pointerType": "pen"}
    places = on_canvas(tab, ZERO)
    for i, (x, y) in enumerate(places):
        kind = "mouseMoved" if i else "mousePressed"
        device.send("Input.dispatchMouseEvent", {"type": kind, "x": x, "y": y, "force": 0.5} | pen)
    x, y = places[-1]
    device.send("Input.dispatchMouseEvent", {"type": "mouseReleased", "x": x, "y": y} | pen | {"buttons": 0})
    expect(best_caption(tab)).to_have_text("zero")
    right = "Math.max(...[...document.querySelectorAll('#seen *, #pad *')].map(x => x.getBoundingClientRect().right))"
    assert tab.evaluate(right) <= 390, "nothing is clipped"


@needs_browser
def test_descriptions_typed_into_the_page(tab):
    tab = tab(viewport={"width": 1280, "height": 900})
    tab.get_by_role("tab", name="Type").click()
    box, problem = tab.locator("#text input, #text textarea").first, tab.locator("#found .problem")

    box.fill("a thick seven leaning left")
    tab.click("#find")
    expect(tab.locator("#found figure")).to_have_count(FOUND + DRAWN)
    assert tab.locator("#found figcaption").first.inner_text().count("\n") == 2
    box.fill("")
    tab.click("#find")
    expect(problem).to_contain_text("There is no description yet")
    tab.get_by_role("button", name="a thin zero").click()
    expect(tab.locator("#found figure")).to_have_count(FOUND + DRAWN)
    for text, said in (
        ("seven " * 20_000, "119,999 characters"),
        ("a purple cow", "does not know the word 'purple'"),
    ):
        box.fill(text)
        box.press("Enter")
        expect(problem).to_contain_text(said)


@needs_browser
def test_a_recording_and_a_file_are_heard(tab, tmp_path):
    tab = tab(viewport={"width": 1280, "height": 900})
    tab.get_by_role("tab", name="Say").click()
    sound, heard = tab.locator("#sound"), tab.locator("#heard")
    sound.get_by_role("button", name="Record", exact=True).click()  # the browser's own microphone beeps each second
    expect(sound.get_by_role("button", name="Stop").first).to_be_visible()
    tab.wait_for_timeout(1500)
    sound.get_by_role("button", name="Stop").first.click()
    expect(heard.locator(".bar")).to_have_count(look.SHOWN)
    expect(heard.locator("figure")).to_have_count(FOUND + DRAWN)

    sound.get_by_role("button", name="Clear").click()
    expect(heard.locator(".bar")).to_have_count(0)
    sound.get_by_role("button", name="Upload file").click()
    (tmp_path / "text.wav").write_text("a text, not a sound")
    sound.locator("input[type=file]").set_input_files(tmp_path / "text.wav")
    expect(heard.locator(".problem")).to_contain_text("no wav file, or is cut off")
    sound.get_by_role("button", name="Clear").click()
    sound.locator("input[type=file]").set_input_files(wav(tmp_path / "tone.wav", a_tone()))
    expect(heard.locator(".bar")).to_have_count(look.SHOWN)
