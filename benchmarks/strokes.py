"""Pen strokes in the space of images and texts: are they understood by captions, though training had none?

    python -m benchmarks.strokes --clips runs/best_model.pth          six minutes on 2 CPU cores for the first CLIP
    python -m benchmarks.strokes --clips A.pth B.pth C.pth            two more minutes for each other one

For each CLIP a stroke tower is trained (training/align.py), with seeds 0, 1, ... in turn. Beside the first one's: the
control, whose pairs are shuffled, and a tower of the same shape that is trained on the labels. All is measured on the
2,000 test recordings, which nothing was chosen by. Writes results/strokes.json. Runs stay in runs/strokes-benchmark/;
one that has finished is not run again.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from benchmarks.common import DATA, ROOT, about, aligned, parser_of, spread, suffix, write_result
from clip import CLIP
from data.pendigits import Strokes, draw, load_pendigits, random_strokes
from evaluation.metrics import caption_accuracy, digit_accuracies, digit_classifier, embed, embed_images
from evaluation.retrieval import recall_at_k
from my_utils import exit_on_input_error, pick_device
from stroke_encoder import StrokeEncoder
from training.align import GRAD_CLIP, WEIGHT_DECAY
from training.optimizers import WARMUP, warmup_cosine
from training.settings import StrokesSettings
from training.step import update


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--clips", nargs="+", default=["runs/best_model.pth"], metavar="FILE", help="trained CLIPs")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "strokes-benchmark", help="folder of the runs")
    args = parser.parse_args()
    device = pick_device(args.device)
    test = load_pendigits("test", DATA, device)

    rows = []
    for seed, clip in enumerate(args.clips):
        trained = aligned("strokes", args.runs / f"seed{seed}", clip, device, "--seed", str(seed))
        rows.append(of_tower(trained, test))
        told = {k: v for k, v in rows[-1].items() if isinstance(v, float) and k != "train_seconds"}
        print(f"{clip}: " + ", ".join(f"{name} {value:.2%}" for name, value in told.items()), flush=True)
    control = of_tower(aligned("strokes", args.runs / "control", args.clips[0], device, "--shuffled"), test)
    with_labels = trained_on_labels(StrokesSettings(), load_pendigits("train", DATA, device))
    labelled = caption_accuracy(with_labels(test.points), test.labels)
    print(f"control {control['emergent']:.2%}, trained on labels {labelled:.2%}")

    mean = {name: spread([row[name] for row in rows]) for name in rows[0] if not name.endswith("_digits")}
    result = {name: value["mean"] for name, value in mean.items()} | {
        "control": control["emergent"],
        "control_recall_at_1": control["recall_at_1"],
        "trained_on_labels": labelled,
        "by_digit": {name: rows[0][f"{name}_digits"] for name in ("drawings", "emergent")},
        "over_clips": mean,
        "clips": len(args.clips),
        "recordings": len(test.points),
        "train_seconds": spread([row["train_seconds"] for row in rows])["mean"],
    }
    write_result("strokes" + suffix(device), result | about(device))


@torch.no_grad()
def of_tower(clip: CLIP, test: Strokes) -> dict:
    """Shares in 0..1 on the test recordings. Recall: each one's own drawing among all, and the reverse."""
    captions, strokes = digit_classifier(clip), embed(clip.encode_strokes, test.points)
    drawings = embed_images(clip, draw(test.points))
    own = torch.eye(len(strokes), dtype=torch.bool, device=strokes.device)
    similarity = strokes @ drawings.T  # [N, N]
    result = {}
    for name, embeds in (("drawings", drawings), ("emergent", strokes)):
        result[name] = caption_accuracy(embeds @ captions.T, test.labels)
        result[f"{name}_digits"] = digit_accuracies(embeds @ captions.T, test.labels)
    for k in (1, 5):
        result[f"recall_at_{k}"] = recall_at_k(similarity, own, k).mean().item()
        result[f"image_to_strokes_recall_at_{k}"] = recall_at_k(similarity.T, own, k).mean().item()
    return result | {"train_seconds": float(clip.metrics["strokes"]["train_seconds"])}


def trained_on_labels(settings: StrokesSettings, train: Strokes):
    """The same tower, augmentation, optimizer and steps under ten logits and cross-entropy -> points to logits."""
    torch.manual_seed(0)
    net = StrokeEncoder(10).to(train.points.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings.lr, weight_decay=WEIGHT_DECAY, fused=True)
    steps = len(train.points) // settings.batch_size
    total = settings.epochs * steps
    for done in tqdm(range(total), desc="trained on labels", leave=False, disable=None):
        if done % steps == 0:
            order = torch.randperm(len(train.points), device=train.points.device)
        rows = order[done % steps * settings.batch_size :][: settings.batch_size]
        loss = F.cross_entropy(net(random_strokes(train.points[rows])), train.labels[rows])
        update(optimizer, loss, settings.lr * warmup_cosine(done, total, round(WARMUP * total)), GRAD_CLIP)
    net.eval()

    @torch.no_grad()
    def logits(points: Tensor) -> Tensor:
        return net(points)

    return logits


if __name__ == "__main__":
    with exit_on_input_error():
        main()
