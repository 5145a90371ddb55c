import copy
import itertools

import pytest
import torch

from clip import CLIP
from conftest import tensors
from training.eager import AdamW
from training.muon import Muon
from training.optimizers import make_optimizers, warmup_cosine
from training.settings import read_flags


def groups_of(*flags: str) -> tuple[dict, dict]:
    """Of each of a small model's parameters, by name: its optimizer's class and its group."""
    model = CLIP(width=2, embed_dim=4)
    optimizers = make_optimizers(model, read_flags(list(flags))[0])
    by_id = {id(p): (type(o), g) for o in optimizers for g in o.param_groups for p in g["params"]}
    found = {name: by_id[id(p)] for name, p in model.named_parameters()}
    assert len(found) == len(by_id) == sum(len(g["params"]) for o in optimizers for g in o.param_groups), "each once"
    return {name: kind for name, (kind, _) in found.items()}, {name: group for name, (_, group) in found.items()}


def test_muon_has_the_cnns_kernels_and_matrices_and_adamw_the_rest():
    kinds, groups = groups_of("--lr", "0.5", "--muon-lr", "0.25", "--muon-momentum", "0.6")
    for name, kind in kinds.items():
        matrix = name in ("towers.image.projection.weight",) or ("stages" in name and groups[name]["weight_decay"] > 0)
        assert (kind is Muon) == matrix, name
        assert groups[name]["peak_lr"] == (0.25 if kind is Muon else 0.5), name
        assert kind is not Muon or groups[name]["momentum"] == 0.6
    assert sum(kind is Muon for kind in kinds.values()) == 10, "nine kernels and the projection"


def test_without_muon_adamw_has_all():
    kinds, groups = groups_of("--muon-lr", "0", "--lr", "0.5")
    assert set(kinds.values()) == {AdamW}
    assert {group["peak_lr"] for group in groups.values()} == {0.5}


@pytest.mark.parametrize("muon_lr", ["0", "0.05"])
def test_weight_decay_is_for_matrices_and_kernels(muon_lr):
    _, groups = groups_of("--muon-lr", muon_lr)
    parameters = dict(CLIP(width=2, embed_dim=4).named_parameters())
    for name, group in groups.items():
        decays = parameters[name].ndim > 1 and name != "towers.text.table.weight"
        assert (group["weight_decay"] > 0) == decays, name


def test_schedule_warms_up_and_ends_near_zero():
    factors = [warmup_cosine(step, 100, 10) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == 1.0
    assert factors[-1] < 1e-3
    assert all(a >= b for a, b in itertools.pairwise(factors[9:]))
    assert warmup_cosine(0, 1, 0) == 1.0


def test_our_adamw_is_torchs_to_the_bit():
    torch.manual_seed(0)
    start, gradients = torch.randn(5, 3), torch.randn(3, 5, 3)
    results = []
    for kind in (AdamW, torch.optim.AdamW):
        p = torch.nn.Parameter(start.clone())
        optimizer = kind([p], lr=0.1, fused=True)
        for gradient in gradients:
            p.grad = gradient.clone()
            optimizer.step()
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = kind([p], lr=1.0)
            optimizer.load_state_dict(state)
        results.append((p, state))
    (ours, our_state), (theirs, their_state) = results
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, start)
    assert our_state.pop("param_groups") == their_state.pop("param_groups")
    assert all(torch.equal(a, b) for a, b in zip(tensors(our_state), tensors(their_state), strict=True))
