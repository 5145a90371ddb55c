"""Moving average of the weights: what it holds at the end of training is often better than the last step's weights."""

import copy
import itertools

import torch
from torch import nn


class Ema:
    """Exponential moving average of a model's weights and its batch norms' statistics, in `model` of its own.

    At first it is the plain mean of the steps so far, so that the random start has no part in it. (torch's
    AveragedModel does the like, but makes the CPU wait for the GPU in each step.)
    """

    def __init__(self, source: nn.Module, decay: float):
        self.source, self.model, self.decay = source, copy.deepcopy(source), decay
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """After each step of the source."""
        self.steps += 1
        averages, values = (
            [x for x in itertools.chain(model.parameters(), model.buffers()) if x.is_floating_point()]
            for model in (self.model, self.source)
        )
        torch._foreach_lerp_(averages, values, max(1 - self.decay, 1 / self.steps))

    def state_dict(self) -> dict:
        return {"model": self.model.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.steps = state["steps"]
