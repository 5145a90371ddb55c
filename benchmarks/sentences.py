"""How well a model with a frozen language model (all-MiniLM-L6-v2) understands sentences that it was not trained on.

    python -m benchmarks.sentences

Trains two seeds on the templates of data/templates.txt, tests them with those of held_out_templates.txt, with bare
words, and with other_sentences.txt, which name no digit. Writes results/sentences.json.
"""

import statistics
import sys
from pathlib import Path

import torch

from benchmarks.common import (
    DATA,
    SENTENCES,
    cell,
    make_parser,
    parse,
    read_metrics,
    shared_origin,
    trained_clip,
    write_result,
)
from captions import TRAIN_TEMPLATES, fill_templates
from clip import CLIP
from evaluation.metrics import caption_accuracy, embed_images
from evaluation.ood import auroc
from my_dataset import Split, load_mnist
from my_utils import exit_on_error

FLAGS = ["--captions", "digit", "--init-temperature", "0.07", *SENTENCES]
HELD_OUT_TEMPLATES, OTHER_SENTENCES = (
    (Path(__file__).parent / f"{name}.txt").read_text().splitlines()
    for name in ("held_out_templates", "other_sentences")
)
ROWS = {  # title: unit
    "accuracy, ensemble of the training templates": "%",
    "accuracy, one training template: mean": "%",
    "accuracy, one training template: worst": "%",
    "accuracy, one held-out template: mean": "%",
    "accuracy, one held-out template: worst": "%",
    "accuracy, bare words": "%",
    "accuracy, bare numerals": "%",
    "mean cosine, image and held-out sentence of its digit": "",
    "mean cosine, image and sentence of no digit": "",
    "AUROC of telling these two kinds of pair apart": "",
    "AUROC of telling digit sentences from others by their best image": "",
}


def main(argv: list[str]) -> None:
    args = parse(make_parser("sentences", __doc__, seeds=[0, 1]), argv)
    models = [trained_clip(args, seed, "sentences", FLAGS) for seed in args.seeds]
    metrics = [read_metrics(path.parent) for path in models]
    test = load_mnist("test", DATA, args.device)
    measured = [measure(CLIP.load(path, args.device), test) for path in models]
    values = {title: [one[title] for one in measured] for title in ROWS}
    rows = [[title, cell(values[title], unit)] for title, unit in ROWS.items()]
    note = (
        f"{len(args.seeds)} seeds, {len(TRAIN_TEMPLATES)} training and {len(HELD_OUT_TEMPLATES)} held-out templates,"
        f" {len(OTHER_SENTENCES)} sentences of no digit."
    )
    write_result(
        args,
        "sentences" + args.suffix,
        ["on the test split", "mean ± std"],
        rows,
        shared_origin(metrics),
        note,
        **values,
    )


@torch.no_grad()
def measure(model: CLIP, test: Split) -> dict[str, float]:
    """The figure of each of ROWS."""
    images = embed_images(model, test.images)  # [N, embed_dim]

    def accuracy(*templates: str) -> float:
        classifier = model.prompt_ensemble(fill_templates(templates), len(templates))  # [10, embed_dim]
        return caption_accuracy(images @ classifier.T, test.labels)

    train, held_out = ([accuracy(one) for one in templates] for templates in (TRAIN_TEMPLATES, HELD_OUT_TEMPLATES))
    digits = images @ model.encode_text(fill_templates(HELD_OUT_TEMPLATES)).T  # [N, 10 * templates]
    others = images @ model.encode_text(OTHER_SENTENCES).T  # [N, sentences]
    digit_ids = torch.arange(10, device=images.device).repeat_interleave(len(HELD_OUT_TEMPLATES))
    own = digits[digit_ids == test.labels[:, None]]  # [N * templates]
    best = [similarity.amax(dim=0) for similarity in (digits, others)]  # of each sentence: its best image
    figures = [
        accuracy(*TRAIN_TEMPLATES),
        statistics.mean(train),
        min(train),
        statistics.mean(held_out),
        min(held_out),
        accuracy("{word}"),
        accuracy("{numeral}"),
        own.mean().item(),
        others.mean().item(),
        auroc(own, others.flatten()),
        auroc(*best),
    ]
    return dict(zip(ROWS, figures, strict=True))


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main(sys.argv[1:]))
