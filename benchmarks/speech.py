"""Spoken digits in the space of images and texts: how well is a voice understood that training never heard?

    python -m benchmarks.speech --clips runs/best_model.pth     a run for each of six voices, and the official split

For each CLIP, with seeds 0, 1, ... in turn, a speech tower is trained without one speaker, six times, and measured on
all that this speaker said; then on the official split. Augmentation and tower were chosen on two voices, DEVELOPMENT,
with the seed 0; the mean without these two stands beside the mean of all six. Writes results/speech.json. Runs stay in
runs/speech-benchmark/; one that has finished is not run again.
"""

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import DATA, ROOT, about, aligned, parser_of, spread, suffix, write_result
from clip import CLIP
from data.fsdd import SPEAKERS, Sounds, load_fsdd
from evaluation.metrics import caption_accuracy, digit_classifier, embed, embed_images
from evaluation.retrieval import precision_at_k, recall_at_k
from my_dataset import Split, load_mnist
from my_utils import exit_on_input_error, pick_device
from training.align import held_out

DEVELOPMENT = ("george", "nicolas")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--clips", nargs="+", default=["runs/best_model.pth"], metavar="FILE", help="trained CLIPs")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "speech-benchmark", help="folder of the runs")
    args = parser.parse_args()
    device = pick_device(args.device)
    sounds = Sounds(*(x.to(device) for x in load_fsdd(DATA)))
    test = load_mnist("test", DATA, device)

    rows = {which: [] for which in (*SPEAKERS, "official")}
    for seed, clip in enumerate(args.clips):
        images = embed_images(CLIP.load(clip, device), test.images)
        for which, of_seeds in rows.items():
            run = args.runs / f"{which}-seed{seed}"
            trained = aligned("speech", run, clip, device, "--seed", str(seed), "--held-out", which)
            is_out = held_out(sounds, which)
            of_seeds.append(of_tower(trained, Sounds(*(x[is_out] for x in sounds)), images, test))
            told = ", ".join(f"{name} {value:.2%}" for name, value in of_seeds[-1].items() if name != "train_seconds")
            print(f"{clip}, {which}: {told}", flush=True)

    names = [name for name in rows["official"][0] if name != "train_seconds"]
    by_voice = {which: {name: spread([row[name] for row in of]) for name in names} for which, of in rows.items()}
    means = [statistics_of(rows, seed) for seed in range(len(args.clips))]
    over = {name: spread([one[name] for one in means]) for name in means[0]}
    result = {name: value["mean"] for name, value in over.items()} | {
        "by_voice": by_voice,
        "over_clips": over,
        "clips": len(args.clips),
        "development_voices": DEVELOPMENT,
        "train_seconds": spread([row["train_seconds"] for row in rows["official"]])["mean"],
    }
    write_result("speech" + suffix(device), result | about(device))


def statistics_of(rows: dict[str, list[dict]], seed: int) -> dict[str, float]:
    """What one CLIP's seven towers reach."""
    voices = {speaker: rows[speaker][seed] for speaker in SPEAKERS}
    clean = [one["accuracy"] for speaker, one in voices.items() if speaker not in DEVELOPMENT]
    every = [one["accuracy"] for one in voices.values()]

    def mean(name: str) -> float:
        return sum(one[name] for one in voices.values()) / len(voices)

    return {
        "held_out_speakers_mean": mean("accuracy"),
        "held_out_speakers_min": min(every),
        "held_out_speakers_mean_not_developed_on": sum(clean) / len(clean),
        "official": rows["official"][seed]["accuracy"],
        **{f"held_out_{name}": mean(name) for name in rows["official"][seed] if name.startswith(("speech_", "image_"))},
    }


@torch.no_grad()
def of_tower(clip: CLIP, heard: Sounds, images: Tensor, test: Split) -> dict[str, float]:
    """Shares in 0..1 on recordings that were not trained on, with the test images' vectors [N, embed_dim]."""
    embeds = embed(clip.encode_speech, heard.mels)  # [S, embed_dim]
    precision = []
    for digit in range(10):
        is_right = test.labels == digit
        precision.append(precision_at_k(embeds[heard.labels == digit] @ images.T, is_right, int(is_right.sum())))
    found = images @ embeds.T  # [N, S]
    is_own = test.labels[:, None] == heard.labels
    return {
        "accuracy": caption_accuracy(embeds @ digit_classifier(clip).T, heard.labels),
        "speech_to_image_r_precision": torch.cat(precision).mean().item(),
        **{f"image_to_speech_recall_at_{k}": recall_at_k(found, is_own, k).mean().item() for k in (1, 5)},
        "train_seconds": float(clip.metrics["speech"]["train_seconds"]),
    }


if __name__ == "__main__":
    with exit_on_input_error():
        main()
