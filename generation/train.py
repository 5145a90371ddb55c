"""Train a generator (generation/model.py) on a trained CLIP, which stays unchanged.

    make generator                                   on runs/best_model.pth; minutes on 2 CPU cores
    make generator ARGS="--resume"                   resume the latest unfinished run

The first third of the epochs trains the autoencoder, the others train the two flows. Images of combinations that the
CLIP never saw are left out here too. Writes runs/generator/<run>/ as train.py does and, when the run has finished,
runs/generator/best_model.pth.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.utils import make_grid

from clip import CLIP
from evaluation.metrics import embed
from generation.evaluate import agreement, generated_facts, zero_shot_digits
from generation.features import Cached, encode_captions, precompute, sample_captions
from generation.model import Generator
from my_dataset import DATA_PATH, batch_indices, load_mnist
from my_utils import InputError, device_name, exit_on_error, pick_device
from training import distributed
from training.ema import Ema
from training.optim import warmup_cosine
from training.run import Run
from training.settings import option, parse_flags
from training.step import update

AUTOENCODER_GRAD_CLIP, FLOW_GRAD_CLIP = 100.0, 1.0  # largest norm of the gradient
N_VALIDATED = 1_000  # captions of validation images, from which images are generated after each epoch
N_SHOWN = 9  # samples of each digit in TensorBoard


@dataclass
class GeneratorSettings:
    clip: str = option("runs/best_model.pth", "the trained CLIP, which stays unchanged")
    text_model: str | None = option(None, "the folder of its language model, if it moved", type=str)
    epochs: int = option(16, "passes over the images; the first third trains the autoencoder", low=3, high=10_000)
    batch_size: int = option(256, "images per step", low=2, high=60_000)
    lr: float = option(2e-3, "peak learning rate of AdamW", low=0, exclusive_min=True, high=100)
    ema_decay: float = option(0.999, "moving average of the flows' weights, per step", low=0, high=0.99999)
    seed: int = option(0, "seed of weights, order and noise", low=0, high=2**31)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    data_path: str = option(DATA_PATH, "folder of MNIST; downloaded if it is not there")
    runs_dir: str = option("runs/generator", "folder that gets a folder for this run")
    run_name: str | None = option(None, "name of the run's folder; None: time and seed", type=str)
    resume: str | None = option(
        None, "resume an unfinished run, by its name or folder; without a name: the latest", type=str, const="latest"
    )

    def validate(self, overrides: dict) -> None:
        """Raises InputError if the finished generator would replace its CLIP."""
        if (Path(self.runs_dir) / "best_model.pth").resolve() == Path(self.clip).resolve():
            raise InputError(f"the generator would replace the CLIP {self.clip}: choose another --runs-dir")


def main(argv: list[str]) -> None:
    distributed.refuse("generation/train.py")
    settings, overrides = parse_flags(GeneratorSettings, argv, "python -m generation.train", "Train a generator.")
    with Run.open(settings, overrides, label="generator", program=["-m", "generation.train"]) as run:
        train(run, run.settings)


def train(run: Run, settings: GeneratorSettings) -> None:
    # ---- the CLIP, and what it makes of the data ----
    device = pick_device(settings.device)
    clip = CLIP.load(settings.clip, device, settings.text_model).requires_grad_(False)
    if run.saved is not None:
        Generator.load(run.folder / "best_model.pth", clip)  # refuses another CLIP than the run's
    data, val = (precompute(clip, load_mnist(split, settings.data_path, device)) for split in ("train", "val"))
    texts = encode_captions(clip)  # [sentences, embed_dim]
    if settings.batch_size > len(data.images):
        raise InputError(
            f"--batch-size {settings.batch_size} is above the number of images, {len(data.images)}: lower it"
        )
    steps = len(data.images) // settings.batch_size  # per epoch
    autoencoder_epochs = settings.epochs // 3
    autoencoder_steps, flow_steps = autoencoder_epochs * steps, (settings.epochs - autoencoder_epochs) * steps

    # ---- networks and optimizers ----
    generator = Generator(clip.arch["embed_dim"], clip.fingerprint()).to(device, memory_format=torch.channels_last)
    generator.config = vars(settings).copy()
    ema = Ema(generator, settings.ema_decay)
    autoencoder_adamw = adamw(settings.lr, generator.autoencoder)
    flow_adamw = adamw(settings.lr, generator.decoder, generator.prior)
    run.restore(generator=generator, ema=ema, autoencoder_adamw=autoencoder_adamw, flow_adamw=flow_adamw)
    print(f"{run.folder}: {sum(p.numel() for p in generator.parameters()):,} parameters on {device_name(device)}")

    # ---- training: the autoencoder, then the flows between noise and its latents ----
    latents = None
    for epoch in run.epochs():
        is_autoencoder = epoch < autoencoder_epochs
        if not is_autoencoder and latents is None:
            latents = embed(generator.eval().autoencoder.encode, data.images)  # [N, latent_dim]
        generator.train()
        batches = batch_indices(len(data.images), settings.batch_size, settings.seed, epoch, device)
        for rows in run.progress(batches, total=steps):
            generator.zero_grad()
            if is_autoencoder:
                loss = generator.autoencoder.loss(data.images[rows])
                loss.backward()
                lr_factor = warmup_cosine(run.step, autoencoder_steps)
                grad_norm = update([autoencoder_adamw], lr_factor, AUTOENCODER_GRAD_CLIP)
                run.log({"autoencoder_loss": loss.detach(), "grad_norm": grad_norm})
            else:
                captions = texts[sample_captions(clip, data, rows)[0]]  # [B, embed_dim]
                decoder_loss, prior_loss = generator.flow_losses(latents[rows], data.embeds[rows], captions)
                (decoder_loss + prior_loss).backward()
                lr_factor = warmup_cosine(run.step - autoencoder_steps, flow_steps)
                grad_norm = update([flow_adamw], lr_factor, FLOW_GRAD_CLIP)
                ema.update()
                losses = {"decoder_loss": decoder_loss.detach(), "prior_loss": prior_loss.detach()}
                run.log(losses | {"grad_norm": grad_norm})

        if is_autoencoder:
            run.end_epoch({}, generator)
            picture = reconstruct(generator, val.images[:20])
        else:  # the last epoch is kept: a flow does not overfit in so few
            score, picture = validate(ema.model, clip, val, texts)
            run.end_epoch({"val_agreement": score}, ema.model)
        run.writer.add_image("reconstructions" if is_autoencoder else "samples", picture, run.step - 1)

    # ---- the end ----
    best = Generator.load(run.folder / "best_model.pth", clip)
    best.metrics |= {"train_seconds": round(run.seconds, 1), "seed": settings.seed, "run": run.folder.name}
    best.metrics |= {"device": device_name(device), "commit": run.commit}
    best.save(run.folder / "best_model.pth")
    note = run.publish("generator", "val_agreement")
    run.finish(best.metrics)
    print(f"\nagreement with validation captions, by the CLIP itself: {best.metrics['val_agreement']:.1%}")
    print(f"{run.seconds:.0f} s of training; saved to {run.folder.parent / 'best_model.pth'}")
    print(note + "\n" * bool(note) + 'generate:    python generate.py "a thick seven leaning left"')


# ---- helpers ----


def adamw(lr: float, *networks: nn.Module) -> torch.optim.AdamW:
    parameters = [parameter for network in networks for parameter in network.parameters()]
    group = {"params": parameters, "lr": lr, "peak_lr": lr}
    return torch.optim.AdamW([group], weight_decay=0.01, betas=(0.9, 0.99), fused=True)


@torch.no_grad()
def reconstruct(generator: Generator, images: Tensor) -> Tensor:
    """Images [B, 1, 28, 28] above what the autoencoder makes of them, as one picture [3, H, W]."""
    autoencoder = generator.eval().autoencoder
    return make_grid(torch.cat([images, autoencoder.decode(autoencoder.encode(images))]), nrow=len(images))


@torch.no_grad()
def validate(generator: Generator, clip: CLIP, val: Cached, texts: Tensor) -> tuple[float, Tensor]:
    """The share of captions with which generated images agree, and samples of each digit, a picture [3, H, W]."""
    generator.eval()
    torch.manual_seed(0)  # the same captions and noise after each epoch; the next epoch seeds anew
    places, ids = sample_captions(clip, val, torch.arange(N_VALIDATED, device=texts.device))
    facts = generated_facts(generator.sample(texts[places]), zero_shot_digits(clip))  # [B, S]
    score = agreement(facts, clip.captions.claims.to(ids.device)[ids]).float().mean().item()
    of_digits = clip.captions.digit_ids.to(ids.device) * clip.captions.paraphrases  # [10], a sentence for each
    return score, make_grid(generator.sample(texts[of_digits.repeat_interleave(N_SHOWN)]), nrow=N_SHOWN)


if __name__ == "__main__":
    with exit_on_error(memory="start a new run with a lower --batch-size"):
        sys.exit(main(sys.argv[1:]))
