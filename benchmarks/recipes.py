"""Other people's recipes for MNIST as published, to be run beside ours on the same data and machine.

Every function trains on the data's device, in this process. Its seconds are those of training alone: they leave out
loading, the final test and, for recipes that train to a given accuracy, the tests in between. These tests only stop
other people's recipes; nothing of ours is selected by them.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from open_clip import ClipLoss, CustomTextCLIP
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.common import Stopwatch
from clip import CLIP
from data.augment import augment
from image_encoder import PIXEL_MEAN, PIXEL_STD, ImageEncoder
from my_dataset import Batch, Split, batch_indices
from training.optim import warmup_cosine
from training.step import GRAD_CLIP, update


class Trained(NamedTuple):
    """One training: its seconds, test accuracy in 0..1, and a note on how long it trained."""

    seconds: float
    accuracy: float
    note: str


@torch.no_grad()
def measure_accuracy(classify: Callable, images: Tensor, labels: Tensor) -> float:
    """The share of images [N, 1, 28, 28] whose highest score, of `classify(images)` [N, 10], is at their label."""
    predicted = torch.cat([classify(part).argmax(dim=1) for part in images.split(1000)])
    return (predicted == labels).float().mean().item()


def standardized(images: Tensor) -> Tensor:
    """uint8 [N, 28, 28] -> floats [N, 1, 28, 28] of mean 0 and standard deviation 1."""
    return (images[:, None].float() / 255 - PIXEL_MEAN) / PIXEL_STD


# ---- tuomaso/train_mnist_fast: a plain classifier, one epoch ----


def plain_net() -> nn.Module:
    """Two convolutions (24 of 5x5, 32 of 3x3), each with max-pooling and then ReLU, linear 256 and 10."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 5),
        nn.MaxPool2d(2),  # 12x12
        nn.ReLU(),
        nn.Conv2d(24, 32, 3),
        nn.MaxPool2d(2),  # 5x5
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 5 * 5, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


def plain_classifier(train: Split, test: Split, seed: int) -> Trained:
    """`plain_net`; Adam with betas 0.7 and 0.9, one-cycle to 0.01, batch 256, one epoch over all 60,000 images in fixed
    order, no augmentation."""
    torch.manual_seed(seed)
    device = train.images.device
    net = plain_net().to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01, betas=(0.7, 0.9))
    steps = -(-len(train.labels) // 256)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps, cycle_momentum=False)
    x_train, watch = standardized(train.images), Stopwatch(device)
    with watch:
        for x, y in zip(x_train.split(256), train.labels.split(256), strict=True):
            loss = F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return Trained(watch.seconds, measure_accuracy(net.eval(), standardized(test.images), test.labels), "one epoch")


# ---- PyTorch's own MNIST example ----


def pytorch_example(train: Split, test: Split, seed: int, target: float = 0.99, limit: int = 14) -> Trained:
    """3x3 convolutions of 32 and 64, max-pooling, dropout, linear 128 and 10; Adadelta at 1.0, falling by 0.7 an
    epoch, batch 64, random order; to the end of the first epoch that reaches `target`."""
    torch.manual_seed(seed)
    device = train.images.device
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),  # 12x12
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(64 * 12 * 12, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, 10),
    ).to(device)
    optimizer = torch.optim.Adadelta(net.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    x_train, x_test, watch = standardized(train.images), standardized(test.images), Stopwatch(device)
    epochs, reached = 0, 0.0
    while reached < target and epochs < limit:
        epochs += 1
        net.train()
        with watch:
            for index in torch.randperm(len(train.labels), device=device).split(64):
                loss = F.cross_entropy(net(x_train[index]), train.labels[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
        reached = measure_accuracy(net.eval(), x_test, test.labels)
    note = f"{epochs} epochs, to {target:.0%}" if reached >= target else f"{epochs} epochs, {target:.0%} not reached"
    return Trained(watch.seconds, reached, note)


# ---- owenliang/mnist-clip: the toy CLIP that people meet first ----


class _Block(nn.Module):
    def __init__(self, channels: int, out: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.BatchNorm2d(out)
        self.conv2, self.norm2 = nn.Conv2d(out, out, 3, padding=1), nn.BatchNorm2d(out)
        self.skip = nn.Conv2d(channels, out, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.skip(x))


class _ToyClip(nn.Module):
    """Residual blocks of 16, 4 and 1 channels, 8-dimensional embeddings under layer norm, plain dot products."""

    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(
            _Block(1, 16), _Block(16, 4), _Block(4, 1), nn.Flatten(), nn.Linear(16, 8), nn.LayerNorm(8)
        )
        self.text = nn.Sequential(
            nn.Embedding(10, 16),
            nn.Linear(16, 64),
            nn.ReLU(),
            nn.Linear(64, 16),
            nn.ReLU(),
            nn.Linear(16, 8),
            nn.LayerNorm(8),
        )

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.image(images) @ self.text(labels).T


def toy_clip(
    train: Split, test: Split, seed: int, target: float = 0.96, limit: float = 200.0, test_every: int = 500
) -> Trained:
    """Ten distinct digits a step, pixels in 0..1, symmetric cross-entropy on the 10x10 products, Adam at 1e-3.

    It is tested every `test_every` steps and stops at the accuracy `target`, or after `limit` seconds. It publishes no
    accuracy of its own: 96% is about where it levels off.
    """
    torch.manual_seed(seed)
    device = train.images.device
    net = _ToyClip().to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    digits = torch.arange(10, device=device)
    of_digit = [(train.labels == digit).nonzero().flatten() for digit in range(10)]
    x_train, x_test = (split.images[:, None].float() / 255 for split in (train, test))
    watch = Stopwatch(device)
    steps, reached = 0, 0.0
    while reached < target and watch.seconds < limit:
        net.train()
        with watch:
            picks = torch.stack([one[torch.randint(len(one), (test_every,), device=device)] for one in of_digit], dim=1)
            for index in picks:  # [10], one image of each digit
                logits = net(x_train[index], digits)
                loss = (F.cross_entropy(logits, digits) + F.cross_entropy(logits.T, digits)) / 2
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        steps += test_every
        net.eval()
        reached = measure_accuracy(lambda x: net(x, digits), x_test, test.labels)
    note = f"{steps:,} steps, to {target:.0%}" if reached >= target else f"{steps:,} steps, {target:.0%} not reached"
    return Trained(watch.seconds, reached, note)


# ---- mlfoundations/open_clip: the reference implementation, around our towers ----


class OpenClip:
    """open_clip's model class around copies of our two towers, with its forward, normalisation, scale and ClipLoss.

    Each call takes a training step with AdamW, clipping gradients where ours does.
    """

    def __init__(self, ours: CLIP, lr: float = 3e-3):
        dim = ours.arch["embed_dim"]
        vision = {"layers": 1, "width": 64, "patch_size": 14, "image_size": 28}  # small stand-ins, replaced at once
        text = {"context_length": 1, "vocab_size": 10, "width": 64, "heads": 1, "layers": 1}
        self.model = CustomTextCLIP(dim, vision, text)
        self.model.visual, self.model.text = (copy.deepcopy(ours.towers[name]) for name in ("image", "text"))
        self.model.to(ours.logit_scale.device, memory_format=torch.channels_last).train()
        group = {"params": list(self.model.parameters()), "lr": lr, "peak_lr": lr}
        self.optimizer = torch.optim.AdamW([group], weight_decay=0.05, fused=True)
        self.loss, self.tokenize = ClipLoss(), ours.tokenize

    def __call__(self, batch: Batch) -> Tensor:
        image, text, scale = self.model(batch.images, self.tokenize(batch.texts))[:3]
        loss = self.loss(image, text, scale)
        self.optimizer.zero_grad()
        loss.backward()
        update([self.optimizer], 1.0, GRAD_CLIP)
        return loss.detach()


# ---- an independent classifier of digits, to judge generated images ----


def digit_cnn(images: Tensor, digits: Tensor, epochs: int, seed: int) -> nn.Module:
    """The image tower's CNN with ten outputs, trained by cross-entropy on images uint8 [N, 28, 28] and digits [N]."""
    torch.manual_seed(seed)
    net = ImageEncoder(10, width=16).to(images.device, memory_format=torch.channels_last)
    group = {"params": list(net.parameters()), "lr": 3e-3, "peak_lr": 3e-3}
    optimizer = torch.optim.AdamW([group], weight_decay=0.05, fused=True)
    step, batch_size = 0, min(128, len(images))
    total = epochs * (len(images) // batch_size)
    for epoch in tqdm(range(epochs), leave=False, desc="a classifier", disable=None):
        for index in batch_indices(len(images), batch_size, seed, epoch, images.device):
            x = augment(images[index], "affine" if epoch + 1 < epochs else "none")  # [B, 1, 28, 28]
            optimizer.zero_grad()
            F.cross_entropy(net(x), digits[index], label_smoothing=0.05).backward()
            update([optimizer], warmup_cosine(step, total), GRAD_CLIP)
            step += 1
    return net.eval()
