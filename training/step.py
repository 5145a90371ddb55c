"""The one training step: forward, loss, backward (plain or in chunks), clipping, optimizers, moving average.

A contrastive batch that does not fit is taken in chunks by GradCache (Gao et al., 2021, arXiv 2101.06983). The loss
compares all images of the batch with all texts, so that plain gradient accumulation would change it. Here the images
are embedded in chunks without a graph, the loss is differentiated with respect to the embeddings alone, and then each
chunk is embedded once more, with a graph, and takes its embeddings' gradient back into the weights. That is one more
forward pass, and the memory of one chunk beside the batch's images.
"""

import contextlib

import torch
from torch import Tensor, nn

from captions import Texts, Truth
from clip import CLIP
from my_dataset import Batch
from training import distributed
from training.ema import Ema

GRAD_CLIP = 5.0  # largest norm of the gradient
COLUMNS = ("loss", "grad_norm", "temperature")  # what a step returns


class TrainingStep:
    """`step(batch, lr_factor)` trains `model` by one batch and returns `COLUMNS`, a tensor [3] on its device.

    `optimizers` have a "peak_lr" in each group, which the step's `lr_factor` scales. `bf16` runs the towers in it.
    `chunk_size` images go through the CNN at a time; None: the whole batch. `ema` follows the weights.
    After a step `truth` is that of the whole batch, also where several processes share it.
    """

    def __init__(
        self,
        model: CLIP,
        optimizers: list[torch.optim.Optimizer],
        *,
        bf16: bool = False,
        chunk_size: int | None = None,
        ema: Ema | None = None,
    ):
        self.model, self.optimizers, self.ema = model, optimizers, ema
        self.net = distributed.wrap(model)  # what embeds: the model, or DDP around it
        self.bf16, self.chunk_size = bf16, chunk_size
        is_shared = model.captions.one_each and model.loss_function.of_shared and distributed.world_size() == 1
        self._loss = self._cached if chunk_size else self._shared if is_shared else self._plain

    def __call__(self, batch: Batch, lr_factor: float = 1.0) -> Tensor:
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = group["peak_lr"] * lr_factor
        self.model.zero_grad()
        self.truth = whole_truth(batch)
        loss = self._loss(batch)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), GRAD_CLIP)
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.clamp_logit_scale()
        if self.ema:
            self.ema.update()
        # Not read here: that would make the CPU wait for the GPU.
        return torch.stack([loss.detach(), grad_norm, 1 / self.model.logit_scale.detach().exp()])

    def excess(self, loss: Tensor) -> Tensor:
        """What the loss of the latest step has above the lowest value that it could have on its batch, in nats."""
        return loss - self.model.loss_function.floor(self.truth)

    def _autocast(self):
        # (In chunks the CNN runs twice, and the second time must not reuse the first one's casts.)
        device = self.model.logit_scale.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.bf16, cache_enabled=not self.chunk_size)

    def _plain(self, batch: Batch) -> Tensor:
        with self._autocast():
            output = self.net(batch.images, batch.texts)
        if distributed.world_size() > 1:  # each process has embedded its share; the loss stands over the whole batch
            shares = (output.image_embeds, output.text_embeds)
            output = self.model.compare(*(distributed.gather(share, batch.size) for share in shares))
        loss = self.model.loss_function(output, self.truth)
        loss.backward()
        return loss

    def _shared(self, batch: Batch) -> Tensor:
        """Equal to `_plain`, up to rounding: the texts are embedded and compared once each, not once for each image."""
        sentences, own = batch.texts
        with self._autocast():
            output = self.net(batch.images, Texts(sentences, torch.arange(len(sentences), device=own.device)))
        loss = self.model.loss_function.of_shared(output.logits_per_image, own)
        loss.backward()
        return loss

    def _cached(self, batch: Batch) -> Tensor:
        """Equal to `_plain`, up to rounding, where the image tower treats each image by itself. Batch norm in training
        does not: its statistics are those of a chunk."""
        model = self.model
        chunks = batch.images.split(self.chunk_size)
        with self._autocast():
            with torch.no_grad(), statistics_untouched(model):
                images = torch.cat([model.encode_image(chunk) for chunk in chunks])  # [B, embed_dim]
            text_embeds = model.encode_text(batch.texts)  # [B, embed_dim]; texts are cheap, so it keeps its graph
        images.requires_grad_()
        texts = text_embeds.detach().requires_grad_()

        # A strip of the [B, B] logits at a time, in both directions; with as many logits as a batch of chunk_size has,
        # but no thinner than 32 rows, for each strip also moves all B embeddings' gradients.
        loss = torch.zeros((), device=images.device)
        height = max(min(self.chunk_size, 32), self.chunk_size**2 // len(images))
        for rows in torch.arange(len(images), device=images.device).split(height):
            per_image = (model.compare(images[rows], texts).logits_per_image, images[rows], texts)
            per_text = per_image
            if model.loss_function.both_directions:
                per_text = (model.compare(images, texts[rows]).logits_per_text, texts[rows], images)
            part = model.loss_function.of_strip(rows, self.truth, per_image, per_text)
            part.backward()
            loss += part.detach()

        # Backward stands outside of autocast, as in a plain step: what ran in float32 forwards does so backwards.
        for chunk, gradient in zip(chunks, images.grad.split(self.chunk_size), strict=True):
            with self._autocast():
                embeds = model.encode_image(chunk)
            embeds.backward(gradient)
        text_embeds.backward(texts.grad)
        return loss


def whole_truth(batch: Batch) -> Truth:
    """What is true of the whole batch, of which each of several processes has a share."""
    if distributed.world_size() == 1:
        return batch.truth
    parts = torch.stack([part for part in batch.truth if part is not None], dim=1)
    return Truth(*distributed.gather(parts, batch.size).unbind(dim=1))


@contextlib.contextmanager
def statistics_untouched(model: nn.Module):
    """Batch norm uses each batch's statistics, as in training, but leaves its running ones for the second pass."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.track_running_stats = not norm.training  # in eval mode the running ones are what is used
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def update(optimizer: torch.optim.Optimizer, loss: Tensor, lr: float, max_norm: float) -> Tensor:
    """A step for a loss without a contrastive batch, as the generator's: one optimizer -> the gradient's norm."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], max_norm)
    optimizer.step()
    return norm
