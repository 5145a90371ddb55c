"""The page: its parts, and the model's answers as HTML."""

import base64
import functools
import html
import io
from collections.abc import Callable
from pathlib import Path

import gradio as gr
from PIL import Image
from torch import Tensor

from attributes import measure
from captions import DIGIT_WORDS
from demo.playground import Playground, decode_drawing
from evaluation.claims import format_values
from evaluation.metrics import embed_images
from modalities.speech import read_wav
from my_utils import InputError

HERE = Path(__file__).parent
EXAMPLES = ("a thick seven leaning left", "a thin zero", "an italic four in fine strokes", "a fat upright eight")
# Asked directly: Gradio's queue would take longer than the model. Of the changes meanwhile only the last one is asked.
DIRECTLY = {"show_progress": "hidden", "queue": False, "trigger_mode": "always_last"}


def build(playground: Playground) -> gr.Blocks:
    """The page on a model."""
    run_see, run_find, run_hear = (functools.partial(answer, function, playground) for function in (see, find, hear))
    with gr.Blocks(analytics_enabled=False, title="MINIST-CLIP") as page:
        gr.Markdown("## MINIST-CLIP: try the model")
        with gr.Tab("Draw"), gr.Row():
            with gr.Column(scale=3, min_width=280):
                # A canvas of our own: its value is the drawing as a PNG data URL, new after each stroke, "" when empty.
                # Gradio's sketchpad uploads three files for each stroke, which took some two seconds.
                template, script = ((HERE / file).read_text() for file in ("canvas.html", "canvas.js"))
                pad = gr.HTML("", html_template=template, js_on_load=script, elem_id="pad")
            with gr.Column(scale=4, min_width=300):
                seen = gr.HTML(elem_id="seen", elem_classes="answer")
            with gr.Column(scale=2, min_width=220):
                lines = "\n".join(playground.suggested)
                label = "sentences to compare with, one per line"
                sentences = gr.Textbox(lines, lines=12, max_lines=24, label=label, elem_id="sentences")
        with gr.Tab("Type"):
            text = gr.Textbox(label="description", max_lines=1, submit_btn=True, elem_id="text")
            examples = EXAMPLES if playground.clip.captions.kind == "attributes" else DIGIT_WORDS
            example = gr.Examples(list(examples), text, label="for example").load_input_event
            found = gr.HTML(elem_id="found", elem_classes="answer")
        with gr.Tab("Say"):
            sources, label = ["microphone", "upload"], "say a digit, in English"
            sound = gr.Audio(sources=sources, type="filepath", label=label, elem_id="sound")
            heard = gr.HTML(elem_id="heard", elem_classes="answer")
        changes = [page.load, pad.change, sentences.change]
        gr.on(changes, run_see, [pad, sentences], seen, api_name="see", **DIRECTLY)
        text.submit(run_find, text, found, api_name="find", **DIRECTLY)
        example.success(run_find, text, found, api_name="find_example", **DIRECTLY)
        gr.on([sound.change, sentences.change], run_hear, [sound, sentences], heard, api_name="hear", **DIRECTLY)
    return page


# ---- answers: values of the page -> HTML ----


def answer(function: Callable[..., str], playground: Playground, *values) -> str:
    """`function(playground, *values)`, or what was wrong with the values."""
    try:
        text = function(playground, *values)
    except InputError as error:
        text = problem(str(error))
    return text.encode(errors="replace").decode()  # a lone surrogate cannot be sent back


def see(playground: Playground, drawing: str, sentences: str) -> str:
    """The canvas's value and the list of sentences -> what the model finds in the drawing."""
    image = decode_drawing(drawing)[None]  # uint8 [1, 28, 28]
    embed = embed_images(playground.clip, image)[0]
    return (
        f"<h3>as the model sees it: 28x28</h3><div class='seen'>{picture_of(image[0])}"
        f"<p>read as: {playground.read(embed)}</p><p>measured: {format_values(measure(image)[0])}</p></div>"
        + compared(playground, embed, sentences)
    )


def find(playground: Playground, text: str) -> str:
    """A description -> the test images that fit best, and generated ones."""
    embed = playground.embed_text(text)
    nearest = figures("the test images that fit best, with their labels", *playground.nearest(embed))
    return nearest + generated(playground, embed, text)


def hear(playground: Playground, path: str | None, sentences: str) -> str:
    """A wav file's path, None without one, and the sentences -> what the model hears, and generated images."""
    if not path:
        return ""
    embed = playground.clip.encode("speech", [read_wav(path)])[0]
    return compared(playground, embed, sentences) + generated(playground, embed, playground.nearest_digit(embed))


# ---- HTML ----


def compared(playground: Playground, embed: Tensor, sentences: str) -> str:
    """The closest sentences with a bar each (none for a cosine below 0), what could not be read, and test images."""
    pairs, problems = playground.compare(embed, sentences)
    bars = [
        f"<div class='bar'><span class='name'>{html.escape(name)}</span><span class='track'><span"
        f" style='width:{100 * max(0.0, cosine):.0f}%'></span></span><span class='value'>{cosine:.2f}</span></div>"
        for name, cosine in pairs
    ]
    parts = ["<h3>the best captions, by cosine similarity</h3>", *map(problem, problems), *bars]
    return "".join(parts) + figures("the most similar test images, with their labels", *playground.nearest(embed))


def generated(playground: Playground, embed: Tensor, text: str) -> str:
    """The generated images, or why there are none."""
    if playground.generator is None:
        return problem(f"nothing is generated: {playground.no_generator}")
    return figures("generated, with what the model reads", *playground.sample(embed, text))


def figures(title: str, images: Tensor, digits: Tensor) -> str:
    """Images uint8 [N, 28, 28] with digits [N]: digit and attributes below each."""
    parts = [f"<h3>{title}</h3><div class='images'>"]
    for image, digit, values in zip(images, digits, measure(images), strict=True):
        lines = f"{DIGIT_WORDS[digit]}<br>{format_values(values).replace(', ', '<br>')}"
        parts.append(f"<figure>{picture_of(image)}<figcaption>{lines}</figcaption></figure>")
    return "".join(parts) + "</div>"


def picture_of(image: Tensor) -> str:
    """uint8 [28, 28] -> an <img> that holds the pixels."""
    content = io.BytesIO()
    Image.fromarray(image.cpu().numpy()).save(content, "PNG")
    return f"<img src='data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}' alt=''>"


def problem(text: str) -> str:
    """What was wrong, as one sentence."""
    return f"<p class='problem' role='alert'>{html.escape(text[:1].upper() + text[1:])}.</p>"
