"""Negation: what text towers make of "not a seven", which is never trained, and of the negations that are.

    python -m benchmarks.negation          about nine trainings, each as long as the default

A caption against its negation, for each test image: chance is 50%. Rows: the default, in which "not" acts on the words
behind it; the same with a network behind the sum, or without this action; and text towers that read order. Writes
results/negation.json.
"""

import sys
from argparse import Namespace
from functools import partial
from statistics import mean

import torch
from torch import Tensor, nn

from attributes import ATTRIBUTES, GRADE_OF_BIN, GRADES, measure
from benchmarks import common
from benchmarks.common import Training, Variant, cell
from captions import DIGIT_WORDS, NEVER_NEGATED, UNSAID, description_id
from clip import CLIP
from evaluation.metrics import caption_accuracy, embed_images, evaluate
from evaluation.ood import auroc
from evaluation.retrieval import average_precision
from my_dataset import Split, load_mnist
from my_utils import exit_on_error
from text_encoder import TEXT_ENCODERS, TextEncoder

OURS = 'bag of words, "not" acts on the words behind it (the default)'


class DeepTextEncoder(TextEncoder):
    """With a network of two layers behind the sum."""

    def __init__(self, embed_dim: int, *arguments, **options):
        super().__init__(embed_dim, *arguments, **options)
        self.linear = nn.Sequential(nn.Linear(embed_dim, embed_dim), nn.ReLU(), self.linear)


class AddingTextEncoder(TextEncoder):
    """In which "not" is a word as any other."""

    def forward(self, rows: Tensor) -> Tensor:
        return super().forward(rows.abs())


VARIANTS = {  # name of the run: its text tower, title of the row
    "not-deep": (DeepTextEncoder, "the same, with a network of two layers behind the sum"),
    "not-added": (AddingTextEncoder, 'bag of words, "not" is a word as any other'),
}
TEXT_ENCODERS |= {name: tower for name, (tower, _) in VARIANTS.items()}  # so that CLIP.load finds them
TOWERS = {"order": "word times place", "transformer": "transformer, two layers"}  # values of --text-encoder
COLUMNS = ("digits, trained", "digits, never trained", "AUROC, never trained", "mAP, never trained")
COLUMNS += ("grades, trained", "grade, never trained", "not thick, a seven / thick, not a seven", "digit alone")


def main(argv: list[str]) -> None:
    args = common.parse(common.make_parser("negation", __doc__, seeds=[0, 1, 2]), argv)
    args.seeds = args.seeds[:1] if args.quick else args.seeds
    seed = args.seeds[0]
    models = {OURS: [common.load_clip(common.trained_clip(args, one).parent) for one in args.seeds]}
    models |= {title: [trained_variant(args, seed, name)] for name, (_, title) in VARIANTS.items()}
    for name, title in TOWERS.items():
        flags = ["--text-encoder", name]
        models[title] = [common.load_clip(common.trained_clip(args, seed, f"not-{name}", flags).parent)]

    test = load_mnist("test", common.DATA)
    test = Split(*(x[:1000] for x in test)) if args.quick else test
    rows = []
    for title, own in models.items():
        figures = [evaluate_negation(model, test) for model in own]
        rows.append([title, *(cell([one[name] for one in figures]) for name in COLUMNS)])
    origin = common.shared_origin([model.metrics for own in models.values() for model in own])
    never = ", ".join(NEVER_NEGATED)
    note = f"The first row: seeds {', '.join(map(str, args.seeds))}; the others: seed {seed}. Never negated: {never}."
    common.write_result(args, "negation" + args.suffix, ["text tower", *COLUMNS], rows, origin, note)


def trained_variant(args: Namespace, seed: int, name: str) -> CLIP:
    """A model with a text tower that train.py does not know."""
    folder = args.runs / f"{name}{args.suffix}-seed{seed}"
    flags = ["--seed", str(seed), "--device", str(args.device), *(common.QUICK if args.quick else [])]
    settings = common.settings_of(flags)
    settings.text_encoder = name
    val = load_mnist("val", common.DATA, args.device)

    def build() -> Variant:
        training = Training(settings, args.device)
        return Variant(training.pairs, training.model, training.optimizers, training.step)

    measure_val = partial(evaluate, split=val)
    common.train_variant(folder, settings, args.command, build, measure_val, "val_seen_accuracy")
    return common.load_clip(folder)


# ---- evaluation ----


def evaluate_negation(model: CLIP, test: Split) -> dict[str, float]:
    """The figure of each column: accuracies of a caption against its negation, or of one that denies the other part.

    Each is the mean over captions, and of each caption over the images of which it is true and those of which it is
    not, so that both weigh the same.
    """
    features, values = embed_images(model, test.images), measure(test.images)
    digits = torch.arange(10)
    plain, negated = (
        features @ model.embed_descriptions(description_id(x)).T for x in (digits, 10 + digits)
    )  # [N, 10]
    shown = test.labels[:, None] == digits  # [N, 10]
    accuracy = [balanced(plain[:, k] > negated[:, k], shown[:, k]) for k in range(10)]
    is_trained = [word not in NEVER_NEGATED for word in DIGIT_WORDS]
    trained, never = ([k for k in range(10) if is_trained[k] == side] for side in (True, False))
    figures = {
        "digits, trained": mean([accuracy[k] for k in trained]),
        "digits, never trained": mean([accuracy[k] for k in never]),
        "AUROC, never trained": mean([auroc(negated[~shown[:, k], k], negated[shown[:, k], k]) for k in never]),
        "mAP, never trained": mean([average_precision(negated[:, k], ~shown[:, k]).item() for k in never]),
    }
    grades, bindings = {True: [], False: []}, []
    for side, attribute in enumerate(ATTRIBUTES):
        clear = attribute.distance_to_edges(values[:, side]) > attribute.clear  # [N]
        bins = attribute.bin(values[clear, side])
        for bin, name in enumerate(attribute.bins):
            said = [UNSAID] * len(ATTRIBUTES)
            pair = []
            for said[side] in (GRADE_OF_BIN[bin], GRADES + bin):
                pair.append(features[clear] @ model.embed_descriptions(torch.tensor([description_id(UNSAID, said)]))[0])
            grades[name not in NEVER_NEGATED].append(balanced(pair[0] > pair[1], bins == bin))
    for k, word in enumerate(DIGIT_WORDS):  # of thin k and thick others each of these is true of one
        thickness = ATTRIBUTES[0]
        clear = thickness.distance_to_edges(values[:, 0]) > thickness.clear
        is_thick = thickness.bin(values[:, 0]) == 2
        of_first, of_second = clear & shown[:, k] & ~is_thick, clear & ~shown[:, k] & is_thick
        texts = model.encode_text([f"not thick, a {word}", f"thick, not a {word}"])
        first, second = (features @ texts.T).unbind(dim=1)
        either = of_first | of_second
        bindings.append(balanced((first > second)[either], of_first[either]))
    return figures | {
        "grades, trained": mean(grades[True]),
        "grade, never trained": mean(grades[False]),
        "not thick, a seven / thick, not a seven": mean(bindings),
        "digit alone": caption_accuracy(plain, test.labels),
    }


def balanced(says_true: Tensor, is_true: Tensor) -> float:
    """Accuracy, in which images of which a caption is true weigh as much as the others. bool [N] both."""
    return (says_true[is_true].float().mean() + (~says_true[~is_true]).float().mean()).item() / 2


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main(sys.argv[1:]))
