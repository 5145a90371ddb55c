"""What a run shows in TensorBoard beside its curves: similarities, settings beside results, the embedding projector."""

from dataclasses import asdict

import torch
from torch.utils.tensorboard.summary import hparams

from captions import DIGIT_WORDS
from clip import CLIP
from evaluation.metrics import embed_images
from evaluation.similarity import similarity_matrix
from my_dataset import Split
from training.run import Run
from training.settings import NOT_RECORDED

PICTURE_EVERY = 5  # epochs between two similarity pictures
PROJECTOR_IMAGES = 1000  # validation images in the embedding projector
# These stand first in the table of hyperparameters, with their results beside them.
HPARAMS_FIRST = ("loss", "epochs", "seed", "batch_size", "image_encoder", "width", "text_encoder", "lr", "muon_lr")
RESULTS = [f"{split}_{name}_accuracy" for name in ("digit", "seen", "unseen") for split in ("val", "test")]


def log_similarity(run: Run, model: CLIP, split: Split) -> None:
    """Every few epochs, the first image of each digit against the ten captions."""
    if not run.is_main or (run.epoch % PICTURE_EVERY and run.epoch < run.settings.epochs):
        return
    index = torch.stack([(split.labels == digit).nonzero()[0, 0] for digit in range(10)])
    similarity = embed_images(model, split.images[index]) @ model.zero_shot_classifier().T
    names = [f"{i} ({digit})" for digit, i in enumerate(index.tolist())]
    title = "validation images against captions"
    figure = similarity_matrix(similarity.cpu(), DIGIT_WORDS, names, title, split.images[index].cpu())
    run.writer.add_figure("similarity", figure, run.step - 1)


def log_end(run: Run, model: CLIP, split: Split) -> None:
    """The settings beside the results, and images and captions in one space, each with its picture."""
    record = {name: value for name, value in asdict(run.settings).items() if name not in NOT_RECORDED}
    shown = [*HPARAMS_FIRST, *(name for name in record if name not in HPARAMS_FIRST)]
    values = {name: "the batch" if record[name] is None else record[name] for name in shown}
    results = {f"final/{name}": model.metrics[name] for name in RESULTS if name in model.metrics}
    for summary in hparams(values, results):
        run.writer.file_writer.add_summary(summary)
    for name, value in results.items():
        run.writer.add_scalar(name, value, run.step)  # (dropped if the run is resumed after this)
    images, labels = split.images[:PROJECTOR_IMAGES], split.labels[:PROJECTOR_IMAGES]
    run.writer.add_embedding(
        torch.cat([embed_images(model, images), model.zero_shot_classifier()]),
        metadata=[str(label) for label in labels.tolist()] + [f"caption {word}" for word in DIGIT_WORDS],
        label_img=torch.cat([images, images.new_full((10, 28, 28), 255)])[:, None].float() / 255,  # captions are white
        tag="images and captions",
    )
