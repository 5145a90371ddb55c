"""Pictures of what a model has learned, as matplotlib figures.

Images are uint8 or float [N, 28, 28] on the CPU, shown bright on black. Features are unit vectors [N, embed_dim] of a
split's images.
"""

import io
import itertools
import tempfile
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from torch import Tensor

from attributes import ATTRIBUTES, GRADES, combination_ids, measure
from captions import (
    DIGIT_WORDS,
    OUTLIER_IDS,
    OUTLIERS,
    UNSAID,
    combination_claims,
    combination_description_ids,
    description_id,
    image_facts,
    match,
)
from clip import CLIP
from data.outliers import MAKERS, overlap
from evaluation.claims import combination_caption, format_values, short_caption
from evaluation.combinations import is_unambiguous
from evaluation.metrics import embed_images
from evaluation.ood import inverted_noise, letters, ood_score
from evaluation.own import embed_texts
from evaluation.similarity import OTHERS, RIGHT, WRONG, similarity_matrix
from my_dataset import OwnSplit, Split
from my_utils import InputError, atomic_write

# Chinese texts need a font that has their characters: the first of these that is installed.
HAN_FONTS = ("Noto Sans CJK SC", "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "SimHei", "WenQuanYi Micro Hei")
INSTALLED = get_font_names()
rcParams["font.family"] = ["DejaVu Sans", *[name for name in HAN_FONTS if name in INSTALLED][:1]]

NEVER = "never trained"
COLUMNS = 10  # of a grid of predictions


def save_figure(figure: Figure, path: str | Path) -> Figure:
    """Write a PNG, whole or not at all; returns the figure. Raises InputError if it cannot be written."""
    content = io.BytesIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", "Glyph .* missing")
        figure.savefig(content, dpi=110, format="png")
    for one in caught:
        if "Glyph" not in str(one.message):
            warnings.warn(one.message, stacklevel=2)
    if any("Glyph" in str(one.message) for one in caught):
        print("note: boxes stand for characters that no font here has: for Chinese install one such as Noto Sans CJK")
    figure.set_layout_engine("none")  # a notebook that shows it need not lay it out again
    atomic_write(path, content.getvalue())
    return figure


def check_writable(folder: Path) -> None:
    """Make the folder if need be. Raises InputError if no file can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        message = f"cannot write into {folder.absolute()}: {error.strerror or error}; free it, or name another folder"
        raise InputError(message) from None


# ---- grids of images ----


def show_image(axes: Axes, image: Tensor, caption: str, colour: str = "black") -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=1 if image.is_floating_point() else 255)
    axes.set_title(caption, fontsize=9, color=colour, parse_math=False)
    axes.set_frame_on(True)
    axes.spines[:].set(edgecolor=colour, linewidth=1.5)


def ranked_images(rows: Sequence[tuple], title: str, size: float = 1.05) -> Figure:
    """A row for each query: its name and image, if it has them, then images under their captions.

    A row is (name, query image or None, images [K, 28, 28], K captions, K times True (blue), False (orange) or None).
    """
    names, _, all_images, all_captions, _ = zip(*rows, strict=True)
    widths = [1.7 / size if any(names) else 0.01] + [1] * max(map(len, all_images))  # the names' column comes first
    lines = max(caption.count("\n") for captions in all_captions for caption in (*captions, ""))
    inches = (size * sum(widths), (size + 0.3 + 0.18 * lines) * len(rows) + 0.6)
    figure = Figure(figsize=inches, layout="constrained")
    figure.suptitle(title)
    empty = {"frame_on": False, "xticks": [], "yticks": []}
    grid = figure.subplots(len(rows), len(widths), squeeze=False, width_ratios=widths, subplot_kw=empty)
    for (query_axes, *line), (name, query, images, captions, is_right) in zip(grid, rows, strict=True):
        if query is None:
            query_axes.text(0.5, 0.5, name, ha="center", va="center", fontsize=11, parse_math=False)
        else:
            show_image(query_axes, query, name)
        for axes, image, caption, good in zip(line, images, captions, is_right, strict=False):
            show_image(axes, image, caption, {None: "black", True: RIGHT, False: WRONG}[good])
    return figure


def prediction_grid(images: Tensor, true: Tensor, predicted: Tensor, title: str, notes: Sequence[str] = ()) -> Figure:
    """Each image under its true and its predicted digit, [N] each, and a note if there are any."""
    lines = zip(true.tolist(), predicted.tolist(), notes or [""] * len(true), strict=True)
    captions = [f"true: {DIGIT_WORDS[a]}\npred: {DIGIT_WORDS[b]}\n{note}".rstrip() for a, b, note in lines]
    is_right = (true == predicted).tolist()
    parts = [slice(i, i + COLUMNS) for i in range(0, max(1, len(images)), COLUMNS)]
    return ranked_images([("", None, images[part], captions[part], is_right[part]) for part in parts], title)


def closest_images(
    similarity: Tensor, names: Sequence, images: Tensor, is_right: Tensor, title: str, queries=None, notes=(), count=8
) -> Figure:
    """For each of Q queries the `count` images closest to it, best first, under their notes or their cosines.

    similarity [Q, N], is_right bool [Q, N]; `queries` [Q, 28, 28] if they are images; `notes` are one for each of N.
    """
    best, rows = similarity.topk(count, dim=1), []
    for i, (index, cosines) in enumerate(zip(best.indices.tolist(), best.values.tolist(), strict=True)):
        captions = [notes[j] for j in index] if notes else [f"{cosine:.3f}" for cosine in cosines]
        query = None if queries is None else queries[i]
        rows.append((names[i], query, images[index], captions, is_right[i, index].tolist()))
    return ranked_images(rows, title)


# ---- captions of attributes ----


def described_images(model: CLIP, split: Split, features: Tensor, count: int = 16) -> Figure:
    """The first images, each under the most probable of the captions of all combinations."""
    require_attributes(model)
    predicted = model.log_probs(features[:count], combination_claims()).argmax(dim=1)  # [count]
    images, digits = split.images[:count], split.labels[:count]
    is_right = (predicted == combination_ids(digits, measure(images))).tolist()
    notes = [textwrap.fill(combination_caption(one), 14) for one in predicted.tolist()]
    parts = [slice(i, i + 8) for i in range(0, count, 8)]
    rows = [("", None, images[part], notes[part], is_right[part]) for part in parts]
    return ranked_images(rows, "test images under the most probable caption of all combinations", size=1.5)


def attribute_search(model: CLIP, split: Split, features: Tensor) -> Figure:
    """The images closest to both extremes of each attribute, an unseen combination, a negation and a Chinese text."""
    require_attributes(model)
    places, extremes = range(len(ATTRIBUTES)), (0, GRADES - 1)
    grades = [[extreme if j == i else UNSAID for j in places] for i in places for extreme in extremes]
    names = [short_caption(UNSAID, one) for one in grades]
    values, unseen = measure(split.images), model.unseen.flatten()
    frequent = (combination_ids(split.labels, values).bincount(minlength=len(unseen)) * unseen).topk(1).indices
    names += [f"{combination_caption(one)} ({NEVER})" for one in frequent.tolist()]
    texts = ["not a seven", "向左倾斜的粗体七"]  # (the first is never trained either)
    own_ids = torch.tensor([description_id(10 + 7), description_id(7, [3, 1])])  # theirs
    extremes = description_id(UNSAID, torch.tensor(grades).T)
    ids = torch.cat([extremes, combination_description_ids()[frequent], own_ids])  # [Q]
    facts = image_facts(split.labels, values)
    is_true, _ = match(facts, model.captions.claims[ids], torch.zeros_like(facts))  # [N, Q]
    queries = torch.cat([model.embed_descriptions(ids[: len(names)]), model.encode_text(texts)]).cpu()
    similarity = queries @ features.T  # [Q, N]
    names = [*(textwrap.fill(name, 18) for name in names), f"{texts[0]}\n({NEVER})", texts[1]]
    notes = [format_values(one).replace(", ", "\n") for one in values]
    title = "the test images closest to each description, with their measured attributes"
    return closest_images(similarity, names, split.images, is_true.T, title, notes=notes)


def attribute_matrix(model: CLIP, split: Split, features: Tensor, digit: int = 4) -> Figure:
    """An unambiguous image of each combination of one digit, and two digits on top of each other, against captions."""
    require_attributes(model)
    values, unseen = measure(split.images), model.unseen.flatten().tolist()
    combinations = combination_ids(split.labels, values)
    fits = (split.labels == digit) & is_unambiguous(values)
    shown = combinations[fits].unique().tolist()
    index = [int((fits & (combinations == one)).nonzero()[0]) for one in shown]
    two = overlap(split.images[:2, None].float() / 255, torch.Generator().manual_seed(0))[:1, 0]
    overlap_id = OUTLIER_IDS[[1 + list(OUTLIERS).index("overlap")]]
    captions = model.embed_descriptions(torch.cat([combination_description_ids()[shown], overlap_id])).cpu()
    return similarity_matrix(
        torch.cat([features[index], embed_images(model, two).cpu()]) @ captions.T,
        [combination_caption(one) + " *" * unseen[one] for one in shown] + ["two overlapping digits"],
        [format_values(values[i]) for i in index] + ["two digits"],
        f"test images of a {DIGIT_WORDS[digit]} against captions (*: {NEVER})",
        torch.cat([split.images[index].float() / 255, two]),
        ylabel="image: measured attributes",
    )


def outlier_images(model: CLIP, split: Split, count: int = 8) -> Figure:
    """Digits, each kind of outlier, and two kinds that are never trained, under the nearest caption."""
    require_attributes(model)
    generator = torch.Generator().manual_seed(0)
    digits = split.images[split.labels > 1][:count, None].float() / 255  # (a rotated zero is a zero)
    sets = {"digits": split.images[:count]} | {name: MAKERS[name](digits, generator)[:, 0] for name in OUTLIERS}
    sets |= {f"letters\n({NEVER})": letters(count), f"inverted noise\n({NEVER})": inverted_noise(split.images[:count])}
    captions = model.embed_descriptions(torch.cat([model.captions.digit_ids, OUTLIER_IDS])).cpu()
    names = (*DIGIT_WORDS, "no digit", *OUTLIERS)
    rows = []
    for name, images in sets.items():
        nearest = (embed_images(model, images).cpu() @ captions.T).argmax(dim=1)  # [count]
        is_right = nearest == split.labels[:count] if name == "digits" else nearest >= len(DIGIT_WORDS)
        rows.append((name, None, images, [names[i] for i in nearest], is_right.tolist()))
    return ranked_images(rows, "images of no digit, and the nearest caption")


def require_attributes(model: CLIP) -> None:
    """Raises InputError for a model whose captions name the digit alone."""
    if model.captions.kind != "attributes":
        raise InputError("this picture needs a model of --captions attributes: this one knows captions of digits alone")


def generated_combinations(images: Tensor, unseen: Tensor) -> Figure:
    """A generated image of each combination, [C, 28, 28]. `unseen` ones, bool of shape COMBINATIONS, are orange."""
    columns = ["\n".join(names) for names in itertools.product(*(attribute.bins for attribute in ATTRIBUTES))]
    pairs = zip(DIGIT_WORDS, images.unflatten(0, (10, -1)), unseen.reshape(10, -1), strict=True)
    rows = [(word, None, own, columns, [False if one else None for one in is_unseen]) for word, own, is_unseen in pairs]
    return ranked_images(rows, f"generated from texts (orange: {NEVER}, neither in the CLIP nor in the generator)")


# ---- evaluate.py ----


def embedding_map(features: Tensor, labels: Tensor, captions: Tensor) -> Figure:
    """Images and captions in two dimensions by t-SNE (van der Maaten & Hinton, 2008)."""
    from sklearn.manifold import TSNE

    points = TSNE(metric="cosine", random_state=0).fit_transform(torch.cat([features, captions]))
    images, stars = points[: len(labels)], points[len(labels) :]
    figure = Figure(figsize=(7.6, 6.6), layout="constrained")
    axes = figure.subplots()
    axes.scatter(*images.T, c=labels, cmap="tab10", s=9, alpha=0.7, label="test image, coloured by its digit")
    axes.scatter(*stars.T, marker="*", s=200, color="black", edgecolor="white", label="caption")
    for word, place in zip(DIGIT_WORDS, stars, strict=True):
        axes.annotate(word, place, (9, 0), textcoords="offset points", va="center", fontsize=10)
    axes.set(xlabel="t-SNE 1 (no unit)", ylabel="t-SNE 2 (no unit)", title="images and captions in one space")
    axes.legend(fontsize=9)
    return figure


def seen_unseen_curves(curves: dict[str, list]) -> Figure:
    """Accuracy on unseen over accuracy on seen combinations, by name: (seen [K], unseen [K]) at K biases."""
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.subplots()
    for name, (seen, unseen) in curves.items():
        axes.plot([100 * x for x in seen], [100 * x for x in unseen], label=name)
    axes.set(xlabel="accuracy on seen combinations, %", ylabel="accuracy on unseen combinations, %")
    right, top = (100 * max(max(curve[side]) for curve in curves.values()) for side in (0, 1))
    axes.set(xlim=(0.75 * right, 1.01 * right), ylim=(0.6 * top, 1.01 * top))  # where a model could be used
    axes.set(title="every bias between seen and unseen combinations, test images")
    axes.legend(loc="lower left")
    return figure


def robustness_curves(robustness: dict) -> Figure:
    """Accuracy by severity of each corruption; severity 0 is the clean image."""
    figure = Figure(figsize=(9.6, 4.8), layout="constrained")
    axes = figure.subplots()
    for name, one in robustness["corruptions"].items():
        accuracies = [100 * accuracy for accuracy in (robustness["clean"], *one["accuracies"])]
        axes.plot(accuracies, "o-", label=f"{name} (mean error {one['error']:.1%})")
    axes.axhline(10, color="grey", linestyle="--", label="chance")
    axes.set(xlabel="severity (0: clean)", ylabel="accuracy (%)", ylim=(0, 103))
    axes.set_title(f"robustness: mean corruption error {robustness['mean_corruption_error']:.1%}")
    figure.legend(loc="outside right upper")
    return figure


def ood_histograms(model: CLIP, features: dict[str, Tensor]) -> Figure:
    """`ood_score` of digits and of each OOD set."""
    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    axes = figure.subplots()
    scores = [ood_score(model, x) for x in features.values()]
    names = [f"{name.replace('_', ' ')} ({len(x):,} images)" for name, x in features.items()]
    weights = [torch.full_like(one, 100 / len(one)) for one in scores]
    colours = (RIGHT, WRONG, *OTHERS)[: len(scores)]
    axes.hist(scores, bins=60, weights=weights, histtype="stepfilled", alpha=0.6, color=colours, label=names)
    less = ", less that to the nearest outlier caption" if model.captions.kind == "attributes" else ""
    axes.set(xlabel=f"cosine to the nearest digit caption{less}", ylabel="share of the set (%)")
    axes.set_title("digits, and images of no digit")
    axes.legend(fontsize=9)
    return figure


def own_search(model: CLIP, split: OwnSplit, count: int = 8) -> Figure:
    """For some texts of a split the pictures closest to them; in the last row pictures under the closest text."""
    split, images, texts = split.to("cpu"), embed_images(model, split.images).cpu(), embed_texts(model, split.texts)
    pixels = split.images.permute(0, 2, 3, 1).squeeze(-1)  # [N, H, H, 3], of grey pictures [N, H, H]
    similarity, rows = images @ texts.T, []  # [N, T]
    shown, asked = (torch.arange(0, len(x), -(-len(x) // count)) for x in (images, texts))
    for text in asked:
        cosines, best = similarity[:, text].topk(min(count, len(images)))
        notes = [f"{cosine:.2f}" for cosine in cosines.tolist()]
        is_right = split.belongs(best, text[None])[:, 0].tolist()
        rows.append((textwrap.fill(split.texts[text], 18), None, pixels[best], notes, is_right))
    nearest = similarity[shown].argmax(dim=1)
    names = [textwrap.fill(split.texts[text], 14) for text in nearest]
    is_right = split.belongs(shown, nearest).diagonal().tolist()
    rows.append(("the closest\ntext", None, pixels[shown], names, is_right))
    return ranked_images(rows, "the pictures closest to each text; and the text closest to some pictures")
