"""Train a generator (generator.py) on a trained CLIP, which stays as it is.

    make generator                                   what `make train` left is its CLIP; minutes on 2 CPU cores
    make generator ARGS="--resume"                   go on with the newest unfinished run

The first third of the epochs trains the autoencoder, the others the two flows. Images of the cells that the CLIP never
saw are left out here too. Writes runs/generator/<run>/ as train.py does, and in the end runs/generator/best_model.pth.
"""

import sys
import time

import my_utils
from training.settings import GeneratorSettings, read_generator_flags

if __name__ == "__main__":  # a wrong flag is refused before torch takes its seconds to load
    FLAGS = my_utils.read_early(read_generator_flags)

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from attributes import measure
from captions import facts_of, things_of
from clip import CLIP
from data.mnist import provision
from evaluation.generation import by_caption, drawn_facts, share_as_asked
from evaluation.metrics import embed_images
from generator import Generator
from my_dataset import Split, batches, load_mnist
from my_utils import device_name, enough_memory, exit_on_input_error, pick_device, seed_everything
from training.eager import AdamW
from training.ema import Ema
from training.optimizers import WARMUP, warmup_cosine
from training.run import Interrupt, Run, open_run
from training.step import update

COLUMNS = ("autoencoder_loss", "decoder_loss", "prior_loss", "grad_norm")  # of a step; 0 while a part rests
AUTOENCODER_GRAD_CLIP, FLOW_GRAD_CLIP = 100.0, 1.0  # largest norm of the gradient
SHOWN_EACH = 9  # drawings of each digit on the sheet in TensorBoard
CHECKED = 1_000  # captions of validation images that are drawn after each epoch


class Material(NamedTuple):
    """What the frozen CLIP makes of N images and of all sentences."""

    images: Tensor  # uint8 [N, 28, 28]
    digits: Tensor  # int64 [N]
    thickness: Tensor  # [N], pixels
    slant: Tensor  # [N], radians
    image_embeds: Tensor  # [N, embed_dim]
    text_embeds: Tensor  # [sentences, embed_dim], in the order of clip.captions.sentences


def main(settings: GeneratorSettings, given: dict) -> int:
    """A whole run -> 0, or 130 when it was interrupted and saved. Raises InputError for what a person must change."""
    with enough_memory("start a new run with a lower --batch-size"):
        return train(settings, given)


def train(settings: GeneratorSettings, given: dict) -> int:
    # ---- settings, the CLIP, what it makes of the data ----
    settings, run = open_run(settings, given, "generator")
    device = pick_device(settings.device)
    clip = CLIP.load(settings.clip, device, settings.text_model).requires_grad_(False)
    provision(settings.data_path)
    seed_everything(settings.seed)
    sentences = read_all(clip)
    material, val = (
        look_at(clip, load_mnist(split, settings.data_path, device), sentences) for split in ("train", "val")
    )
    batch_size = min(settings.batch_size, len(material.images))
    steps = len(material.images) // batch_size
    first_epochs = settings.epochs // 3  # of the autoencoder

    # ---- networks, optimizers, the run's folder ----
    generator = Generator(clip.arch["embed_dim"], clip.fingerprint()).to(device, memory_format=torch.channels_last)
    generator.config = settings.record()
    ema = Ema(generator, settings.ema_decay)
    flows = [*generator.decoder.parameters(), *generator.prior.parameters()]
    optimizers = [
        AdamW(parameters, lr=settings.lr, weight_decay=0.01, betas=(0.9, 0.99), fused=True)
        for parameters in (list(generator.autoencoder.parameters()), flows)
    ]
    state = run.begin([generator, ema, *optimizers], settings, device, steps, len(COLUMNS))
    log = SummaryWriter(run.folder, purge_step=state["epoch"] * steps)
    print(
        f"{run.folder}: a generator of {sum(p.numel() for p in generator.parameters()):,} parameters on {device.type}"
    )

    # ---- training ----
    latents = None
    with (
        Interrupt() as interrupt,
        tqdm(total=settings.epochs, initial=state["epoch"], desc="epochs", unit="epoch") as bar,
    ):
        while state["epoch"] < settings.epochs:
            epoch, skip, history = state["epoch"], state["step"], state["history"]
            is_first = epoch < first_epochs
            if not is_first and latents is None:
                latents = encode(generator, material.images)
            done_before = (epoch if is_first else epoch - first_epochs) * steps
            total = (first_epochs if is_first else settings.epochs - first_epochs) * steps
            generator.train()
            started = time.perf_counter()
            for step, rows in tqdm(
                batches(len(material.images), batch_size, settings.seed, epoch, skip, device), total=steps,
                initial=skip, desc=f"epoch {epoch + 1}", leave=False, disable=None,
            ):  # fmt: skip
                factor = warmup_cosine(done_before + step, total, round(WARMUP * total))
                if is_first:
                    loss = generator.autoencoder.loss(material.images[rows, None].float() / 255)
                    values = [loss, torch.zeros_like(loss), torch.zeros_like(loss)]
                else:
                    loss, values = flow_losses(generator, clip, material, latents, rows)
                max_norm = AUTOENCODER_GRAD_CLIP if is_first else FLOW_GRAD_CLIP
                grad_norm = update(optimizers[not is_first], loss, factor * settings.lr, max_norm)
                if not is_first:
                    ema.update()
                history[step] = torch.stack([value.detach() for value in [*values, grad_norm]])
                if interrupt.requested:
                    break
            run.stop_if_not_finite(history[skip : step + 1], COLUMNS, skip)
            state["seconds"] += time.perf_counter() - started
            if step + 1 < steps:  # Ctrl-C: keep this very step, so that --resume goes on after it
                state["step"] = step + 1
                run.save()
                break

            # ---- the end of an epoch: draw, measure on validation, save ----
            record = {"epoch": epoch + 1, **dict(zip(COLUMNS, history.mean(dim=0).tolist(), strict=True))}
            if is_first:
                sheet = reconstructions(generator, val.images)
            else:
                sheet, agreement = check(ema.model, clip, val)
                record["val_agreement"] = state["best"] = agreement
                # The last epoch is kept: a flow has no overfitting to stop in so few epochs.
                ema.model.metrics = {"epoch": epoch + 1, "val_agreement": agreement}
                ema.model.save(run.folder / "best_model.pth")
            for name, value in record.items():
                log.add_scalar(f"epoch/{name}", value, (epoch + 1) * steps - 1)
            log.add_image("samples" if not is_first else "reconstructions", sheet, (epoch + 1) * steps - 1)
            log.flush()
            state |= {"epoch": epoch + 1, "step": 0, "epochs": [*state["epochs"], record]}
            run.save()
            bar.set_postfix({name: f"{value:.3f}" for name, value in record.items() if value and name != "epoch"})
            bar.update()
            if interrupt.requested:
                break

    log.close()
    if state["epoch"] < settings.epochs:
        print(f"\nstopped at epoch {state['epoch'] + 1}; everything is saved")
        print(f"go on with: python -m training.generator --resume {run.folder}")
        return 130
    return finish(run, clip, device)


def finish(run: Run, clip: CLIP, device: torch.device) -> int:
    """The run counts as finished; its generator is handed on."""
    best = Generator.load(run.folder / "best_model.pth", clip)
    best.metrics |= {"run": run.folder.name, "train_seconds": round(run.state["seconds"], 1)}
    best.metrics |= {"device": device_name(device), "commit": run.state["commit"]}
    best.save(run.folder / "best_model.pth")
    note = run.publish("val_agreement")
    run.write_json("metrics.json", best.metrics | {"epochs": run.state["epochs"]})
    print(f"\ndrawn as asked on validation, by the model's own eye: {best.metrics['val_agreement']:.1%}")
    print(f"{best.metrics['train_seconds']:.0f} s of training; saved to {run.folder.parent / 'best_model.pth'}")
    print(note + "\n" * bool(note) + 'draw:    python generate.py "a thick seven leaning left"')
    return 0


@torch.no_grad()
def read_all(clip: CLIP) -> Tensor:
    """The vectors of all sentences that captions are drawn from: [sentences, embed_dim]."""
    sentences = list(clip.captions.sentences)
    return torch.cat([clip.encode_text(sentences[i : i + 500]) for i in range(0, len(sentences), 500)])


@torch.no_grad()
def look_at(clip: CLIP, split: Split, text_embeds: Tensor) -> Material:
    """What the CLIP makes of a split; where captions describe, images of its unseen cells are left out."""
    look = measure(split.images)
    if clip.captions.described:
        keep = ~clip.unseen.flatten().to(split.labels.device)[facts_of(split.labels, *look)[1]]
        split, look = Split(split.images[keep], split.labels[keep]), tuple(x[keep] for x in look)
    return Material(*split, *look, embed_images(clip, split.images), text_embeds)


def draw_texts(clip: CLIP, material: Material, rows: Tensor) -> tuple[Tensor, Tensor]:
    """For each of these images a caption that is true of it: text vectors [B, embed_dim] and claims int32 [B]."""
    digits = material.digits[rows]
    things = things_of(digits, material.thickness[rows], material.slant[rows]) if clip.captions.described else digits
    texts, claims = clip.captions.draw(things)
    return material.text_embeds[texts.index], claims


def flow_losses(generator: Generator, clip: CLIP, material: Material, latents: Tensor, rows: Tensor):
    """The sum of both flows' losses, and each part's."""
    images, (texts, _) = material.image_embeds[rows], draw_texts(clip, material, rows)
    decoder, prior = generator.decoder_loss(latents[rows], images), generator.prior_loss(images, texts)
    return decoder + prior, [torch.zeros_like(decoder), decoder, prior]


@torch.no_grad()
def encode(generator: Generator, images: Tensor) -> Tensor:
    """Images uint8 [N, 28, 28] -> latents [N, latent_dim], in eval mode."""
    generator.eval()
    return torch.cat([generator.autoencoder.encode(part[:, None].float() / 255) for part in images.split(1_000)])


@torch.no_grad()
def reconstructions(generator: Generator, images: Tensor) -> Tensor:
    """Images above what the autoencoder makes of them, as one picture [1, H, W]."""
    generator.eval()
    some = images[:20, None].float() / 255
    return as_sheet(torch.cat([some, generator.autoencoder.decode(generator.autoencoder.encode(some))]), 20)


@torch.no_grad()
def check(generator: Generator, clip: CLIP, val: Material) -> tuple[Tensor, float]:
    """A sheet of samples [1, H, W], a row for each digit; and how many of CHECKED validation captions are drawn right.

    The noise and the captions are the same after each epoch.
    """
    generator.eval()
    device = val.images.device
    noise = torch.Generator(device).manual_seed(0)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        texts, claims = draw_texts(clip, val, torch.arange(CHECKED, device=device))
    agreement = share_as_asked(drawn_facts(generator.draw(texts, noise), by_caption(clip)), claims)
    digits = clip.captions.of_digits().to(device) * clip.captions.phrasings  # [10], each one's first phrasing
    return as_sheet(generator.draw(val.text_embeds[digits.repeat_interleave(SHOWN_EACH)], noise), SHOWN_EACH), agreement


def as_sheet(images: Tensor, columns: int) -> Tensor:
    """Images [N, 1, 28, 28] -> one picture [1, H, W], row by row."""
    rows = images.view(-1, columns, 28, 28)  # [rows, columns, 28, 28]
    return rows.permute(0, 2, 1, 3).reshape(1, -1, columns * 28).cpu()


if __name__ == "__main__":
    saved = "what was finished is saved, and --resume goes on from there"
    with exit_on_input_error(saved, disk="free it, then --resume goes on from there"):
        sys.exit(main(*FLAGS))
