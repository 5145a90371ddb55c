"""The page: what `look` finds as HTML, and where it stands."""

import base64
import html
import io
from pathlib import Path

import gradio as gr
from PIL import Image
from torch import Tensor

from demo.look import Playground, Shown
from my_utils import InputError

HERE = Path(__file__).parent
EXAMPLES = ("a thick seven leaning left", "a thin zero", "an italic four in fine strokes", "a fat upright eight")
ANSWER = {"show_progress": "hidden", "queue": False}  # asked directly: Gradio's queue would take longer than the model


def build(playground: Playground, name: str) -> gr.Blocks:
    """The page on a model; `name` says which."""
    described = playground.clip.captions.described
    with gr.Blocks(analytics_enabled=False, title="MINIST-CLIP", delete_cache=(600, 600)) as page:
        gr.Markdown(f"## MINIST-CLIP: try the model\n`{name}`")
        with gr.Tab("Draw"), gr.Row():
            with gr.Column(scale=3, min_width=280):
                pad = canvas()
            with gr.Column(scale=4, min_width=300):
                seen = answer("seen")
            with gr.Column(scale=2, min_width=220):
                sentences = gr.Textbox(
                    "\n".join(playground.first_sentences()),
                    lines=12,
                    max_lines=24,
                    label="sentences, one a line",
                    info="compared with what you draw or say",
                    elem_id="sentences",
                )
        with gr.Tab("Type"):
            with gr.Row():
                text = gr.Textbox(
                    label="description",
                    placeholder="such as: a thick seven leaning left",
                    scale=5,
                    min_width=240,
                    max_lines=1,
                    elem_id="text",
                )
                find = gr.Button("Find and draw", variant="primary", scale=1, min_width=150, elem_id="find")
            examples = gr.Examples(list(EXAMPLES if described else ("seven", "0")), text, label="for example")
            found = answer("found")
        with gr.Tab("Say"):
            if playground.can_hear:
                sound = gr.Audio(
                    sources=["microphone", "upload"],
                    type="filepath",
                    buttons=["download"],  # without "share", which hands the sound to a web site
                    label="say a digit, in English",
                    elem_id="sound",
                )
                heard = answer("heard")
                gr.on(
                    [sound.change, sentences.change],
                    hear(playground),
                    [sound, sentences],
                    heard,
                    api_name="hear",
                    trigger_mode="always_last",
                    **ANSWER,
                )
            else:
                gr.HTML(missing("This model has no tower for speech.", "make speech"), elem_classes="answer")
        gr.on(
            [page.load, pad.change, sentences.change],
            see(playground),
            [pad, sentences],
            seen,
            api_name="see",
            trigger_mode="always_last",
            **ANSWER,
        )
        gr.on([text.submit, find.click], look_for(playground), text, found, api_name="find", **ANSWER)
        examples.load_input_event.success(look_for(playground), text, found, api_name="find_example", **ANSWER)
    return page


def canvas() -> gr.HTML:
    """A 2-D canvas of our own: its value is the drawing as a PNG data URL, new after each stroke, "" when empty.

    Gradio's sketchpad uploads three files several times for each stroke, which took some two seconds, and wants its
    brush to be chosen first.
    """
    template, script = ((HERE / name).read_text() for name in ("canvas.html", "canvas.js"))
    return gr.HTML("", html_template=template, js_on_load=script, elem_id="pad")


def answer(name: str) -> gr.HTML:
    """The place of an answer, empty."""
    return gr.HTML(elem_id=name, elem_classes="answer")


# ---- what is asked, as functions from the page's values to HTML ----


def see(playground: Playground):
    """The canvas's value and the list of sentences -> what `Playground.see` finds, or the one sentence on why not."""

    def run(picture: str, sentences: str) -> str:
        try:
            seen = playground.see(picture or "", sentences or "")
        except InputError as error:
            return problem(error)
        verdict = (
            f"the model reads: <b>{seen.reading}</b>"
            if seen.is_digit
            else "<b>This is no digit</b>, by its digit score"
        )
        bound = f"digit score {seen.score:.2f}; 99% of the validation digits have {playground.least_score:.2f} or more"
        return (
            "<h3>as the model sees it: 28x28</h3><div class='seen'>"
            f"{picture_of(seen.image, 'the drawing as the model sees it')}"
            f"<div><p class='verdict'>{verdict}</p><p>measured: {seen.looks}</p><p><small>{bound}</small></p></div>"
            "</div>"
            f"{''.join(map(problem, seen.problems))}{bars(seen.bars)}"
            f"{images('the most similar test images, with their labels', seen.similar)}"
        )

    return run


def look_for(playground: Playground):
    """A description -> what `Playground.find` finds, or the one sentence on why not."""

    def run(text: str) -> str:
        try:
            found, drawn = playground.find(text or "")
        except InputError as error:
            return problem(error)
        marks = "" if found[0].fits is None else " (blue frame: as described; orange: not)"
        return images(f"the test images that fit best, with their labels{marks}", found) + drawings(playground, drawn)

    return run


def hear(playground: Playground):
    """A wav file's path, None without one, and the sentences -> what `Playground.hear` finds, or why not."""

    def run(path: str | None, sentences: str) -> str:
        if not path:
            return ""
        try:
            heard = playground.hear(path, sentences or "")
        except InputError as error:
            return problem(error)
        return (
            f"{''.join(map(problem, heard.problems))}{bars(heard.bars)}"
            f"{images('the nearest test images, with their labels', heard.similar)}{drawings(playground, heard.drawn)}"
        )

    return run


# ---- HTML ----


def problem(error: InputError | str) -> str:
    """What was wrong, as one sentence."""
    text = str(error)
    return f"<p class='problem' role='alert'>{html.escape(text[:1].upper() + text[1:])}.</p>"


def missing(reason: str, command: str) -> str:
    """A greyed part, and the command that makes it."""
    return f"<div class='missing'><p>{html.escape(reason)}</p><p>This makes it: <code>{command}</code></p></div>"


def picture_of(image: Tensor, name: str) -> str:
    """uint8 [28, 28] -> an <img> that holds the pixels."""
    content = io.BytesIO()
    Image.fromarray(image.numpy()).save(content, "PNG")
    return (
        f"<img src='data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}' alt='{html.escape(name)}'>"
    )


def bars(pairs: list[tuple[str, float]]) -> str:
    """Sentences and cosines in -1..1, a bar each; those below 0 have no length."""
    rows = [
        f"<div class='bar'><span class='name'>{html.escape(name)}</span><span class='track'><span"
        f" style='width:{100 * max(0.0, cosine):.0f}%'></span></span><span class='value'>{cosine:.2f}</span></div>"
        for name, cosine in pairs
    ]
    return f"<h3>the best captions, by cosine similarity</h3>{''.join(rows)}" if rows else ""


def images(title: str, shown: list[Shown]) -> str:
    """Images with their lines below; the colour of a frame says whether one is as asked."""
    marks = {True: " class='right'", False: " class='wrong'", None: ""}
    figures = [
        f"<figure{marks[one.fits]}>{picture_of(one.image, ', '.join(one.lines))}"
        f"<figcaption>{'<br>'.join(one.lines)}</figcaption></figure>"
        for one in shown
    ]
    return f"<h3>{title}</h3><div class='images'>{''.join(figures)}</div>"


def drawings(playground: Playground, drawn: list[Shown]) -> str:
    """The drawings, or what is missing to make some."""
    if playground.generator is None:
        return "<h3>drawn anew</h3>" + missing(f"Nothing is drawn: {playground.no_generator}.", "make generator")
    return images("drawn anew, with what the model reads", drawn)
