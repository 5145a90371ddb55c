"""English and Chinese captions of one model: whether both find the same images, and each other.

    python -m benchmarks.languages          three trainings, each as long as the default, and a minute

Each row reads the test images through captions in one language alone: those of training, or phrasings that training
never shows (held_out_chinese.txt). Writes results/languages.json.
"""

import sys
from pathlib import Path

import torch

from benchmarks import common
from benchmarks.common import cell
from captions import HAN_DIGITS, LABELS, Captions, attribute_captions, combination_description_ids
from clip import CLIP
from evaluation.combinations import evaluate_attributes
from evaluation.metrics import caption_accuracy, embed_images
from my_dataset import load_mnist
from my_utils import exit_on_error

HELD_OUT = dict(
    line.split(" = ") for line in (Path(__file__).parent / "held_out_chinese.txt").read_text("utf-8").splitlines()
)
ENGLISH, HAN, NEW = "English", "Chinese", "Chinese, phrasings never trained"
COLUMNS = {"digit": "digit", "seen combinations": "seen", "unseen combinations": "unseen", "unseen AUC": "auc"}
TRANSLATIONS = "of 90 combinations, Chinese captions whose nearest English one is the translation"


def main(argv: list[str]) -> None:
    args = common.parse(common.make_parser("languages", __doc__, seeds=[0, 1, 2]), argv)
    args.seeds = args.seeds[:1] if args.quick else args.seeds
    models = [common.load_clip(common.trained_clip(args, seed).parent) for seed in args.seeds]
    metrics, test = [model.metrics for model in models], load_mnist("test", common.DATA)
    captions = attribute_captions()
    languages = {ENGLISH: captions.in_language(is_chinese=False), HAN: captions.in_language(is_chinese=True)}
    languages[NEW] = held_out_captions(captions)
    rows = []
    for name, captions in languages.items():
        measured = []
        for model in models:
            model.captions = captions
            results = evaluate_attributes(model, embed_images(model, test.images), test)
            measured.append({key: results[key] for key in COLUMNS.values()})
        figures = [[one[key] if key == "auc" else one[key]["accuracy"] for one in measured] for key in COLUMNS.values()]
        rows.append([name, *map(cell, figures)])
    cosines, found = zip(*(translate(model, languages) for model in models), strict=True)
    note = (
        f"Seeds {', '.join(map(str, args.seeds))}. Mean cosine of an English caption of a combination and its"
        f" translation: {cell(list(cosines), '')}; {TRANSLATIONS}: {cell(list(found))}."
    )
    common.write_result(
        args, "languages" + args.suffix, ["captions", *COLUMNS], rows, common.shared_origin(metrics), note
    )


def held_out_captions(captions: Captions) -> Captions:
    """The descriptions that name one part alone, in phrasings that are never trained; the others as in training."""
    sentences = [sentence for i, sentence in enumerate(captions.sentences) if i % captions.paraphrases < 3]
    for digit, id in enumerate(captions.digit_ids.tolist()):
        names = {"word": HAN_DIGITS[digit], "numeral": digit}
        sentences[3 * id : 3 * id + 3] = HELD_OUT["digit"].format(**names).split("; ")
    for part in captions.parts[1:]:
        for id in part.ids.tolist():
            names = [LABELS[i] for i in captions.claims[id].nonzero().flatten().tolist()]
            own = next(name for name in names if name in HELD_OUT)
            sentences[3 * id : 3 * id + 3] = HELD_OUT[own].split("; ")
    held_out = {text for id in captions.digit_ids.tolist() for text in sentences[3 * id : 3 * id + 3]}
    assert not held_out & set(captions.sentences)
    return Captions(captions.kind, sentences, captions.claims, captions.parts, captions.digit_ids)


@torch.no_grad()
def translate(model: CLIP, languages: dict[str, Captions]) -> tuple[float, float]:
    """The mean cosine of translations, and the share of Chinese captions whose nearest English one is the translation.

    Of the captions of all combinations; several phrasings of each, averaged.
    """
    vectors = []
    for name in (ENGLISH, HAN):
        model.captions = languages[name]
        vectors.append(model.embed_descriptions(combination_description_ids()))  # [90, embed_dim]
    similarity = vectors[1] @ vectors[0].T  # [90, 90]
    return similarity.diagonal().mean().item(), caption_accuracy(similarity, torch.arange(len(similarity)))


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main(sys.argv[1:]))
