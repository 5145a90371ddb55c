"""Pairs: batches of images with the texts they go with, sampled and augmented whole on the training device.

`load_mnist` gives a split as two tensors. `MNISTPairs` makes pairs of it: its `epoch` yields batches for training.
(It is no torch `Dataset`: a pair by itself does not say which other texts of its batch are true of its image.)
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import scenes
from attributes import combination_ids, measure, unseen_combinations
from captions import (
    Captions,
    Labels,
    Texts,
    attribute_captions,
    digit_facts,
    image_facts,
    sample_descriptions,
    unknown_labels,
)
from data.augment import augment
from data.mnist import download, read_idx
from data.outliers import Outliers, make_outliers
from scenes import Scenes

DATA_PATH = "MINIST_CLIP"
VAL_SIZE = 5_000
SPLIT_SEED = 0  # independent of --seed: every run selects on the same 5,000 images
N_OUTLIERS = 2_000  # made anew for each epoch
OUTLIER_EVERY = 12  # each twelfth pair of a batch shows an outlier
OVERSAMPLE = 1.15  # images that are measured for each pair of a batch: a fifth lies in unseen combinations


class Split(NamedTuple):
    """One split of MNIST on one device: images uint8 [N, 28, 28], labels int64 [N] in 0..9."""

    images: Tensor
    labels: Tensor


class OwnSplit(NamedTuple):
    """One split of own data on one device: pictures, and which texts were given to them.

    images uint8 [N, C, H, H]; `texts` are T different ones; pairs int64 [P, 2] are places of a picture and of a text,
    in ascending order; `classes` names the classes if the texts are that.
    """

    images: Tensor
    texts: tuple[str, ...]
    pairs: Tensor
    classes: tuple[str, ...]

    def to(self, device: str | torch.device) -> "OwnSplit":
        return self._replace(images=self.images.to(device), pairs=self.pairs.to(device))

    def belongs(self, images: Tensor, texts: Tensor) -> Tensor:
        """Places of pictures [A] and of texts [B] -> whether the text was given to the picture, bool [A, B]."""
        given = self.pairs[:, 0] * len(self.texts) + self.pairs[:, 1]  # [P], ascending
        asked = images[:, None] * len(self.texts) + texts  # [A, B]
        return given[torch.searchsorted(given, asked).clamp(max=len(given) - 1)] == asked


def load_mnist(split: str, data_path: str | Path = DATA_PATH, device: str | torch.device = "cpu") -> Split:
    """Load "train" (55,000), "val" (5,000, stratified out of the training set) or "test" (10,000).

    Downloads MNIST on first use. Raises InputError if no source has it, KeyError for an unknown split.
    """
    prefix = {"train": "train", "val": "train", "test": "t10k"}[split]
    raw = download(data_path)
    images, labels = (read_idx(raw / f"{prefix}-{end}") for end in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    labels = labels.long()
    if split != "test":
        is_val = torch.zeros(len(labels), dtype=torch.bool)
        is_val[stratified_indices(labels, VAL_SIZE, SPLIT_SEED)] = True
        index = (is_val if split == "val" else ~is_val).nonzero()[:, 0]
        images, labels = images.index_select(0, index), labels[index]  # (much faster than images[index])
    return Split(images.to(device), labels.to(device))


def stratified_indices(labels: Tensor, size: int, seed: int) -> Tensor:
    """Indices [size], ascending, of a random sample in which each class keeps its share to within one item.

    Systematic sampling: shuffle, sort by class, take items at equal steps.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    steps = (torch.arange(size) + 0.5) * len(labels) / size
    return by_class[steps.long()].sort().values


def load_split(name: str, settings, device: str | torch.device = "cpu") -> Split | OwnSplit:
    """A split, "train", "val" or "test", of the data of a run's settings: of --data, else of MNIST."""
    if settings.data is None:
        return load_mnist(name, settings.data_path, device)
    from data.own import read_folder  # pandas takes half a second to import

    return read_folder(settings.data, settings.image_size, settings.channels)[name].to(device)


def epoch_generator(seed: int, epoch: int, device: str | torch.device = "cpu") -> torch.Generator:
    """Random numbers that depend on (seed, epoch) alone, so that a resumed run has the same."""
    return torch.Generator(device).manual_seed(seed * 100_003 + epoch)


def batch_indices(size: int, batch_size: int, seed: int, epoch: int, device: str | torch.device = "cpu") -> Tensor:
    """An epoch's batches as indices [steps, batch_size], in the random order of (seed, epoch).

    Without the incomplete last batch. Raises ValueError if not even one is complete.
    """
    if batch_size > size:
        raise ValueError(f"a batch of {batch_size} is larger than the data of {size}")
    order = torch.randperm(size, generator=epoch_generator(seed, epoch))
    return order[: size // batch_size * batch_size].view(-1, batch_size).to(device)


class Batch(NamedTuple):
    """B pairs: image b and text b go together, and `labels` say which others do."""

    images: Tensor  # float [B, C, H, H] in [0, 1]; C is 1 and H is 28, of scenes 48, but for own data
    texts: Texts
    labels: Labels


class MNISTPairs:
    """A split as pairs: each image with a text that is true of it.

    `captions` are all texts that can be sampled; None: those of attributes. Attributes are measured on the image as it
    goes into training, after augmentation (a kind of data/augment.py; set `augment` before each epoch). Images that
    then lie in an `unseen` combination (bool of shape COMBINATIONS) take no part in `epoch`, and each twelfth pair
    shows an outlier. Raises InputError as `load_mnist`.
    """

    def __init__(
        self,
        split: str = "train",
        data_path: str | Path = DATA_PATH,
        device: str | torch.device = "cpu",
        captions: Captions | None = None,
        unseen: Tensor | None = None,
        augment: str = "none",
    ):
        self.images, self.labels = load_mnist(split, data_path, device)
        self.captions = captions or attribute_captions()
        self.claims = self.captions.claims.to(device)  # bool [C, S]
        unseen = unseen_combinations() if unseen is None else unseen
        self.unseen, self.unknown = unseen.flatten().to(device), unknown_labels(unseen).to(device)
        self.augment = augment

    def __len__(self) -> int:
        return len(self.labels)

    def epoch(
        self, batch_size: int, seed: int = 0, epoch: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        """The batches of an epoch, in the random order of (seed, epoch), without the incomplete last one.

        Of each batch, process `rank` of `world_size` gets its share, and draws its own random numbers.
        Raises ValueError if not even one batch is complete.
        """
        batches = batch_indices(len(self), batch_size, seed, epoch, self.labels.device)  # [steps, batch_size]
        share = batch_size // world_size
        if self.captions.kind == "digit":
            for index in batches:
                images, digits = self._images(index[rank * share :][:share])
                facts = digit_facts(digits)
                labels = Labels(facts, self.claims[digits], torch.zeros_like(facts))
                yield Batch(images, self.captions.sample(digits), labels)
            return
        outliers = self._outliers(batches.flatten()[: 2 * N_OUTLIERS], seed, epoch)
        spare = round((OVERSAMPLE - 1) * batch_size)
        for index, following in zip(batches, batches.roll(-1, dims=0), strict=True):
            candidates = torch.cat([index, following[:spare]])
            yield self._attribute_batch(candidates.tensor_split(world_size)[rank], share, outliers)

    def _outliers(self, index: Tensor, seed: int, epoch: int) -> Outliers:
        """An epoch's outliers, made of those of these digits whose combinations are trained."""
        images, digits = self.images[index], self.labels[index]
        is_seen = ~self.unseen[combination_ids(digits, measure(images))]
        generator = epoch_generator(seed, epoch, images.device)
        return make_outliers(images[is_seen][:N_OUTLIERS], digits[is_seen][:N_OUTLIERS], generator)

    def _attribute_batch(self, candidates: Tensor, size: int, outliers: Outliers) -> Batch:
        """Keep the first `size` candidates outside the unseen combinations; every twelfth pair is an outlier."""
        images, digits = self._images(candidates)
        values = measure(images)  # [candidates, A]
        combinations = combination_ids(digits, values)
        unseen = self.unseen[combinations]  # [candidates]
        # Sorted and then taken from the front: counting the unseen ones would wait for a GPU. If too few are seen, an
        # outlier steps in.
        places = torch.arange(size, device=images.device)
        digit_places = places - (places // OUTLIER_EVERY + 1)
        chosen = unseen.int().argsort(stable=True)[digit_places.clamp(min=0)]  # [size]
        is_outlier = unseen[chosen] | (places % OUTLIER_EVERY == 0)
        which = torch.randint(len(outliers.images), (size,), device=images.device)

        digits, values = digits[chosen], values[chosen]
        images = torch.where(is_outlier[:, None, None, None], outliers.images[which], images[chosen])
        facts = torch.where(is_outlier[:, None], outliers.facts[which], image_facts(digits, values))
        unknown = self.unknown[combinations[chosen]] & ~is_outlier[:, None]
        ids = torch.where(is_outlier, outliers.ids[which], sample_descriptions(digits, values))
        return Batch(images, self.captions.sample(ids), Labels(facts, self.claims[ids], unknown))

    def _images(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Indices [B] -> augmented images, float [B, 1, 28, 28] in [0, 1], and digits [B]."""
        images = self.images.index_select(0, index)  # (much faster than images[index])
        return augment(images, self.augment), self.labels[index]


class ByDigit:
    """The places of a split's images, by their labels [N]: `sample(digits)` gives a random image of each digit."""

    def __init__(self, labels: Tensor):
        self.order, self.counts = labels.argsort(stable=True), labels.bincount(minlength=10)  # [N], [10]
        self.first = self.counts.cumsum(dim=0) - self.counts

    def sample(self, digits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Digits -> places of images, both int64 of one shape."""
        share = torch.rand(digits.shape, device=digits.device, generator=generator)
        return self.order[self.first[digits] + (share * self.counts[digits]).long()]


class ScenePairs:
    """A split as pairs: each image with another one beside or above it, and a text that is true of this scene.

    Each image is augmented by itself (set `augment` before each epoch). Pairs of digits that are `unseen`, bool
    [10, 10], are never shown together. Raises InputError as `load_mnist`.
    """

    def __init__(
        self,
        split: str = "train",
        data_path: str | Path = DATA_PATH,
        device: str | torch.device = "cpu",
        captions: Captions | None = None,
        unseen: Tensor | None = None,
        augment: str = "none",
    ):
        self.images, self.labels = load_mnist(split, data_path, device)
        self.captions = captions or scenes.scene_captions()
        self.claims = self.captions.claims.to(device)  # bool [C, S]
        unseen = (scenes.unseen_pairs() if unseen is None else unseen).to(device)
        self.seen = ~unseen & ~torch.eye(10, dtype=torch.bool, device=device)  # pairs that are shown
        self.unknown = scenes.unknown_labels(unseen)  # bool [10, S]
        self.augment = augment
        self.by_digit = ByDigit(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def epoch(
        self, batch_size: int, seed: int = 0, epoch: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        """As `MNISTPairs.epoch`: each image of the split is once the first of its scene."""
        share = batch_size // world_size
        for index in batch_indices(len(self), batch_size, seed, epoch, self.labels.device):
            yield self._batch(index[rank * share :][:share])

    def _batch(self, first: Tensor) -> Batch:
        scene = self.sample_scenes(first)
        facts, digits = scenes.scene_facts(scene), scene.digits
        unknown = self.unknown[digits[:, 0]] | self.unknown[digits[:, 1]]  # [B, S]
        ids = scenes.sample_descriptions(scene)
        return Batch(scene.images, self.captions.sample(ids), Labels(facts, self.claims[ids], unknown))

    def sample_scenes(self, first: Tensor) -> Scenes:
        """Places of images [B] -> a scene with each and a random other one, in a random arrangement."""
        is_partner = self.seen[self.labels[first]]  # [B, 10]
        others = torch.rand(is_partner.shape, device=first.device).masked_fill(~is_partner, -1).argmax(dim=1)
        index = torch.stack([first, self.by_digit.sample(others)], dim=1)  # [B, 2]
        is_vertical, is_second = torch.rand(2, len(first), device=first.device) < 0.5
        index = torch.where(is_second[:, None], index.flip(1), index)
        tiles = augment(self.images.index_select(0, index.flatten()), self.augment).view(-1, 2, *self.images.shape[1:])
        return scenes.make_scenes(tiles, self.labels[index], is_vertical)


class OwnPairs:
    """A split of own data as pairs (set `augment` before each epoch). A text is true of each picture that has it."""

    def __init__(self, split: OwnSplit, augment: str = "none"):
        self.split, self.images, self.augment = split, split.images, augment

    def __len__(self) -> int:
        return len(self.split.pairs)

    def epoch(
        self, batch_size: int, seed: int = 0, epoch: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        """As `MNISTPairs.epoch`: each text of each picture once. The labels are the texts of the batch."""
        share = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        is_own = torch.eye(batch_size, dtype=torch.bool, device=self.images.device)
        for index in batch_indices(len(self), batch_size, seed, epoch, self.images.device):
            places, texts = self.split.pairs[index].T  # [B] each
            facts = self.split.belongs(places[share], texts)
            images = augment(self.images.index_select(0, places[share]), self.augment)
            labels = Labels(facts, is_own[share], torch.zeros_like(facts))
            yield Batch(images, Texts(self.split.texts, texts[share]), labels)
