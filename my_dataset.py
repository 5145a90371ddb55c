"""Pairs: batches of images with the texts they go with, drawn and augmented whole on the training device.

`load_mnist` gives a split as two tensors. `MNISTPairs` makes pairs of it: its `epoch` yields batches for training, and
as a torch `Dataset` it gives one pair at a time.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from attributes import measure, unseen_cells
from captions import (
    Captions,
    Texts,
    Truth,
    described_captions,
    facts_of,
    in_words,
    things_of,
    unknown_claims,
)
from data.mnist import provision
from data.not_digits import NoDigits, no_digits
from losses import GROUP
from my_utils import InputError
from training.settings import AUGMENTS, Settings

DATA_PATH = Settings.data_path
VAL_SIZE = 5_000
SPLIT_SEED = 0  # of its own, whatever --seed says: every run selects on the same 5,000 images
NO_DIGITS = 2_000  # images of no digit that an epoch draws from
NO_DIGIT_EVERY = 12  # each twelfth pair of a batch shows no digit
CANDIDATES = 1.15  # images that are measured for each pair of a batch: a fifth of them lies in unseen cells
WARPED_AT_ONCE = 1024  # images: a large batch is augmented in pieces, or its sampling grids would not fit

# The range of each change in augmentation: handwriting slants, leans and varies in size by about this much.
ROTATE = 15.0  # degrees
SHIFT = 2.0  # pixels
SCALE = 0.12  # relative, on a log scale, for width and height apart
SHEAR = 0.15  # horizontal pixels per vertical pixel
BEND, BENDS = 0.7, 4  # pixels, the standard deviation at each of 4 x 4 places; interpolated between them
THICKEN = 0.7  # pixels on each side of a stroke, more or less, in half of the images
CORRUPT = 0.08  # of the images, with each of the corruptions


class Split(NamedTuple):
    """One split of MNIST on one device: images uint8 [N, 28, 28], labels int64 [N] in 0..9."""

    images: Tensor
    labels: Tensor


def load_mnist(split: str, data_path: str | Path = DATA_PATH, device: str | torch.device = "cpu") -> Split:
    """Load "train" (55,000), "val" (5,000, stratified out of the training set) or "test" (10,000).

    Fetches MNIST on first use. Raises InputError for an unknown split or when no source answers.
    """
    if split not in ("train", "val", "test"):
        raise InputError(f"unknown split {split!r}: choose train, val or test")
    raw = provision(data_path)
    prefix = "t10k" if split == "test" else "train"
    # The MD5 sums have vouched for the headers (16 and 8 bytes), so the rest is pixels and labels.
    pixels = np.fromfile(raw / f"{prefix}-images-idx3-ubyte", np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.fromfile(raw / f"{prefix}-labels-idx1-ubyte", np.uint8, offset=8)
    images, labels = torch.from_numpy(pixels), torch.from_numpy(labels).long()
    if split != "test":
        val = stratified_indices(labels, VAL_SIZE, SPLIT_SEED)
        if split == "val":
            images, labels = images[val], labels[val]
        else:
            keep = torch.ones(len(labels), dtype=torch.bool).index_fill_(0, val, False).nonzero()[:, 0]
            images, labels = images.index_select(0, keep), labels[keep]  # (much faster than images[keep])
    return Split(images.to(device), labels.to(device))


def stratified_indices(labels: Tensor, size: int, seed: int) -> Tensor:
    """Indices [size], ascending, of a random sample in which each class keeps its share to within one item.

    Systematic sampling: shuffle, sort by class, take items at equal steps.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    steps = (torch.arange(size) + 0.5) * len(labels) / size
    return by_class[steps.long()].sort().values  # ascending, or the first images would all be the digit 0


def epoch_generator(seed: int, epoch: int, device: str | torch.device = "cpu") -> torch.Generator:
    """Random numbers that (seed, epoch) decides alone, so that a resumed run has the same."""
    return torch.Generator(device).manual_seed(seed * 100_003 + epoch)


def batches(size: int, batch_size: int, seed: int, epoch: int, skip: int, device) -> Iterator[tuple[int, Tensor]]:
    """The steps of an epoch from `skip` on, each with its places [batch_size], in the order of (seed, epoch)."""
    order = torch.randperm(size, generator=epoch_generator(seed, epoch)).to(device)
    for step in range(skip, size // batch_size):
        yield step, order[step * batch_size : (step + 1) * batch_size]


class Batch(NamedTuple):
    """B pairs; with several processes this process's share of a batch of `size` pairs."""

    images: Tensor  # float [B, 1, 28, 28] in [0, 1]
    texts: Texts  # B texts; text b goes with image b
    truth: Truth  # which texts are true of which images
    size: int

    def readable(self) -> list[str]:
        """A line for each pair, as a person would read it."""
        lines, (true, _) = [], self.truth.decide()
        for i, text in enumerate(self.texts.strings()):
            same = [str(j) for j in true[:, i].nonzero().flatten().tolist() if j != i]
            also = f"true also of {', '.join(same)}" if same else "true of no other"
            lines.append(f"{i}: image of {in_words(int(self.truth.facts[i]))} <-> {text!r}, {also}")
        return lines


class MNISTPairs(Dataset):
    """A split as pairs: each image with a text that is true of it.

    `captions` are all texts that can be drawn; None: those that describe. An image is described as it goes into
    training: first changed, as `augment` says ("none", "affine" or "elastic"; "corrupted" too where a text tells the
    digit alone), then measured. In `epoch` those that then lie in one of the `unseen` cells (bool [10, 3, 3]; None:
    `attributes.unseen_cells()`) take no part, and each twelfth pair shows no digit.
    `distinct` draws batches in groups of ten pairs, the digits 0 to 9. Raises InputError as `load_mnist`.
    """

    def __init__(
        self,
        split: str = "train",
        data_path: str | Path = DATA_PATH,
        device: str | torch.device = "cpu",
        captions: Captions | None = None,
        unseen: Tensor | None = None,
        augment: str = "none",
        distinct: bool = False,
    ):
        if augment not in AUGMENTS:
            raise InputError(f"unknown augment {augment!r}: choose {', '.join(AUGMENTS)}")
        self.captions = described_captions() if captions is None else captions
        if augment == "corrupted" and self.captions.described:
            raise InputError(
                'augment "corrupted" is for captions of the digit alone, a description would be false: choose another'
            )
        self.images, self.labels = load_mnist(split, data_path, device)
        unseen = unseen_cells() if unseen is None else unseen
        self.unseen, self.unknown = unseen.flatten().to(device), unknown_claims(unseen).flatten().to(device)
        self.augment, self.distinct = augment, distinct

    def __len__(self) -> int:
        """How many pairs an epoch draws from; `distinct`: ten times the rarest digit's."""
        return GROUP * int(self.labels.bincount(minlength=10).min()) if self.distinct else len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        """One pair to look at: image float [1, 28, 28] in [0, 1], and a text of it. Of any cell: train with `epoch`."""
        images, digits = self._images(torch.as_tensor([index], device=self.labels.device))
        things = things_of(digits, *measure(images)) if self.captions.described else digits
        return images[0], self.captions.draw(things)[0].strings()[0]

    def epoch_order(self, seed: int, epoch: int) -> Tensor:
        """The places of an epoch's pairs, in the order that (seed, epoch) decides alone: int64 [len(self)]."""
        device = self.labels.device
        generator = epoch_generator(seed, epoch, device)
        order = torch.randperm(len(self.labels), generator=generator, device=device)
        if self.distinct:
            digits = self.labels[order]
            groups = len(self) // GROUP
            order = torch.stack([order[digits == digit][:groups] for digit in range(10)], dim=1).flatten()
        return order

    def epoch(
        self, batch_size: int, seed: int = 0, epoch: int = 0, skip: int = 0, share: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """The batches of an epoch, without the first `skip`, as a resumed run needs them.

        The last, incomplete batch is left out: the loss and its floor depend on the batch size. The next epoch leaves
        out other images. `share` is (rank, world_size) where several processes share each batch.
        `distinct` needs a batch size that is a multiple of ten.
        """
        order = self.epoch_order(seed, epoch)
        others = self._no_digits(order, seed, epoch) if self.captions.described else None
        for start in range(skip * batch_size, len(order) - batch_size + 1, batch_size):
            own = torch.arange(batch_size, device=order.device).tensor_split(share[1])[share[0]]
            if self.captions.described:
                window = start + torch.arange(round(CANDIDATES * batch_size), device=order.device)
                candidates = order[window % len(order)].tensor_split(share[1])[share[0]]
                images, texts, truth = self._described(candidates, len(own), others)
            else:
                images, digits = self._images(order[start + own])
                texts, claims = self.captions.draw(digits)
                truth = Truth((1 << digits).int(), claims)
            yield Batch(images, texts, truth, batch_size)

    def _no_digits(self, order: Tensor, seed: int, epoch: int) -> NoDigits:
        """An epoch's images of no digit, as (seed, epoch) decides, made of digits in cells that are trained."""
        images, digits = (x[order[: 2 * NO_DIGITS]] for x in (self.images, self.labels))
        is_seen = ~self.unseen[facts_of(digits, *measure(images))[1]]
        generator = epoch_generator(seed, epoch, images.device)
        return no_digits(images[is_seen][:NO_DIGITS], digits[is_seen][:NO_DIGITS], generator)

    def _described(self, candidates: Tensor, size: int, others: NoDigits) -> tuple[Tensor, Texts, Truth]:
        """`size` pairs: of the candidates that lie in no unseen cell, the first ones; each twelfth shows no digit."""
        images, digits = self._images(candidates)
        look = measure(images)
        (facts, cells), things = facts_of(digits, *look), things_of(digits, *look)
        unseen = self.unseen[cells]
        # Sorted and then taken from the front: how many are unseen would have to be waited for on a GPU. Where too few
        # are seen, an image of no digit steps in.
        places = torch.arange(size, device=images.device)
        rank = places - (places // NO_DIGIT_EVERY + 1)  # among the digits
        chosen = unseen.int().argsort(stable=True)[rank.clamp(min=0)]
        is_none = unseen[chosen] | (places % NO_DIGIT_EVERY == 0)
        drawn = torch.randint(len(others.images), (size,), device=images.device)
        images = torch.where(is_none[:, None, None, None], others.images[drawn], images[chosen])
        facts = torch.where(is_none, others.facts[drawn], facts[chosen])
        unknown = torch.where(is_none, 0, self.unknown[cells[chosen]])
        texts, claims = self.captions.draw(torch.where(is_none, others.things[drawn], things[chosen]))
        return images, texts, Truth(facts, claims, unknown)

    def _images(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Places [B] -> their images, float [B, 1, 28, 28] in [0, 1], warped or not, and their digits [B]."""
        images, digits = self.images.index_select(0, index), self.labels[index]  # (much faster than images[index])
        if self.augment != "none":
            return torch.cat([augmented(part, self.augment) for part in images.split(WARPED_AT_ONCE)]), digits
        return images[:, None].float() / 255, digits


# ---- augmentation: a whole batch at once, each image in its own way ----


def augmented(images: Tensor, augment: str) -> Tensor:
    """uint8 [B, 28, 28] -> float [B, 1, 28, 28] in [0, 1], changed as `augment` says, which is not "none"."""
    x = random_warp(images, bent=augment != "affine")
    return corrupt(random_thickness(x)) if augment == "corrupted" else x


def random_warp(images: Tensor, bent: bool = False) -> Tensor:
    """uint8 [B, 28, 28] -> float [B, 1, 28, 28] in [0, 1], each rotated, sheared, scaled and shifted, sampled once.

    `bent`: elastic distortion too (Simard et al., 2003, ICDAR).
    """
    x = images[:, None].float() / 255  # [B, 1, 28, 28]
    rotate, shear, scale_x, scale_y, shift_x, shift_y = torch.rand(6, len(x), device=x.device) * 2 - 1
    cos, sin = torch.cos(rotate * math.radians(ROTATE)), torch.sin(rotate * math.radians(ROTATE))
    scale_x, scale_y = torch.exp(scale_x * SCALE), torch.exp(scale_y * SCALE)
    shear = shear * SHEAR
    half = x.shape[-1] / 2  # affine_grid counts from -1 to 1
    # Rotation after shear after scaling, from the target's coordinates to the source's.
    rows = [
        torch.stack([cos * scale_x, (cos * shear - sin) * scale_y, shift_x * SHIFT / half], dim=1),
        torch.stack([sin * scale_x, (sin * shear + cos) * scale_y, shift_y * SHIFT / half], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), x.shape, align_corners=False)  # [B, 28, 28, 2]
    if bent:
        field = torch.randn(len(x), 2, BENDS, BENDS, device=x.device) * (BEND / half)
        grid = grid + F.interpolate(field, x.shape[-2:], mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    return F.grid_sample(x, grid, align_corners=False)


def random_thickness(x: Tensor) -> Tensor:
    """Half of the images [B, 1, 28, 28] between themselves and their dilation, or erosion, of a pixel on each side."""
    pixels = THICKEN * (2 * random_amounts(x) - 1) * by_lot(x, 0.5)  # [B, 1, 1, 1]
    thicker, thinner = with_neighbours(x, torch.maximum), with_neighbours(x, torch.minimum)
    return x + pixels.clamp(min=0) * (thicker - x) + pixels.clamp(max=0) * (x - thinner)


def corrupt(x: Tensor) -> Tensor:
    """Float [B, 1, 28, 28] in [0, 1] -> the same, some with a black square, blurred, paler, inverted, noisy."""
    x = hide_square(x)
    x = torch.where(by_lot(x, CORRUPT), with_neighbours(with_neighbours(x, torch.add), torch.add) / 81, x)
    mean = x.mean(dim=(2, 3), keepdim=True)
    x = torch.lerp(x, mean, 0.8 * random_amounts(x) * by_lot(x, CORRUPT))
    x = torch.lerp(x, 1 - x, random_amounts(x) * by_lot(x, CORRUPT))
    return (x + 0.3 * random_amounts(x) * by_lot(x, CORRUPT) * torch.randn_like(x)).clamp(0, 1)


def hide_square(x: Tensor) -> Tensor:
    """Random erasing (Zhong et al., 2020, arXiv 1708.04896): a black square of 4 to 10 pixels, anywhere."""
    side = 4 + (7 * random_amounts(x)).floor()  # [B, 1, 1, 1]
    row, column = ((29 - side) * random_amounts(x)).floor(), ((29 - side) * random_amounts(x)).floor()
    place = torch.arange(28, device=x.device)
    rows = (place[:, None] >= row) & (place[:, None] < row + side)  # [B, 1, 28, 1]
    columns = (place >= column) & (place < column + side)  # [B, 1, 1, 28]
    return x.masked_fill(rows & columns & by_lot(x, CORRUPT), 0)


def with_neighbours(x: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Each pixel combined with its eight neighbours. (Slices: torch's pooling takes ten times as long on a CPU.)"""
    x = F.pad(x, (1, 1, 1, 1))
    x = combine(combine(x[..., :-2], x[..., 1:-1]), x[..., 2:])
    return combine(combine(x[..., :-2, :], x[..., 1:-1, :]), x[..., 2:, :])


def random_amounts(x: Tensor) -> Tensor:
    """For each image one of its own, from 0 to 1: [B, 1, 1, 1]."""
    return torch.rand(len(x), 1, 1, 1, device=x.device)


def by_lot(x: Tensor, share: float) -> Tensor:
    """Which of the images, in such a share of them: bool [B, 1, 1, 1]."""
    return random_amounts(x) < share
