"""The page: where its parts stand, and the playground's results as HTML."""

import base64
import functools
import html
import io
from collections.abc import Callable
from pathlib import Path

import gradio as gr
from PIL import Image
from torch import Tensor

from demo.playground import Playground, Thumbnail
from my_utils import InputError

HERE = Path(__file__).parent
EXAMPLES = ("a thick seven leaning left", "a thin zero", "an italic four in fine strokes", "a fat upright eight")
# Asked directly: Gradio's queue would take longer than the model. Of the changes meanwhile only the last one is asked.
DIRECTLY = {"show_progress": "hidden", "queue": False, "trigger_mode": "always_last"}


def build(playground: Playground, name: str) -> gr.Blocks:
    """The page on a model; `name` says which."""

    def ask(function: Callable, triggers: list, inputs: list, output: gr.HTML) -> None:
        """Keep `output` at the answer to `inputs`."""
        run = functools.partial(answer, function, playground)
        gr.on(triggers, run, inputs, output, api_name=function.__name__, **DIRECTLY)

    with gr.Blocks(analytics_enabled=False, title="MINIST-CLIP", delete_cache=(600, 600)) as page:
        gr.Markdown(f"## MINIST-CLIP: try the model\n`{name}`")
        with gr.Tab("Draw"), gr.Row():
            with gr.Column(scale=3, min_width=280):
                # A canvas of our own: its value is the drawing as a PNG data URL, new after each stroke, "" when empty.
                # Gradio's sketchpad uploads three files for each stroke, which took some two seconds.
                template, script = ((HERE / file).read_text() for file in ("canvas.html", "canvas.js"))
                pad = gr.HTML("", html_template=template, js_on_load=script, elem_id="pad")
            with gr.Column(scale=4, min_width=300):
                seen = gr.HTML(elem_id="seen", elem_classes="answer")
            with gr.Column(scale=2, min_width=220):
                suggested, info = "\n".join(playground.suggested_sentences()), "compared with what you draw or say"
                lines = {"lines": 12, "max_lines": 24, "label": "sentences, one per line", "info": info}
                sentences = gr.Textbox(suggested, elem_id="sentences", **lines)
        with gr.Tab("Type"):
            with gr.Row():
                text = gr.Textbox(label="description", scale=5, min_width=240, max_lines=1, elem_id="text")
                button = gr.Button("Find and generate", variant="primary", scale=1, min_width=150, elem_id="find")
            examples = EXAMPLES if playground.clip.captions.name_attributes else ("seven", "0")
            example = gr.Examples(list(examples), text, label="for example").load_input_event
            found = gr.HTML(elem_id="found", elem_classes="answer")
        with gr.Tab("Say"):
            if "speech" in playground.clip.towers:
                sources, say = ["microphone", "upload"], "say a digit, in English"
                # Without the button "share", which hands the sound to a web site.
                sound = gr.Audio(sources=sources, type="filepath", buttons=["download"], label=say, elem_id="sound")
                heard = gr.HTML(elem_id="heard", elem_classes="answer")
                ask(hear, [sound.change, sentences.change], [sound, sentences], heard)
            else:
                gr.HTML(missing("This model has no tower for speech.", "make speech"), elem_classes="answer")
        ask(see, [page.load, pad.change, sentences.change], [pad, sentences], seen)
        ask(find, [text.submit, button.click], [text], found)
        example.success(functools.partial(answer, find, playground), text, found, api_name="find_example", **DIRECTLY)
    return page


# ---- answers: values of the page -> HTML ----


def answer(function: Callable[..., str], playground: Playground, *values) -> str:
    """`function(playground, *values)`, or what was wrong with the values."""
    try:
        return function(playground, *values)
    except InputError as error:
        return problem(error)


def see(playground: Playground, picture: str, sentences: str) -> str:
    """The canvas's value and the list of sentences -> `Playground.see`."""
    seen = playground.see(picture or "", sentences or "")
    reading = f"the model reads: <b>{seen.caption}</b>"
    verdict = reading if seen.is_digit else "<b>This is no digit</b>, by its digit score"
    threshold = f"99% of the validation digits have {playground.threshold:.2f} or more"
    return (
        "<h3>as the model sees it: 28x28</h3><div class='seen'>"
        f"{picture_of(seen.image, 'the drawing as the model sees it')}"
        f"<div><p class='verdict'>{verdict}</p><p>measured: {seen.measured}</p>"
        f"<p><small>digit score {seen.score:.2f}; {threshold}</small></p></div></div>"
        f"{bars(seen.bars, seen.problems)}{images('the most similar test images, with their labels', seen.nearest)}"
    )


def find(playground: Playground, text: str) -> str:
    """A description -> `Playground.find`."""
    found, samples = playground.find(text or "")
    marks = "" if found[0].is_match is None else " (blue frame: as described; orange: not)"
    return images(f"the test images that fit best, with their labels{marks}", found) + generated(playground, samples)


def hear(playground: Playground, path: str | None, sentences: str) -> str:
    """A wav file's path, None without one, and the sentences -> `Playground.hear`."""
    if not path:
        return ""
    embed = playground.hear(path)  # [embed_dim]
    nearest = images("the nearest test images, with their labels", playground.nearest(embed))
    compared = bars(*playground.compare(embed, sentences or ""))
    return compared + nearest + generated(playground, playground.sample(embed))


# ---- HTML ----


def problem(error: InputError | str) -> str:
    """What was wrong, as one sentence."""
    text = str(error)
    return f"<p class='problem' role='alert'>{html.escape(text[:1].upper() + text[1:])}.</p>"


def missing(reason: str, command: str) -> str:
    """A grey part of the page, and the command that makes it."""
    return f"<div class='missing'><p>{html.escape(reason)}</p><p>This makes it: <code>{command}</code></p></div>"


def picture_of(image: Tensor, name: str) -> str:
    """uint8 [28, 28] -> an <img> that holds the pixels."""
    content = io.BytesIO()
    Image.fromarray(image.numpy()).save(content, "PNG")
    data = base64.b64encode(content.getvalue()).decode()
    return f"<img src='data:image/png;base64,{data}' alt='{html.escape(name)}'>"


def bars(pairs: list[tuple[str, float]], problems: list[str]) -> str:
    """Sentences and cosines in -1..1, a bar each (none below 0), under what could not be read."""
    rows = [
        f"<div class='bar'><span class='name'>{html.escape(name)}</span><span class='track'><span"
        f" style='width:{100 * max(0.0, cosine):.0f}%'></span></span><span class='value'>{cosine:.2f}</span></div>"
        for name, cosine in pairs
    ]
    title = "<h3>the best captions, by cosine similarity</h3>" if rows else ""
    return "".join(map(problem, problems)) + title + "".join(rows)


def images(title: str, shown: list[Thumbnail]) -> str:
    """Images with their lines below; the colour of a frame says whether one is as described."""
    marks = {True: " class='right'", False: " class='wrong'", None: ""}
    figures = [
        f"<figure{marks[one.is_match]}>{picture_of(one.image, ', '.join(one.lines))}"
        f"<figcaption>{'<br>'.join(one.lines)}</figcaption></figure>"
        for one in shown
    ]
    return f"<h3>{title}</h3><div class='images'>{''.join(figures)}</div>"


def generated(playground: Playground, samples: list[Thumbnail]) -> str:
    """The generated images, or what is missing to make some."""
    if playground.generator is None:
        return "<h3>generated</h3>" + missing(f"Nothing is generated: {playground.no_generator}.", "make generator")
    return images("generated, with what the model reads", samples)
