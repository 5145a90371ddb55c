"""What a run shows in TensorBoard beside its curves: similarities, and settings beside results."""

from dataclasses import asdict

import torch

from captions import DIGIT_WORDS
from clip import CLIP
from evaluation.metrics import embed_images
from evaluation.scene_pictures import five_captions
from evaluation.similarity import similarity_matrix
from my_dataset import Split
from training.run import Run
from training.settings import NOT_RECORDED

PICTURE_EVERY = 5  # epochs between two similarity pictures
RESULTS = [f"{split}_{name}_accuracy" for name in ("digit", "seen", "unseen") for split in ("val", "test")]


def log_similarity(run: Run, model: CLIP, split: Split) -> None:
    """Every few epochs, the first image of each digit against the ten captions, or scenes against five each."""
    if (
        not run.is_main
        or model.captions.kind == "own"
        or (run.epoch % PICTURE_EVERY and run.epoch < run.settings.epochs)
    ):
        return
    if model.captions.kind == "scenes":
        run.writer.add_figure("captions", five_captions(model, split), run.step - 1)
        return
    index = torch.stack([(split.labels == digit).nonzero()[0, 0] for digit in range(10)])
    similarity = embed_images(model, split.images[index]) @ model.zero_shot_classifier().T
    names = [f"{i} ({digit})" for digit, i in enumerate(index.tolist())]
    title = "validation images against captions"
    figure = similarity_matrix(similarity.cpu(), DIGIT_WORDS, names, title, split.images[index].cpu())
    run.writer.add_figure("similarity", figure, run.step - 1)


def log_end(run: Run, model: CLIP) -> None:
    """The settings beside the results."""
    record = {name: value for name, value in asdict(run.settings).items() if name not in NOT_RECORDED}
    record["chunk_size"] = record["chunk_size"] or "the batch"
    results = {f"final/{name}": model.metrics[name] for name in RESULTS if name in model.metrics}
    run.writer.add_hparams(record, results, run_name=".", global_step=run.step)
