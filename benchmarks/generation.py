"""The text-to-image generator: agreement with captions, likeness to real images, copies, use as training data.

    python -m benchmarks.generation          after minutes of training, minutes of sampling

An independent classifier, trained here on pixels, finds the digit of a generated image; its features are those of the
Fréchet distance, and the attributes are measured. Each test image gives a caption of its combination; the generator
never sees the image. Nothing is chosen by these figures. Writes results/generation.json.
"""

import copy
import math
import statistics
import sys
from argparse import Namespace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from attributes import BINS, bins, combination_ids, measure
from benchmarks import common
from benchmarks.modalities import trained_tower
from benchmarks.recipes import digit_cnn, measure_accuracy
from captions import DIGIT_WORDS, combination_claims, combination_description_ids, image_facts, multi_hot
from clip import CLIP
from evaluation.metrics import caption_accuracy, embed, embed_images
from generation import train as training
from generation.features import Cached, agreement, precompute
from generation.model import BEST_OF, STEPS, Flow, Generator
from image_encoder import ImageEncoder
from modalities.speech import OFFICIAL_TEST, load_fsdd
from modalities.strokes import load_pendigits
from my_dataset import Split, batch_indices, load_mnist
from my_utils import exit_on_error
from training.ema import Ema
from training.optim import warmup_cosine
from training.settings import parse_flags
from training.step import update

CLASSIFIER_EPOCHS, SMALL_SET_EPOCHS = 6, 15  # of the classifier; of those that train on as many images as are generated
OTHER_BEST_OF = (1, 4)  # candidates; one: no choice
NEIGHBOURS = 3  # k of precision and recall
CHUNK = 500  # texts that are drawn at a time
OURS = "text → prior → decoder"
COLUMNS = {  # title: unit
    "digit": "%",
    "attributes": "%",
    "attributes, unseen combinations": "%",
    "Fréchet distance": "",
    "precision": "",
    "recall": "",
    "seconds": "",
}


def main(argv: list[str]) -> None:
    args = common.parse(common.make_parser("generation", __doc__, seeds=[0, 1, 2]), argv)
    device, size = args.device, 500 if args.quick else 10_000
    clip = CLIP.load(common.trained_clip(args), device).requires_grad_(False)
    generator = trained_generator(args, clip)
    train, test = (load_mnist(split, common.DATA, device) for split in ("train", "test"))
    test = Split(*(x[:size] for x in test))
    test_images = test.images[:, None].float() / 255  # [N, 1, 28, 28]

    # ---- the independent classifier, and its features of real images ----
    classifier = digit_cnn(train.images, train.labels, 1 if args.quick else CLASSIFIER_EPOCHS, seed=100)
    sample = torch.randperm(len(train.images), generator=torch.Generator().manual_seed(0))[:size]
    real = Split(train.images[sample], train.labels[sample])
    real_features = features(classifier, real.images[:, None].float() / 255)

    # ---- captions: a sentence for the combination of each test image ----
    combinations = combination_ids(test.labels, measure(test.images))
    is_unseen = clip.unseen.flatten().to(device)[combinations]
    ids, claims = (x.to(device)[combinations] for x in (combination_description_ids(), combination_claims()))
    torch.manual_seed(0)
    texts = clip.prompt_ensemble(clip.captions.sample(ids).strings(), paraphrases=1)  # [N, embed_dim]
    digit_labels = multi_hot(*DIGIT_WORDS).to(device)

    def evaluate(images: Tensor, seconds: float) -> dict[str, float]:
        facts = image_facts(embed(classifier, images).argmax(dim=1), measure(images))
        has_digit = agreement(facts, claims & digit_labels).float()
        has_attributes = agreement(facts, claims & ~digit_labels).float()
        own = features(classifier, images)
        precision, recall = precision_recall(real_features, own)
        figures = [has_digit.mean(), has_attributes[~is_unseen].mean(), has_attributes[is_unseen].mean()]
        figures += [frechet_distance(real_features, own), precision, recall, seconds]
        return {name: float(figure) for name, figure in zip(COLUMNS, figures, strict=True)}

    # ---- the generator with several seeds of its noise, then other ways and bounds with one ----
    ours = partial(generate, generator, clip, texts, claims)
    ways = {OURS: ours} | {f"{OURS}, best of {n}": partial(ours, best_of=n) for n in OTHER_BEST_OF}
    ways |= ways_without_prior(args, generator, texts, precompute(clip, train), test)
    bounds = {
        "real image's own vector → decoder": partial(decode, generator, embed_images(clip, test.images)),
        "real images through the autoencoder": lambda seed: reconstruct(generator, test_images),
        "real images": lambda seed: test_images,
        "noise": lambda seed: torch.rand(test_images.shape, generator=torch.Generator().manual_seed(0)).to(device),
    }
    rows, results, generated = [], {}, None
    for name, way in (ways | bounds).items():
        results[name] = []
        for seed in args.seeds if name == OURS else args.seeds[:1]:
            with common.Stopwatch(device) as watch:
                images = way(seed)
            generated = images if generated is None else generated
            results[name].append(evaluate(images, watch.seconds))
        values = {column: [one[column] for one in results[name]] for column in COLUMNS}
        values["seconds"] = values["seconds"] if name in ways else None
        rows.append([name, *(common.cell(values[column], unit) for column, unit in COLUMNS.items())])
        print(name, *rows[-1][1:], sep="  ", flush=True)

    note = (
        f"{len(args.seeds)} seeds of the noise, {STEPS} steps, best of {BEST_OF} unless stated, seconds for {size:,}"
        f" images. The classifier is right on"
        f" {measure_accuracy(classifier, test_images, test.labels):.2%} of the test images."
        f" {describe_use(args, generated, real, train, test)} Drawings that show the digit of what they are drawn from:"
        f" {coherence(args, generator, classifier)}."
    )
    mean = {name: statistics.mean(one[name] for one in results[OURS]) for name in COLUMNS}
    raw = {"digit_agreement": mean["digit"], "attribute_agreement": mean["attributes"]}
    columns = ["images", *COLUMNS]
    common.write_result(args, "generation" + args.suffix, columns, rows, common.origin(device), note, **raw)


def ways_without_prior(args: Namespace, generator: Generator, texts: Tensor, data: Cached, test: Split) -> dict:
    """What takes the place of the prior, by name: a function of the noise's seed that returns images."""
    nearest = torch.cat([(part @ data.embeds.T).argmax(dim=1) for part in texts.split(CHUNK)])
    return {
        "text → decoder, no prior": partial(decode, generator, texts),
        "text → nearest training image → decoder": partial(decode, generator, data.embeds[nearest]),
        "labels → decoder, no CLIP": partial(draw_labels, generator, train_on_labels(args, generator, data), test),
    }


def describe_use(args: Namespace, generated: Tensor, real: Split, train: Split, test: Split) -> str:
    """How well generated images [N, 1, 28, 28] serve as training data, and whether they are copies, in sentences."""
    test_images, size = test.images[:, None].float() / 255, len(generated)
    epochs = 1 if args.quick else SMALL_SET_EPOCHS
    sets = (Split((generated[:, 0] * 255).round().to(torch.uint8), test.labels), real)
    useful = [measure_accuracy(digit_cnn(*one, epochs, seed=0), test_images, test.labels) for one in sets]
    known = [nearest_distance(train.images, images[:CHUNK]) for images in (generated, test_images)]
    return (
        f"One trained on {size:,} generated images alone reaches {useful[0]:.2%} on them, one trained on as many real"
        f" images {useful[1]:.2%}. Median distance to the nearest training image (root mean square of the pixels):"
        f" generated {known[0]:.3f}, test images {known[1]:.3f}."
    )


def trained_generator(args: Namespace, clip: CLIP) -> Generator:
    """The generator of the default CLIP of seed 0, trained if it is not there yet."""
    folder = args.runs / "generator" / f"default{args.suffix}-seed0"
    flags = ["--clip", str(common.trained_clip(args)), "--device", str(args.device)]
    flags += ["--epochs", "3"] if args.quick else []
    common.finished_run(
        folder, flags, training.main, lambda flags: parse_flags(training.GeneratorSettings, flags, "", "")[0]
    )
    return Generator.load(folder / "best_model.pth", clip)


# ---- images [N, 1, 28, 28] ----


@torch.no_grad()
def generate(
    generator: Generator, clip: CLIP, texts: Tensor, claims: Tensor, seed: int, best_of: int = BEST_OF
) -> Tensor:
    noise = torch.Generator(texts.device).manual_seed(seed)
    parts = zip(texts.split(CHUNK), claims.split(CHUNK), strict=True)
    return torch.cat([generator.sample(clip, *part, noise, best_of) for part in parts])


@torch.no_grad()
def decode(generator: Generator, vectors: Tensor, seed: int) -> Tensor:
    noise = torch.Generator(vectors.device).manual_seed(seed)
    return torch.cat([generator.decode(part, noise) for part in vectors.split(CHUNK)])


@torch.no_grad()
def reconstruct(generator: Generator, images: Tensor) -> Tensor:
    return torch.cat([generator.autoencoder.decode(generator.autoencoder.encode(part)) for part in images.split(CHUNK)])


# ---- a decoder without CLIP ----


def one_hot_parts(digits: Tensor, values: Tensor) -> Tensor:
    """Digits [N] and attribute values [N, A] -> the digit and each bin, one-hot side by side [N, 10 + 3 * A]."""
    parts = [F.one_hot(digits, 10), *(F.one_hot(column, BINS) for column in bins(values).T)]
    return torch.cat(parts, dim=1).float()


def train_on_labels(args: Namespace, generator: Generator, data: Cached) -> Flow:
    """The generator's decoder under labels in place of image embeddings: the same latents, size, steps, optimizer."""
    settings, arch = training.GeneratorSettings(), generator.arch
    torch.manual_seed(0)
    conditions = one_hot_parts(data.digits, data.values)
    flow = Flow(arch["latent_dim"], conditions.shape[1], arch["decoder_width"], arch["decoder_blocks"]).to(args.device)
    ema, latents = Ema(flow, settings.ema_decay), embed(generator.autoencoder.encode, data.images)
    group = {"params": list(flow.parameters()), "lr": settings.lr, "peak_lr": settings.lr}
    adamw = torch.optim.AdamW([group], weight_decay=0.01, betas=(0.9, 0.99), fused=True)
    epochs, step = 1 if args.quick else settings.epochs - settings.epochs // 3, 0
    for epoch in tqdm(range(epochs), desc="labels", leave=False, disable=None):
        batches = batch_indices(len(latents), settings.batch_size, settings.seed, epoch, args.device)
        for rows in batches:
            flow.zero_grad()
            flow.loss(latents[rows], conditions[rows]).backward()
            update([adamw], warmup_cosine(step, epochs * len(batches)), training.FLOW_GRAD_CLIP)
            ema.update()
            step += 1
    return ema.model.eval()


@torch.no_grad()
def draw_labels(generator: Generator, flow: Flow, test: Split, seed: int) -> Tensor:
    noise = torch.Generator(test.labels.device).manual_seed(seed)
    conditions = one_hot_parts(test.labels, measure(test.images))
    start = torch.randn(len(conditions), flow.dim, generator=noise, device=noise.device)
    parts = zip(conditions.split(CHUNK), start.split(CHUNK), strict=True)
    return torch.cat([generator.autoencoder.decode(flow.sample(*part, STEPS)) for part in parts])


# ---- every modality in, drawings out ----


def coherence(args: Namespace, generator: Generator, classifier: nn.Module) -> str:
    """The share of drawings whose digit, found by the classifier, is that of the text, image, strokes or speech."""
    test = Split(*(x[:CHUNK] for x in load_mnist("test", common.DATA, args.device)))
    strokes, sounds = load_pendigits("test", common.DATA, args.device), load_fsdd(common.DATA)
    is_test = sounds.takes < OFFICIAL_TEST
    pen = trained_tower(args, "strokes", "towers", 0)
    ear = trained_tower(args, "speech", "official", 0)
    digits = torch.arange(10, device=args.device).repeat(CHUNK // 10)
    inputs = {
        "text": (pen.zero_shot_classifier()[digits], digits),
        "image": (embed_images(pen, test.images), test.labels),
        "strokes": (embed(partial(pen.encode, "strokes"), strokes.points), strokes.labels),
        "speech": (embed(partial(ear.encode, "speech"), sounds.mels[is_test]), sounds.labels[is_test].to(args.device)),
    }
    shares, classifier_texts = [], pen.zero_shot_classifier()
    for name, (vectors, labels) in inputs.items():
        heard = pen.captions.digit_ids.to(args.device)[(vectors @ classifier_texts.T).argmax(dim=1)]
        claims = pen.captions.claims.to(args.device)[heard]
        images = decode(generator, vectors, 0) if name == "image" else generate(generator, pen, vectors, claims, 0)
        shares.append(f"{name} {caption_accuracy(embed(classifier, images), labels):.1%}")
    return ", ".join(shares)


# ---- comparisons ----


def features(classifier: ImageEncoder, images: Tensor) -> Tensor:
    """What the classifier's last layer reads of images [N, 1, 28, 28]: [N, 64]."""
    body = copy.deepcopy(classifier)
    body.projection = nn.Identity()
    return embed(body, images)


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """Fréchet distance of two sets of features [N, D], as Gaussians (Heusel et al., 2017, arXiv 1706.08500)."""
    one, other = one.double(), other.double()
    gap = (one.mean(dim=0) - other.mean(dim=0)).square().sum()
    a, b = torch.cov(one.T), torch.cov(other.T)
    root = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum()
    return (gap + a.trace() + b.trace() - 2 * root).item()


def precision_recall(real: Tensor, generated: Tensor) -> tuple[float, float]:
    """The share of generated images that lie among the real ones, and the reverse. Features [N, D] and [M, D].

    A point lies among others if it is no further from one of them than that one's k-th neighbour (Kynkäänniemi et al.,
    2019, arXiv 1904.06991).
    """

    def share_among(points: Tensor, others: Tensor) -> float:
        distances = (torch.cdist(part, others) for part in others.split(CHUNK))
        radius = torch.cat([part.topk(NEIGHBOURS + 1, largest=False).values[:, -1] for part in distances])
        is_among = [(torch.cdist(part, others) <= radius).any(dim=1) for part in points.split(CHUNK)]
        return torch.cat(is_among).float().mean().item()

    return share_among(generated, real), share_among(real, generated)


def nearest_distance(known: Tensor, images: Tensor) -> float:
    """The median distance of images [N, 1, 28, 28] to the nearest of the known ones, uint8 [M, 28, 28]."""
    flat = images.flatten(1)  # [N, 784]
    best = torch.full((len(flat),), math.inf, device=flat.device)
    for part in known.split(5_000):
        best = torch.minimum(best, torch.cdist(flat, part.flatten(1).float() / 255).amin(dim=1))
    return best.median().item() / 28


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main(sys.argv[1:]))
