"""Does what captions leave out open the modality gap? Captions that name more or less of {digit, thickness, slant}.

    python -m benchmarks.named_attributes                 3 captions x 2 losses x 3 seeds, minutes on 2 CPU cores
    python -m benchmarks.named_attributes --seeds 0 -- --epochs 1

Schrodi et al. (arXiv 2404.07983) say that it does. Here the same towers, images and steps meet captions that name the
digit alone, one attribute more (either of the two, by chance), or both more. What a caption leaves out, the image still
shows. Everything behind `--` goes to train.py's settings. Measured on the test split; writes
benchmarks/results/named-attributes.json and benchmarks/named-attributes.png.
"""

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from attributes import measure
from benchmarks.common import DATA, ROOT, Training, about, parse_with_flags, parser_of, spread, steps_of, write_result
from benchmarks.described import SIDES, bits
from captions import IS_DIGIT, Captions, facts_of, thing
from clip import CLIP
from evaluation.geometry import effective_rank, modality_gap
from evaluation.metrics import caption_accuracy, caption_vectors, digit_classifier
from evaluation.pictures import COLOURS, save_figure
from evaluation.retrieval import average_precision
from evaluation.sections import embed
from my_dataset import Batch, Split, load_mnist
from my_utils import exit_on_input_error, number, pick_device

NAMED = ("digit", "digit, one attribute", "digit, both attributes")  # by how many attributes a caption names
LOSSES = ("multi_positive", "infonce")  # the latter is CLIP's own, as in the paper
BY_CHANCE = 1 / 3  # about the mAP within a digit of any order: the mean share of images that a step has
BUDGET = ["--image-encoder", "fast", "--epochs", "2"]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=number(int, 0), nargs="+", default=[0, 1, 2], help="training seeds")
    args, flags = parse_with_flags(parser)
    device = pick_device(args.device)

    test, rows = load_mnist("test", DATA), []
    with tqdm(total=len(LOSSES) * len(NAMED) * len(args.seeds), desc="runs", disable=None) as bar:
        for loss in LOSSES:
            for named, name in enumerate(NAMED):
                measured = []
                for seed in args.seeds:
                    training = trained([*BUDGET, "--loss", loss, "--seed", str(seed), *flags], named, device)
                    measured.append(measures(training.model, named, test))
                    bar.update()
                values = {key: spread([one[key] for one in measured]) for key in measured[0]}
                rows.append({"loss": loss, "attributes": named, "captions_name": name} | values)
    result = about(device) | {
        "seeds": args.seeds,
        "epochs": training.settings.epochs,
        "embed_dim": training.settings.embed_dim,
        "map_by_chance": BY_CHANCE,
        "rows": rows,
    }
    write_result("named-attributes", result)
    save_figure(figure_of(rows), ROOT / "benchmarks" / "named-attributes.png")
    print(f"{'loss':16}{'captions name':24}" + "".join(f"{name:>20}" for name in measured[0]))
    for row in rows:
        cells = (f"{row[name]['mean']:.3f} +- {row[name]['std'] or 0:.3f}" for name in measured[0])
        print(f"{row['loss']:16}{row['captions_name']:24}" + "".join(f"{cell:>20}" for cell in cells))


# ---- training on captions that name so many attributes ----


def trained(flags: list[str], named: int, device: torch.device) -> Training:
    """A whole training as train.py's, on all cells, with other captions."""
    training = Training(flags, device)
    training.pairs.unseen.zero_()
    training.pairs.unknown.zero_()
    captions = training.model.captions
    for _ in steps_of(
        training.step, training.pairs, training.settings, lambda batch: with_captions(batch, captions, named)
    ):
        pass
    return training


def with_captions(batch: Batch, captions: Captions, named: int) -> Batch:
    """The same images with captions that name the digit and so many attributes; images of no digit keep theirs."""
    is_digit = (batch.truth.facts & IS_DIGIT) != 0
    things = torch.where(is_digit, things_to_say(batch.truth.facts, named), batch.texts.index // captions.phrasings)
    texts, claims = captions.draw(things)
    return batch._replace(texts=texts, truth=batch.truth._replace(claims=claims))


def things_to_say(facts: Tensor, named: int) -> Tensor:
    """Facts of digits [B] -> what a caption says of each, int64 [B]; of one attribute, by chance either."""
    digit, thickness, slant = (bits(facts, *side).int().argmax(dim=1) for side in SIDES)
    either = torch.rand(len(facts), device=facts.device) < 0.5
    says_thickness, says_slant = (named == 2) | (named == 1) & either, (named == 2) | (named == 1) & ~either
    return thing(digit, torch.where(says_thickness, thickness, -1), torch.where(says_slant, slant, -1))


# ---- what comes of it ----


@torch.no_grad()
def measures(model: CLIP, named: int, test: Split) -> dict[str, float]:
    """The space's form, with each test image and a caption of it as in training; and retrieval within a digit."""
    model.eval()
    torch.manual_seed(0)
    images, facts = embed(model, test.images), facts_of(test.labels, *measure(test.images))[0]
    texts = model.encode_text(model.captions.draw(things_to_say(facts, named))[0]).cpu()
    thickness, slant = within_digits(model, images, named, test)
    return {
        "modality_gap": modality_gap(images, texts),
        "rank_of_images": effective_rank(images),
        "rank_of_captions": effective_rank(texts),
        "thickness_map": thickness,
        "slant_map": slant,
        "digit_accuracy": caption_accuracy(images @ digit_classifier(model).cpu().T, test.labels),
        "temperature": 1 / model.logit_scale.exp().item(),
    }


def within_digits(model: CLIP, images: Tensor, named: int, test: Split) -> list[float]:
    """A caption names a digit and a step of an attribute, and ranks the images of that digit: mean average precision
    over digits and steps, for thickness and for slant. Where training always named both attributes, it is the mean of
    the three captions that name both."""
    facts = facts_of(test.labels, *measure(test.images))[0]
    steps = [bits(facts, *side).int().argmax(dim=1) for side in SIDES[1:]]  # int64 [N] each
    precisions = [[], []]
    for digit in range(10):
        own = test.labels == digit
        for attribute, found in enumerate(precisions):
            asked, other = torch.arange(3)[:, None], torch.arange(3) if named == 2 else torch.tensor([-1])
            things = thing(digit, asked, other) if attribute == 0 else thing(digit, other, asked)  # [3, 1 or 3]
            vectors = caption_vectors(model, things.flatten()).cpu().view(*things.shape, -1).mean(dim=1)
            similarity = images[own] @ vectors.T  # [n, 3]
            found += [average_precision(similarity[:, k], steps[attribute][own] == k).item() for k in range(3)]
    return [sum(found) / len(found) for found in precisions]


def figure_of(rows: list[dict]) -> Figure:
    """Gap, effective rank and retrieval over how many attributes captions name; bars are a standard deviation."""
    panels = (
        ("modality gap (distance of the means)", {"modality_gap": "images to captions"}),
        ("effective rank (dimensions)", {"rank_of_images": "images", "rank_of_captions": "captions"}),
        ("mAP within a digit (%)", {"thickness_map": "by thickness", "slant_map": "by slant"}),
    )
    figure = Figure(figsize=(12.5, 4.4), layout="constrained")
    figure.suptitle("what captions name beside the digit, and what becomes of the shared space")
    for axes, (label, lines) in zip(figure.subplots(1, 3), panels, strict=True):
        scale = 100 if "%" in label else 1
        for colour, loss in zip(COLOURS, LOSSES, strict=False):
            own = [row for row in rows if row["loss"] == loss]
            for style, (name, what) in zip(("o-", "s--"), lines.items(), strict=False):
                values = [scale * row[name]["mean"] for row in own]
                errors = [scale * (row[name]["std"] or 0) for row in own]
                places = [row["attributes"] for row in own]
                axes.errorbar(
                    places, values, errors, fmt=style, color=colour, capsize=3, markersize=5, label=f"{what}, {loss}"
                )
        if scale == 100:
            axes.axhline(100 * BY_CHANCE, color="grey", linestyle=":", label="by chance, about")
        axes.set_xticks(range(len(NAMED)))
        axes.set_xlim(-0.2, len(NAMED) - 0.8)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("attributes that a caption names")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    with exit_on_input_error():
        main()
