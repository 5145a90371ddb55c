"""The one training step: forward, loss, backward (plain or in chunks), clipping, optimizers, moving average.

A contrastive batch that does not fit is taken in chunks by GradCache (Gao et al., 2021, arXiv 2101.06983). The loss
compares all images of the batch with all texts, so that plain gradient accumulation would change it. Here the images
are embedded in chunks without a graph, the loss is differentiated with respect to the embeddings, and then each
chunk is embedded once more, with a graph, and takes its embeddings' gradient back into the weights. That is one more
forward pass, and the memory of one chunk beside the batch's images.
"""

import torch
from torch import Tensor

from captions import Labels, Part
from clip import CLIP
from losses import contrastive_loss, infonce, min_loss, multi_positive
from my_dataset import Batch
from training import distributed
from training.ema import Ema

GRAD_CLIP = 5.0  # largest norm of the gradient


class TrainingStep:
    """`step(batch, lr_factor)` trains `model` by one batch and returns its metrics, scalars on the device.

    They are loss, kl (loss minus minimum; of other losses than multi_positive the loss), grad_norm and temperature.
    `optimizers` have a "peak_lr" in each group, which `lr_factor` scales. `bf16` runs the towers in it.
    `chunk_size` images go through the CNN at a time; None: the whole batch. `ema` follows the weights. `part_weight`
    is the share of `part_loss` in the loss; the rest is the contrastive loss.
    """

    def __init__(
        self,
        model: CLIP,
        optimizers: list[torch.optim.Optimizer],
        *,
        bf16: bool = False,
        chunk_size: int | None = None,
        ema: Ema | None = None,
        part_weight: float = 0.0,
    ):
        self.model, self.optimizers, self.ema = model, optimizers, ema
        self.net = distributed.wrap(model)  # what embeds: the model, or DDP around it
        self.bf16, self.chunk_size = bf16, chunk_size
        self.part_weight = part_weight if len(model.captions.parts) > 1 else 0.0  # digits have one, scenes none
        self.parts = [Part(*(x.to(model.logit_scale.device) for x in part)) for part in model.captions.parts]

    def __call__(self, batch: Batch, lr_factor: float = 1.0) -> dict[str, Tensor]:
        self.model.zero_grad()
        loss, kl = self.gradcache(batch) if self.chunk_size else self.forward_backward(batch)
        grad_norm = update(self.optimizers, lr_factor, GRAD_CLIP)
        self.model.clamp_logit_scale()
        if self.ema:
            self.ema.update()
        temperature = 1 / self.model.logit_scale.detach().exp()
        return {"loss": loss, "kl": kl, "grad_norm": grad_norm, "temperature": temperature}

    def autocast(self):
        # (In chunks the CNN runs twice, and the second time must not reuse the first one's casts.)
        device = self.model.logit_scale.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.bf16, cache_enabled=not self.chunk_size)

    def forward_backward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        with self.autocast():
            output = self.net(batch.images, batch.texts)
        labels = batch.labels
        if distributed.world_size() > 1:  # each process has embedded its share; the loss compares the whole batch
            labels = Labels(*(distributed.gather(part) for part in labels))
            shares = (output.image_embeds, output.text_embeds)
            output = self.model.compare(*(distributed.gather(share) for share in shares))
        positive, ignored = labels.match()  # [B, B]
        loss = contrastive_loss(self.model.loss_function, output.logits_per_image, positive, ignored)
        minimum = sum(min_loss(self.model.loss_function, matrix).mean() for matrix in (positive, positive.T)) / 2
        if self.part_weight:
            part_loss = self.part_loss(output.image_embeds, self.embed_parts(), labels).mean()
            loss, minimum = torch.lerp(loss, part_loss, self.part_weight), (1 - self.part_weight) * minimum
        loss.backward()
        return loss.detach(), loss.detach() - minimum

    def embed_parts(self) -> Tensor:
        """A caption for each alternative of each part -> unit vectors [all alternatives, embed_dim]."""
        ids = torch.cat([part.ids for part in self.parts])
        with self.autocast():
            return self.model.encode_text(self.model.captions.sample(ids))

    def part_loss(self, image_embeds: Tensor, part_embeds: Tensor, labels: Labels) -> Tensor:
        """For each image, the mean over parts of the cross-entropy of the alternative that it shows: [B].

        In a batch, captions mostly differ in several parts at once. Here those that differ in one part alone compete.
        An image that shows no alternative, an outlier, adds nothing.
        """
        logits = self.model.part_logits(image_embeds, part_embeds)  # [B, all alternatives]
        by_part = logits.split([len(part.ids) for part in self.parts], dim=1)
        losses = [
            multi_positive(x, *part.shown_by(labels), own=None) for x, part in zip(by_part, self.parts, strict=True)
        ]  # [B] each
        return torch.stack(losses).mean(dim=0)

    def gradcache(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Equal to `forward_backward` with the same random draws, up to rounding, if the image tower treats each image
        by itself. Batch norm in training does not: its statistics are those of a chunk, and its running ones move twice
        in a step."""
        model, labels = self.model, batch.labels
        chunks = batch.images.split(self.chunk_size)
        with self.autocast():
            with torch.no_grad():
                images = torch.cat([model.encode_image(chunk) for chunk in chunks])  # [B, embed_dim]
            text_embeds = model.encode_text(batch.texts)  # [B, embed_dim]; texts are cheap, so it keeps its graph
            if self.part_weight:
                text_embeds = torch.cat([text_embeds, self.embed_parts()])
        images.requires_grad_()
        all_texts = text_embeds.detach().requires_grad_()
        texts, part_embeds = all_texts[: len(images)], all_texts[len(images) :]

        # Blocks of rows of the [B, B] logits, in both directions. A block has about chunk_size^2 logits, but at least
        # 32 rows, because each block also adds to the gradients of all B embeddings.
        size, loss, minimum = len(images), 0.0, 0.0
        for rows in torch.arange(size, device=images.device).split(max(32, self.chunk_size**2 // size)):
            sides = (
                (model.compare(images[rows], texts).logits_per_image, *labels.match(images=rows)),
                (model.compare(images, texts[rows]).logits_per_text, *(x.T for x in labels.match(texts=rows))),
            )  # [R, B] each
            block_loss = sum(model.loss_function(*side, rows).sum() for side in sides) / (2 * size)
            least = sum(min_loss(model.loss_function, side[1]).sum() for side in sides) / (2 * size)
            if self.part_weight:
                row_labels = Labels(labels.facts[rows], labels.claims, labels.unknown[rows])
                part_loss = self.part_loss(images[rows], part_embeds, row_labels).sum() / size
                block_loss, least = torch.lerp(block_loss, part_loss, self.part_weight), (1 - self.part_weight) * least
            block_loss.backward()
            loss, minimum = loss + block_loss.detach(), minimum + least

        # Backward stands outside of autocast, as in a plain step: what ran in float32 forwards does so backwards.
        for chunk, gradient in zip(chunks, images.grad.split(self.chunk_size), strict=True):
            with self.autocast():
                embeds = model.encode_image(chunk)
            embeds.backward(gradient)
        text_embeds.backward(all_texts.grad)
        return loss, loss - minimum

    @torch.no_grad()
    def loss_range(self, batch: Batch) -> tuple[float, float]:
        """The loss of a whole batch if all cosines are 0, and its minimum. By 256 rows, for all of them may not fit."""
        labels, texts, loss = batch.labels, batch.texts.index, self.model.loss_function
        rows = torch.arange(len(texts), device=texts.device)[:256]
        sides = labels.match(images=rows), [matrix.T for matrix in labels.match(texts=rows)]  # [R, B] each
        zeros = torch.zeros(len(texts), self.model.arch["embed_dim"], device=texts.device)
        logits = self.model.compare(zeros[rows], zeros).logits_per_image  # [R, B]
        chance = sum(loss(logits, *side, rows).mean() for side in sides) / 2
        if loss is infonce:  # it cannot tell apart the images of n equal texts, which costs ln n
            loss, sides = multi_positive, [[texts[rows, None] == texts]]
        minimum = sum(min_loss(loss, side[0]).mean() for side in sides) / len(sides)
        if self.part_weight:
            part_loss = self.part_loss(zeros[rows], self.embed_parts(), Labels(*(x[rows] for x in labels))).mean()
            chance, minimum = torch.lerp(chance, part_loss, self.part_weight), (1 - self.part_weight) * minimum
        return chance.item(), minimum.item()


def update(optimizers: list[torch.optim.Optimizer], lr_factor: float, max_norm: float) -> Tensor:
    """Clip the gradients to this norm and step: learning rates are `lr_factor` times their peak. Returns the norm."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for group in groups:
        group["lr"] = group["peak_lr"] * lr_factor
    norm = torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], max_norm)
    for optimizer in optimizers:
        optimizer.step()
    return norm
