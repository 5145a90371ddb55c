"""How well a model trained with `--text-encoder plus` understands sentences: the README's table of prompts.

    python -m benchmarks.seeds --name plus --seeds 0 1 2 -- --text-encoder plus --freeze-text --text-model FOLDER
    python -m benchmarks.sentences --name plus --seeds 0 1 2

Reads runs/<name>-seed<S>/best_model.pth, looks at the test split, writes benchmarks/results/<name>-sentences.json.
"""

import statistics
from pathlib import Path

import torch
from sklearn.metrics import roc_auc_score

from benchmarks.common import DATA, ROOT, about, parser_of, spread, write_result
from captions import BARE_TEMPLATES, HELD_OUT_TEMPLATES, OTHER_SENTENCES, TRAIN_TEMPLATES, all_sentences
from clip import CLIP
from evaluation.metrics import caption_accuracy, digit_classifier, embed_images
from my_dataset import load_mnist
from my_utils import exit_on_input_error, number


def main() -> None:
    parser = parser_of(__doc__, device=False)
    parser.add_argument("--name", default="plus", help="name of the setting that seeds.py has trained")
    parser.add_argument("--seeds", type=number(int, 0), nargs="+", default=[0, 1, 2], help="training seeds")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of the runs")
    parser.add_argument("--text-model", default=None, help="the language model's folder, where it has moved")
    args = parser.parse_args()

    test = load_mnist("test", DATA)
    paths = [args.runs / f"{args.name}-seed{seed}" / "best_model.pth" for seed in args.seeds]
    measured = [sentence_metrics(CLIP.load(path, "cpu", args.text_model), test) for path in paths]
    rows = {name: spread([one[name] for one in measured]) for name in measured[0]}
    for name, row in rows.items():
        print(f"{name:36}{row['mean']:8.4f}" + (f" +- {row['std']:.4f}" if row["std"] is not None else ""))
    counts = {"train": len(TRAIN_TEMPLATES), "held_out": len(HELD_OUT_TEMPLATES), "other": len(OTHER_SENTENCES)}
    result = about(torch.device("cpu")) | {"seeds": args.seeds, "templates": counts, "results": rows}
    write_result(f"{args.name}-sentences", result)


@torch.no_grad()
def sentence_metrics(model: CLIP, test) -> dict[str, float]:
    images = embed_images(model, test.images)  # [N, embed_dim]

    def accuracy(*templates: str) -> float:
        return caption_accuracy(images @ digit_classifier(model, templates).T, test.labels)

    def one_by_one(templates: tuple[str, ...]) -> list[float]:
        return [accuracy(template) for template in templates]

    train, held_out = one_by_one(TRAIN_TEMPLATES), one_by_one(HELD_OUT_TEMPLATES)

    # Does the best image of all tell whether a sentence speaks of a digit? And is an image closer to its own
    # digit's sentence than to a sentence of something else? Sentences of templates that were not trained on.
    digits = images @ model.encode_text(list(all_sentences(HELD_OUT_TEMPLATES))).T  # [N, 100]
    others = images @ model.encode_text(list(OTHER_SENTENCES)).T  # [N, 20]
    digit_of = torch.arange(10).repeat_interleave(len(HELD_OUT_TEMPLATES))  # [100]
    own = digits[digit_of == test.labels[:, None]]  # [N * templates]
    best = torch.cat([digits.amax(dim=0), others.amax(dim=0)])
    pairs = torch.cat([own, others.flatten()])
    return {
        "ensemble_accuracy": accuracy(*TRAIN_TEMPLATES),
        "train_template_accuracy": statistics.mean(train),
        "train_template_worst": min(train),
        "held_out_template_accuracy": statistics.mean(held_out),
        "held_out_template_worst": min(held_out),
        "bare_word_accuracy": accuracy(BARE_TEMPLATES[0]),
        "bare_numeral_accuracy": accuracy(BARE_TEMPLATES[1]),
        "own_digit_similarity": own.mean().item(),
        "other_sentence_similarity": others.mean().item(),
        "sentence_auroc": float(roc_auc_score([1] * digits.shape[1] + [0] * others.shape[1], best.numpy())),
        "pair_auroc": float(roc_auc_score([1] * len(own) + [0] * others.numel(), pairs.numpy())),
    }


if __name__ == "__main__":
    with exit_on_input_error():
        main()
