"""TensorBoard: curves, the similarity picture, the settings beside the results, and the embedding projector."""

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from captions import DIGIT_WORDS
from clip import CLIP
from evaluation.metrics import digit_classifier, embed_images
from my_dataset import Split
from training.optimizers import warmup_cosine
from training.settings import WHERE, Settings
from training.step import COLUMNS

EVERY = 10  # steps between two points of a curve
# Columns of a run's history: a step's, and second the excess loss, which is measured at these points alone.
CURVES = (COLUMNS[0], "excess_loss", *COLUMNS[1:])
PICTURE_EVERY = 5  # epochs between two similarity pictures
PROJECTOR_IMAGES = 1000  # validation images in the embedding projector
FIRST = (
    "loss",
    "epochs",
    "seed",
    "batch_size",
    "image_encoder",
    "width",
    "text_encoder",
    "lr",
    "muon_lr",
)  # in HParams
# Beside them; of seen and unseen cells with described captions alone.
RESULTS = [f"{split}_{cells}_accuracy" for cells in ("digit", "seen", "unseen") for split in ("val", "test")]


class Log(SummaryWriter):
    """The events of one run. x counts training steps throughout."""

    def epoch(self, history: Tensor, record: dict, settings: Settings, warmup: int) -> None:
        """An epoch's steps, history [steps, columns], and its record of means."""
        steps = len(history)
        first, total = (record["epoch"] - 1) * steps, settings.epochs * steps
        for step in range(0, steps, EVERY):
            for name, value in zip(CURVES, history[step].tolist(), strict=True):
                self.add_scalar(f"step/{name}", value, first + step)
            self.add_scalar("step/lr", settings.lr * warmup_cosine(first + step, total, warmup), first + step)
        for name, value in record.items():
            if name != "epoch":
                tag = f"validation/{name[4:]}" if name.startswith("val_") else f"epoch/{name}"
                self.add_scalar(tag, value, first + steps - 1)
        self.flush()

    def similarity(self, model: CLIP, split: Split, step: int) -> None:
        """The first image of each digit against the ten captions."""
        from evaluation.pictures import similarity_matrix  # matplotlib, which a refused or resumed run does not need

        index = torch.stack([(split.labels == digit).nonzero()[0, 0] for digit in range(10)])
        similarity = embed_images(model, split.images[index]) @ digit_classifier(model).T
        names = [f"{i} ({digit})" for digit, i in enumerate(index.tolist())]
        title = "validation images against captions"
        figure = similarity_matrix(similarity.cpu(), DIGIT_WORDS, names, title, split.images[index].cpu())
        self.add_figure("similarity", figure, step)

    def end(self, best: CLIP, split: Split, settings: Settings, step: int) -> None:
        """The settings beside the results, and images and captions in one space, each with its picture."""
        from evaluation.pictures import word_images

        record = settings.record()
        shown = [*FIRST, *(name for name in record if name not in FIRST)]  # HParams lists them in this order
        values = {name: "the batch" if record[name] is None else record[name] for name in shown if name not in WHERE}
        results = {f"final/{name}": best.metrics[name] for name in RESULTS if name in best.metrics}
        for summary in hparams(values, results):
            self.file_writer.add_summary(summary)
        for name, value in results.items():
            self.add_scalar(name, value, step)
        images, labels = split.images[:PROJECTOR_IMAGES], split.labels[:PROJECTOR_IMAGES]
        self.add_embedding(
            torch.cat([embed_images(best, images), digit_classifier(best)]),
            metadata=[str(label) for label in labels.tolist()] + [f"caption {word}" for word in DIGIT_WORDS],
            label_img=torch.cat([images, word_images(DIGIT_WORDS).to(images.device)])[:, None].float() / 255,
            tag="images and captions",
        )
