"""Whether a drawn image is what was asked for."""

from collections.abc import Callable

from torch import Tensor

from attributes import measure
from captions import facts_of, holds
from clip import CLIP
from evaluation.metrics import digit_classifier, embed_images

Judge = Callable[[Tensor], Tensor]  # images [B, 1, 28, 28] -> the digits in them, int64 [B]


def by_caption(clip: CLIP) -> Judge:
    """The CLIP itself as the judge: the nearest of ten captions."""
    captions = digit_classifier(clip)
    return lambda images: (embed_images(clip, images) @ captions.T).argmax(dim=1)


def drawn_facts(images: Tensor, judge: Judge) -> Tensor:
    """Drawn images [B, 1, 28, 28] -> what is true of them, int32 [B]: digit by the judge, the rest measured."""
    return facts_of(judge(images), *measure(images))[0]


def share_as_asked(facts: Tensor, claims: Tensor) -> float:
    """Share of B drawn images of which all that their captions claim is true, in 0..1."""
    return holds(claims, facts).float().mean().item()
