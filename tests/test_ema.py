import copy

import torch

from clip import CLIP
from conftest import TINY, tensors, train_here
from training.ema import Ema


def floats(model: CLIP) -> dict:
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    return {name: value.clone() for name, value in state.items() if value.is_floating_point()}


def set_state(model: CLIP, state: dict) -> None:
    model.load_state_dict(state, strict=False)


def test_average_of_weights_and_statistics_begins_as_a_mean_and_forgets_at_its_decay():
    model, first, second = (CLIP(width=2) for _ in range(3))
    ema = Ema(model, decay=0.9)
    for source in (first, second):
        set_state(model, floats(source))
        ema.update()
    a, b = floats(first), floats(second)
    for name, value in floats(ema.model).items():
        torch.testing.assert_close(value, (a[name] + b[name]) / 2)

    set_state(model, floats(CLIP(width=2)) | {"towers.image.stages.1.running_var": torch.full((2,), 3.0)})
    ema.steps = 20
    start, state = floats(ema.model), floats(model)
    for _ in range(3):
        ema.update()
    for name, value in floats(ema.model).items():
        torch.testing.assert_close(value, 0.9**3 * start[name] + (1 - 0.9**3) * state[name])


def test_the_average_leaves_its_source_alone():
    model = CLIP(width=2)
    before, ema = copy.deepcopy(model.state_dict()), Ema(model, decay=0.9)
    set_state(ema.model, floats(CLIP(width=2)))
    ema.update()
    assert all(map(torch.equal, tensors(model.state_dict()), tensors(before)))


def test_a_saved_average_goes_on_where_it_was():
    torch.manual_seed(0)
    model, others = CLIP(width=2), [CLIP(width=2) for _ in range(4)]
    ema, saved = Ema(model, decay=0.9), None
    for i, other in enumerate(others):
        if i == 2:
            saved = copy.deepcopy(ema.state_dict())
        set_state(model, floats(other))
        ema.update()
    again = Ema(model, decay=0.9)
    again.load_state_dict(saved)
    for other in others[2:]:
        set_state(model, floats(other))
        again.update()
    assert again.steps == 4
    assert all(map(torch.equal, tensors(again.model.state_dict()), tensors(ema.model.state_dict())))


def test_the_average_counts_the_steps_of_all_epochs(tmp_path, small_mnist):
    flags = [*TINY, "--batch-size", 500, "--epochs", 2, "--ema-decay", 0.9, "--augment", "none"]
    train_here(*flags, "--runs-dir", tmp_path, "--run-name", "run")
    *_, average = torch.load(tmp_path / "run" / "last.pth", weights_only=True)["parts"]
    assert average["steps"] == 2 * (5_500 // 500)
