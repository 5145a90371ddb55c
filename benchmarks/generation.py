"""Judge the generator: does it draw what was asked, are its drawings like real images, are they copies, do they teach?

    python -m benchmarks.generation          the CLIP and the generator of runs/; a quarter of an hour on 2 CPU cores

The judge is never the model that guided the drawing: a classifier that is trained here, on pixels, says which digit it
is, and its features are those of the Frechet distance; thickness and slant are measured again. Each test image gives a
caption of all that it is, and is not shown to the generator. Nothing is chosen by these figures.
Writes results/generation.json.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from attributes import measure
from benchmarks.common import DATA, Stopwatch, about, parser_of, spread, suffix, write_result
from benchmarks.recipes import accuracy, classifier
from captions import FIRST_KIND, facts_of, holds, things_of_cells
from clip import CLIP
from evaluation.generation import drawn_facts
from evaluation.metrics import embed_images
from generator import STEPS, Flow, Generator
from image_encoder import ImageEncoder
from my_dataset import Split, load_mnist
from my_utils import InputError, exit_on_input_error, number, pick_device
from training.ema import Ema
from training.generator import FLOW_GRAD_CLIP, Material, draw_texts, encode, look_at, read_all
from training.optimizers import WARMUP, warmup_cosine
from training.step import update

JUDGE_EPOCHS, FEW_EPOCHS = 6, 15  # of the judge; of classifiers that have 10,000 images
SAMPLES = 10_000  # the test split's size
NEIGHBOURS = 3  # k of precision and recall
OTHER_STEPS = (1, 2, 3, 12)
DIGIT_BITS = (1 << FIRST_KIND) - 1  # the statements that name a digit


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--clip", default="runs/best_model.pth", metavar="FILE", help="the trained CLIP")
    parser.add_argument(
        "--generator", default="runs/generator/best_model.pth", metavar="FILE", help="the generator trained with it"
    )
    parser.add_argument("--seeds", type=number(int, 0, 2**31), nargs="+", default=[0, 1, 2], help="seeds of the noise")
    args = parser.parse_args()
    device = pick_device(args.device)
    clip = CLIP.load(args.clip, device).requires_grad_(False)
    if not clip.captions.described:
        raise InputError(f"{args.clip} has captions of digits alone: train one with --captions described")
    generator = Generator.load(args.generator, clip)
    train, test = (load_mnist(split, DATA, device) for split in ("train", "test"))

    # ---- the judge, and what the real images are to it ----
    judge = classifier(train.images, train.labels, JUDGE_EPOCHS, seed=100)
    test_images = test.images[:, None].float() / 255
    judge_accuracy = accuracy(judge, test_images, test.labels)
    print(f"the judge: {judge_accuracy:.2%} of the test images")
    cells = facts_of(test.labels, *measure(test.images))[1]
    is_unseen = clip.unseen.flatten().to(device)[cells]
    real = features(judge, train.images[torch.randperm(len(train.images), generator=seeded(0))[:SAMPLES]])
    sentences = read_all(clip)
    torch.manual_seed(0)
    drawn_texts, claims = clip.captions.draw(things_of_cells().to(device)[cells])
    texts = sentences[drawn_texts.index]  # [N, embed_dim]

    def measured(images: Tensor) -> dict:
        facts = drawn_facts(images, lambda x: logits_of(judge, x).argmax(dim=1))
        has = [holds(claims & bits, facts) for bits in (DIGIT_BITS, ~DIGIT_BITS)]
        own = features(judge, images)
        precision, recall = precision_recall(real, own)
        return {
            "digit_agreement": share(has[0]),
            "attribute_agreement": share(has[1][~is_unseen]),
            "attribute_agreement_unseen": share(has[1][is_unseen]),
            "all_agreement": share(has[0] & has[1]),
            "frechet": frechet(real, own),
            "precision": precision,
            "recall": recall,
        }

    # ---- the generator, over seeds ----
    runs, drawn = [], None
    for seed in args.seeds:
        watch = Stopwatch(device)
        with watch:
            images = in_parts(lambda part, noise: generator.draw(part, noise), texts, seed)
        drawn = images if drawn is None else drawn
        runs.append(measured(images) | {"seconds": watch.seconds})
        print(f"seed {seed}: {shown(runs[-1])}")

    # ---- other ways, and bounds: one seed ----
    material = look_at(clip, train, sentences)
    others = {}
    for name, make in other_ways(generator, clip, material, texts, test).items():
        others[name] = measured(make())
        print(f"{name}: {shown(others[name])}")

    # ---- steps, copies, use ----
    by_steps = over_steps(generator, texts, args.seeds[0], measured)
    known = material.images
    copies = {"drawn": distance_to(known, drawn[:1000, 0]), "test": distance_to(known, test_images[:1000, 0])}
    digits = cells // 9
    some = torch.randperm(len(train.images), generator=seeded(1))[:SAMPLES]
    few = {"drawn": (as_bytes(drawn[:, 0]), digits), "real": (train.images[some], train.labels[some])}
    trained_on = {
        name: accuracy(classifier(*pairs, FEW_EPOCHS, seed=0), test_images, test.labels) for name, pairs in few.items()
    }
    print(f"trained on 10,000 drawn {trained_on['drawn']:.2%}, real {trained_on['real']:.2%}; distances {copies}")

    mean = {name: spread([run[name] for run in runs]) for name in runs[0]}
    result = {name: value["mean"] for name, value in mean.items()}
    result |= {
        "frechet_floor": others["real images"]["frechet"],
        "frechet_noise": others["noise"]["frechet"],
        "trained_on_drawn": trained_on["drawn"],
        "trained_on_real": trained_on["real"],
        "judge_accuracy": judge_accuracy,
        "nearest_training_image": copies,
        "over_seeds": mean,
        "others": others,
        "by_steps": by_steps,
        "steps": STEPS,
        "seeds": args.seeds,
        "samples": SAMPLES,
        "generator": generator.metrics,
        "trained_at_commit": clip.metrics.get("commit"),
    }
    write_result("generation" + suffix(device), result | about(device))


def other_ways(generator: Generator, clip: CLIP, material: Material, texts: Tensor, test: Split) -> dict[str, Callable]:
    """What is drawn beside it, one seed each, and the bounds: name -> a function that makes the images."""
    vectors, real = material.image_embeds, test.images[:, None].float() / 255
    nearest = vectors[torch.cat([(part @ vectors.T).argmax(dim=1) for part in texts.split(500)])]

    def decoded(image_embeds: Tensor) -> Tensor:
        return in_parts(lambda part, noise: generator.decode(part, generator=noise), image_embeds, 0)

    return {
        "text vectors straight into the decoder, no prior": lambda: decoded(texts),
        "prior: the training image nearest to the text": lambda: decoded(nearest),
        "a decoder trained on text vectors": lambda: of_texts(generator, clip, material, texts),
        "real images' own vectors, decoded": lambda: decoded(embed_images(clip, test.images)),
        "real images, through the autoencoder": lambda: in_parts(
            lambda part, _: generator.autoencoder.decode(part), encode(generator, test.images), 0
        ),
        "real images": lambda: real,
        "noise": lambda: torch.rand(real.shape, generator=seeded(0)).to(real.device),
    }


def over_steps(generator: Generator, texts: Tensor, seed: int, measured: Callable) -> list[dict]:
    """Seconds and quality for each of OTHER_STEPS."""
    rows = []
    for steps in OTHER_STEPS:

        def draw(part: Tensor, noise: torch.Generator, steps: int = steps) -> Tensor:
            vectors = generator.imagine(part, steps=steps, generator=noise)
            return generator.decode(vectors, steps=steps, generator=noise)

        few, many = Stopwatch(texts.device), Stopwatch(texts.device)
        with few:
            draw(texts[:16], seeded(0, texts.device))
        with many:
            images = in_parts(draw, texts, seed)
        times = {"seconds_16": few.seconds, f"seconds_{SAMPLES}": many.seconds}
        rows.append({"steps": steps} | times | measured(images))
        print(f"{steps} steps: {many.seconds:.1f} s, {shown(rows[-1])}")
    return rows


def seeded(seed: int, device="cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def share(which: Tensor) -> float:
    return which.float().mean().item()


def shown(one: dict) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in one.items())


@torch.no_grad()
def in_parts(draw, conditions: Tensor, seed: int) -> Tensor:
    """`draw(part, noise)` for parts of the conditions -> images [N, 1, 28, 28]."""
    noise = seeded(seed, conditions.device)
    return torch.cat([draw(part, noise) for part in conditions.split(1_000)])


def of_texts(generator: Generator, clip: CLIP, material: Material, texts: Tensor) -> Tensor:
    """A decoder of the same size and as many steps, trained on the vectors of the images' texts; its drawings."""
    torch.manual_seed(0)
    device, settings = texts.device, generator.config
    decoder = Flow(
        generator.decoder.dim, texts.shape[1], generator.arch["decoder_width"], generator.arch["decoder_blocks"]
    ).to(device)
    latents = encode(generator, material.images)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=settings["lr"], weight_decay=0.01, betas=(0.9, 0.99))
    epochs = settings["epochs"] - settings["epochs"] // 3
    batch = settings["batch_size"]
    total = epochs * (len(latents) // batch)
    ema, done = Ema(decoder, settings["ema_decay"]), 0
    for _ in tqdm(range(epochs), leave=False, desc="a decoder of texts", disable=None):
        for rows in torch.randperm(len(latents)).to(device).split(batch)[: len(latents) // batch]:
            loss = decoder.loss(latents[rows], generator.scale * draw_texts(clip, material, rows)[0])
            factor = warmup_cosine(done, total, round(WARMUP * total))
            update(optimizer, loss, factor * settings["lr"], FLOW_GRAD_CLIP)
            ema.update()
            done += 1
    own = Generator(**generator.arch).to(device).eval()
    own.autoencoder, own.decoder = generator.autoencoder, ema.model.eval()
    return in_parts(lambda part, noise: own.decode(part, generator=noise), texts, 0)


# ---- classifiers on pixels ----


@torch.no_grad()
def logits_of(net: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([net(part) for part in images.split(500)])


@torch.no_grad()
def features(net: ImageEncoder, images: Tensor) -> Tensor:
    """What the classifier's last layer reads: images uint8 [N, 28, 28] or float [N, 1, 28, 28] -> [N, 64]."""
    if images.dtype == torch.uint8:
        images = images[:, None].float() / 255
    return torch.cat([net.pooled(x) for x in images.split(500)])


def as_bytes(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)


# ---- what is compared ----


def frechet(one: Tensor, other: Tensor) -> float:
    """Frechet distance of two sets of features [N, D], as Gaussians (Heusel et al., 2017, arXiv 1706.08500)."""
    one, other = one.double(), other.double()
    gap = (one.mean(dim=0) - other.mean(dim=0)).square().sum()
    a, b = torch.cov(one.T), torch.cov(other.T)
    root = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum()
    return (gap + a.trace() + b.trace() - 2 * root).item()


def precision_recall(real: Tensor, drawn: Tensor) -> tuple[float, float]:
    """Share of drawn images within the real ones' manifold, and the reverse (Kynkaanniemi et al., 2019,
    arXiv 1904.06991): within reach of the k-th neighbour of one of them."""

    def covered(points: Tensor, by: Tensor) -> float:
        radius = torch.cat(
            [torch.cdist(part, by).topk(NEIGHBOURS + 1, largest=False).values[:, -1] for part in by.split(1_000)]
        )
        return share(torch.cat([(torch.cdist(part, by) <= radius).any(dim=1) for part in points.split(1_000)]))

    return covered(drawn, real), covered(real, drawn)


def distance_to(known: Tensor, images: Tensor) -> float:
    """The median distance of images [N, 28, 28] in 0..1 to the nearest of the known ones, uint8: root mean square."""
    flat = images.flatten(1)
    best = torch.full((len(flat),), math.inf, device=flat.device)
    for part in known.split(5_000):
        best = torch.minimum(best, torch.cdist(flat, part.flatten(1).float() / 255).amin(dim=1))
    return best.median().item() / 28


if __name__ == "__main__":
    with exit_on_input_error():
        main()
