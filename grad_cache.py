"""A contrastive batch that does not fit: GradCache (Gao et al., 2021, arXiv 2101.06983).

The loss compares all images of the batch with all texts, so that plain gradient accumulation would change it. Here the
images are embedded in chunks without a graph, the loss is differentiated with respect to the embeddings alone, and
then each chunk is embedded once more, with a graph, and takes its embeddings' gradient back into the weights. That is
one more forward pass, and the memory of one chunk beside the batch's images.
"""

import contextlib

import torch
from torch import Tensor, nn

from clip import CLIP
from losses import row_loss


def cached_backward(model: CLIP, images: Tensor, labels: Tensor, loss_name: str, chunk_size: int) -> Tensor:
    """Images [B, 1, 28, 28], labels [B] -> the loss over the whole batch; adds its gradient to the parameters'.

    Equal to `LOSSES[loss_name](model(images, labels)[0], labels).backward()`, up to rounding, where the image tower
    treats each image by itself. Batch norm in training does not: its statistics are those of a chunk.
    """
    with torch.no_grad(), statistics_untouched(model):
        image_leaf = torch.cat([model.encode_image(chunk) for chunk in images.split(chunk_size)])  # [B, embed_dim]
    text_features = model.encode_text(labels)  # [B, embed_dim]; its distinct texts are few, so it keeps its graph
    text_leaf = text_features.detach().requires_grad_()
    image_leaf.requires_grad_()

    # A strip of the [B, B] logits at a time, in both directions; with as many logits as a batch of chunk_size has, but
    # no thinner than 32 rows, for each strip also moves all B embeddings' gradients.
    loss = torch.zeros((), device=labels.device)
    strip = max(min(chunk_size, 32), chunk_size**2 // len(labels))
    for rows in torch.arange(len(labels), device=labels.device).split(strip):
        per_image = model.logits(image_leaf[rows], text_leaf)[0]  # [strip, B]
        part = row_loss(loss_name, per_image, rows, labels)
        if loss_name != "sigmoid":  # one sum over all pairs; the others have two halves
            per_text = model.logits(text_leaf[rows], image_leaf)[0]  # [strip, B]: the cosines are symmetric
            part = (part + row_loss(loss_name, per_text, rows, labels)) / 2
        part = part / len(labels)
        backward(part)
        loss += part.detach()

    for chunk, gradient in zip(images.split(chunk_size), image_leaf.grad.split(chunk_size), strict=True):
        backward(model.encode_image(chunk), gradient)
    backward(text_features, text_leaf.grad)
    return loss


def backward(x: Tensor, gradient: Tensor | None = None) -> None:
    """Outside of autocast, as in a plain step: what ran in float32 forwards does so backwards."""
    with torch.autocast(x.device.type, enabled=False):
        x.backward(gradient)


@contextlib.contextmanager
def statistics_untouched(model: nn.Module):
    """Batch norm uses each batch's statistics, as in training, but leaves its running ones for the second pass."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.track_running_stats = not norm.training  # in eval mode the running ones are what is used
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
