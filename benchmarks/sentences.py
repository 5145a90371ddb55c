"""How well a model trained with `--text-encoder plus` understands sentences: the README's table of prompts.

    python benchmarks/seeds.py --name plus --seeds 0 1 2 -- --text-encoder plus --freeze-text --text-model FOLDER
    python benchmarks/sentences.py --name plus --seeds 0 1 2

Reads runs/<name>-seed<S>/best_model.pth, looks at the test split, writes benchmarks/results/<name>-sentences.json.
"""

import json
import statistics
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402

from clip import CLIP  # noqa: E402
from metrics import embed_images, zero_shot_accuracy, zero_shot_classifier  # noqa: E402
from my_dataset import DATA_PATH, load_mnist  # noqa: E402
from my_utils import ArgumentParser, atomic_write, exit_on_input_error, number  # noqa: E402
from templates import BARE_TEMPLATES, HELD_OUT_TEMPLATES, OTHER_SENTENCES, TRAIN_TEMPLATES, fill  # noqa: E402


def main() -> None:
    parser = ArgumentParser(prog="sentences.py", description=__doc__.split("\n")[0])
    parser.add_argument("--name", default="plus", help="name of the setting that seeds.py has trained")
    parser.add_argument("--seeds", type=number(int, 0), nargs="+", default=[0, 1, 2], help="training seeds")
    parser.add_argument("--text-model", default=None, help="the language model's folder, where it has moved")
    parser.add_argument("--data-path", default=ROOT / DATA_PATH, help="folder of MNIST")
    args = parser.parse_args()

    test = load_mnist("test", args.data_path)
    measured = [
        sentence_metrics(
            CLIP.load(ROOT / "runs" / f"{args.name}-seed{seed}" / "best_model.pth", "cpu", args.text_model), test
        )
        for seed in args.seeds
    ]
    rows = {}
    for name in measured[0]:
        values = [one[name] for one in measured]
        spread = statistics.stdev(values) if len(values) > 1 else None
        rows[name] = {"mean": statistics.mean(values), "std": spread, "values": values}
        print(f"{name:36}{rows[name]['mean']:8.4f}" + (f" +- {spread:.4f}" if spread is not None else ""))
    result = {
        "command": f"python benchmarks/sentences.py --name {args.name}",
        "seeds": args.seeds,
        "templates": {
            "train": len(TRAIN_TEMPLATES),
            "held_out": len(HELD_OUT_TEMPLATES),
            "other": len(OTHER_SENTENCES),
        },
        "torch_version": str(torch.__version__),
        "date": f"{date.today()}",
        "results": rows,
    }
    path = ROOT / "benchmarks" / "results" / f"{args.name}-sentences.json"
    atomic_write(path, (json.dumps(result, indent=2) + "\n").encode())


@torch.no_grad()
def sentence_metrics(model: CLIP, test) -> dict[str, float]:
    images = embed_images(model, test.images)  # [N, embed_dim]

    def accuracy(*templates: str) -> float:
        return zero_shot_accuracy(images @ zero_shot_classifier(model, templates).T, test.labels)

    def one_by_one(templates: tuple[str, ...]) -> list[float]:
        return [accuracy(template) for template in templates]

    train, held_out = one_by_one(TRAIN_TEMPLATES), one_by_one(HELD_OUT_TEMPLATES)

    # Does the best image of all tell whether a sentence speaks of a digit? And is an image closer to its own
    # digit's sentence than to a sentence of something else? Sentences of templates that were not trained on.
    digit_sentences = [fill(template, digit) for template in HELD_OUT_TEMPLATES for digit in range(10)]
    digits = images @ model.encode_text(digit_sentences).T  # [N, 100]
    others = images @ model.encode_text(list(OTHER_SENTENCES)).T  # [N, 20]
    own = digits[torch.arange(10).repeat(len(HELD_OUT_TEMPLATES))[None] == test.labels[:, None]]  # [N * templates]
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
