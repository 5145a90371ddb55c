import copy

import torch

from clip import CLIP
from training.ema import Ema


def floats(model: CLIP) -> dict:
    return {name: value.clone() for name, value in model.state_dict().items() if value.is_floating_point()}


def follow(ema: Ema, states: list[dict]) -> None:
    """Give the source these states one after the other, with an update after each."""
    for state in states:
        ema.source.load_state_dict(state, strict=False)
        ema.update()


def test_the_average_starts_as_a_mean_forgets_at_its_decay_and_leaves_its_source_alone():
    states = [floats(CLIP(width=2)) for _ in range(2)]
    states[1]["towers.image.stages.1.running_var"] += 2  # statistics are averaged like weights
    ema = Ema(CLIP(width=2), decay=0.9)
    follow(ema, states)
    for name, value in floats(ema.model).items():
        torch.testing.assert_close(value, (states[0][name] + states[1][name]) / 2)
    start, ema.steps = floats(ema.model), 20
    follow(ema, [states[1]] * 3)
    for name, value in floats(ema.model).items():
        torch.testing.assert_close(value, 0.9**3 * start[name] + (1 - 0.9**3) * states[1][name])
    assert all(map(torch.equal, floats(ema.source).values(), states[1].values()))


def test_a_saved_average_continues():
    states = [floats(CLIP(width=2)) for _ in range(4)]
    whole, first, second = (Ema(CLIP(width=2), decay=0.9) for _ in range(3))
    second.model.load_state_dict(whole.model.state_dict())
    follow(whole, states)
    follow(first, states[:2])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    follow(second, states[2:])
    assert second.steps == 4
    assert all(map(torch.equal, floats(second.model).values(), floats(whole.model).values()))
