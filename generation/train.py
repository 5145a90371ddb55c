"""Train a generator (generation/model.py) on a trained CLIP, which stays unchanged.

    make generator                                   on runs/best_model.pth; minutes on 2 CPU cores
    make generator ARGS="--resume"                   resume the latest unfinished run

The first third of the epochs trains the autoencoder, the others train the two flows. Images of combinations that the
CLIP never saw are left out here too. Writes runs/generator/<run>/ as train.py does and, when the run has finished,
runs/generator/best_model.pth.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # `python generation/train.py` works too, from any folder

import torch
from torch import Tensor
from torchvision.utils import make_grid

from clip import CLIP
from evaluation.metrics import embed
from generation.features import Cached, judge, precompute, sample_captions
from generation.model import Generator
from my_dataset import batch_indices, load_mnist
from my_utils import device_name, exit_on_error, pick_device
from training import distributed
from training.ema import Ema
from training.optim import warmup_cosine
from training.run import Run
from training.settings import OnClipSettings, option, parse_flags
from training.step import update

AUTOENCODER_GRAD_CLIP, FLOW_GRAD_CLIP = 100.0, 1.0  # largest norm of the gradient
N_VALIDATED = 1_000  # captions of validation images, from which images are generated after each epoch


@dataclass
class GeneratorSettings(OnClipSettings):
    epochs: int = option(40, "passes over the images; the first third trains the autoencoder", low=3, high=10_000)
    batch_size: int = option(256, "images per step", low=2, high=30_000)
    lr: float = option(2e-3, "peak learning rate of AdamW", low=1e-9, high=100)
    ema_decay: float = option(0.999, "moving average of the flows' weights, per step", low=0, high=0.99999)
    runs_dir: str = option("runs/generator", "folder that gets a folder for this run")


def main(argv: list[str]) -> None:
    distributed.refuse("generation/train.py")
    settings, overrides = parse_flags(GeneratorSettings, argv, "python -m generation.train", "Train a generator.")
    with Run.open(settings, overrides, label="generator", program=[os.path.relpath(__file__)]) as run:
        train(run, run.settings)


def train(run: Run, settings: GeneratorSettings) -> None:
    # ---- the CLIP, and what it makes of the data ----
    device = pick_device(settings.device)
    clip = CLIP.load(settings.clip, device, settings.text_model).requires_grad_(False)
    clip.require_digits()
    data, val = (precompute(clip, load_mnist(split, settings.data_path, device)) for split in ("train", "val"))
    texts = clip.prompt_ensemble(clip.captions.sentences, paraphrases=1)  # [sentences, embed_dim]
    size = len(data.images)
    steps = size // settings.batch_size  # per epoch
    autoencoder_epochs = settings.epochs // 3
    autoencoder_steps = autoencoder_epochs * steps

    # ---- the networks, and AdamW, which leaves those alone that get no gradient ----
    generator = Generator(clip.arch["embed_dim"], clip.fingerprint()).to(device, memory_format=torch.channels_last)
    ema = Ema(generator, settings.ema_decay)
    group = {"params": list(generator.parameters()), "lr": settings.lr, "peak_lr": settings.lr}
    adamw = torch.optim.AdamW([group], weight_decay=0.01, betas=(0.9, 0.99), fused=True)
    run.restore(belongs_to=clip.fingerprint(), generator=generator, ema=ema, adamw=adamw)
    print(f"{run.folder}: {sum(p.numel() for p in generator.parameters()):,} parameters on {device_name(device)}")

    # ---- training: the autoencoder, then the flows between noise and its latents ----
    latents, flow_steps = None, settings.epochs * steps - autoencoder_steps
    for epoch in run.epochs():
        is_autoencoder = epoch < autoencoder_epochs
        if not is_autoencoder and latents is None:
            latents = embed(generator.eval().autoencoder.encode, data.images)  # [N, latent_dim]
        generator.train()
        batches = batch_indices(size, settings.batch_size, settings.seed, epoch, device)
        for rows in run.progress(batches, total=steps):
            generator.zero_grad()
            if is_autoencoder:
                losses = {"autoencoder_loss": generator.autoencoder.loss(data.images[rows])}
                lr_factor, grad_clip = warmup_cosine(run.step, autoencoder_steps), AUTOENCODER_GRAD_CLIP
            else:
                captions = texts[sample_captions(clip, data, rows)[0]]  # [B, embed_dim]
                losses = generator.flow_losses(latents[rows], data.embeds[rows], captions)
                lr_factor, grad_clip = warmup_cosine(run.step - autoencoder_steps, flow_steps), FLOW_GRAD_CLIP
            sum(losses.values()).backward()
            grad_norm = update([adamw], lr_factor, grad_clip)
            if not is_autoencoder:
                ema.update()
            run.log({name: loss.detach() for name, loss in losses.items()} | {"grad_norm": grad_norm})

        if is_autoencoder:
            run.end_epoch({}, generator)
        else:  # the last epoch is kept: a flow does not overfit in so few
            run.end_epoch({"val_agreement": validate(ema.model, clip, val, texts)}, ema.model)
            digits = clip.captions.digit_ids.repeat_interleave(9)  # [90]
            samples = ema.model.sample(clip, clip.embed_descriptions(digits), clip.captions.claims[digits])
            run.writer.add_image("samples", make_grid(samples, nrow=9), run.step - 1)

    # ---- the end ----
    best = Generator.load(run.folder / "best_model.pth", clip)
    best.metrics |= run.origin(device)
    best.save(run.folder / "best_model.pth")
    note = run.publish("generator", "val_agreement")
    run.finish(best.metrics)
    print(f"\nagreement with validation captions, by the CLIP itself: {best.metrics['val_agreement']:.1%}")
    print(f"{run.seconds:.0f} s of training; saved to {run.published}" + (f"\nnote: {note}" if note else ""))


@torch.no_grad()
def validate(generator: Generator, clip: CLIP, val: Cached, texts: Tensor) -> float:
    """The share of captions with which generated images agree, one drawing of each and no choice."""
    generator.eval()
    torch.manual_seed(0)  # the same captions and noise after each epoch; the next epoch seeds anew
    places, ids = sample_captions(clip, val, torch.arange(N_VALIDATED, device=texts.device))
    claims = clip.captions.claims.to(ids.device)[ids]  # [B, S]
    return judge(clip, generator.sample(clip, texts[places], claims, best_of=1), claims).float().mean().item()


if __name__ == "__main__":
    with exit_on_error(memory="start a new run with a lower --batch-size"):
        main(sys.argv[1:])
