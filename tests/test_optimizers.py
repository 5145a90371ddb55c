import itertools

import pytest
import torch
from torch import nn

from clip import CLIP
from training.optim import MUON_MOMENTUM, TEXT_LR, Muon, make_optimizers, orthogonalise, warmup_cosine


@pytest.mark.parametrize("muon_lr", [0.25, 0])
@pytest.mark.parametrize("text_encoder", ["table", "transformer"])
def test_muon_has_the_matrices_of_cnn_and_transformer_and_adamw_the_rest(muon_lr, text_encoder):
    model = CLIP(width=2, embed_dim=4, text_encoder=text_encoder)
    optimizers = make_optimizers(model, 0.5, muon_lr)
    assert list(optimizers) == ["adamw", "muon"][: 2 if muon_lr else 1]
    group_of = {id(p): group for o in optimizers.values() for group in o.param_groups for p in group["params"]}
    of_muon = [p for group in optimizers["muon"].param_groups for p in group["params"]] if muon_lr else []
    assert sum(len(group["params"]) for o in optimizers.values() for group in o.param_groups) == len(group_of)
    names = dict(model.named_parameters())
    assert {id(p) for p in names.values()} == group_of.keys(), "each parameter once"
    for name, p in names.items():
        is_matrix = p.ndim > 1 and name not in ("towers.text.table.weight", "towers.text.places.weight")
        assert (group_of[id(p)]["weight_decay"] > 0) == is_matrix, name
        is_muons = any(p is other for other in of_muon)
        is_hidden = name.startswith(("towers.image", "towers.text.attention"))
        assert is_muons == (muon_lr > 0 and is_matrix and is_hidden), name
        assert group_of[id(p)]["peak_lr"] == group_of[id(p)]["lr"] == (muon_lr if is_muons else 0.5)
        assert not is_muons or group_of[id(p)]["momentum"] == MUON_MOMENTUM


def test_a_trained_language_model_has_a_learning_rate_of_its_own(tiny_albert):
    options = {"text_model": str(tiny_albert)}
    model = CLIP(8, width=2, captions="digit", text_encoder="plus", text_options=options)
    groups = [group for o in make_optimizers(model, 0.5, 0.25).values() for group in o.param_groups]
    peaks = {id(p): group["peak_lr"] for group in groups for p in group["params"]}
    for name, p in model.towers["text"].named_parameters():
        assert peaks[id(p)] == (TEXT_LR if "language_model" in name else 0.5), name


def test_the_learning_rate_warms_up_over_a_tenth_and_ends_near_zero():
    factors = [warmup_cosine(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == 1
    assert factors[-1] < 1e-3
    assert all(a >= b for a, b in itertools.pairwise(factors[9:]))
    assert warmup_cosine(0, 1) == 1


@pytest.mark.parametrize("shape", [(16, 144), (144, 16), (8, 8)])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_orthogonalise_keeps_the_singular_vectors_and_evens_out_the_values(shape, scale):
    torch.manual_seed(0)
    matrix = scale * torch.randn(shape)
    u, before, v = torch.linalg.svd(matrix, full_matrices=False)
    result = u.T @ orthogonalise(matrix, iterations=8) @ v.T  # diagonal in the matrix's singular vectors
    after = result.diagonal()
    torch.testing.assert_close(result, after.diag(), atol=1e-4, rtol=0)
    assert before.max() / before.min() > after.max() / after.min()
    assert 0.6 < after.min() < after.max() < 1.3
    assert not orthogonalise(torch.zeros(shape)).any()


@pytest.mark.parametrize(("shape", "stretch"), [((32, 8), 2), ((8, 32), 1), ((8, 2, 3, 3), 1)])
def test_a_step_has_the_learning_rate_as_its_spectral_norm_more_if_the_matrix_is_tall(shape, stretch):
    torch.manual_seed(0)
    p = nn.Parameter(torch.zeros(shape))
    p.grad = torch.randn_like(p)
    Muon([p], lr=0.1, iterations=8).step()
    assert 0.6 < torch.linalg.matrix_norm(p.detach().flatten(1), 2) / (0.1 * stretch) < 1.3


def test_momentum_is_nesterovs_and_weight_decay_is_decoupled():
    p = nn.Parameter(torch.zeros(3, 3))
    muon = Muon([p], lr=1.0, momentum=0.5, iterations=0)  # without iterations a step is the update over its norm
    for gradient in (torch.eye(3), torch.zeros(3, 3)):  # momentum 0.5 I, then 0.25 I; update 0.75 I, then 0.125 I
        before = p.detach().clone()
        p.grad = gradient
        muon.step()
        torch.testing.assert_close(before - p.detach(), torch.eye(3) / 3**0.5)
    torch.testing.assert_close(muon.state[p]["momentum"], 0.25 * torch.eye(3))
    p = nn.Parameter(torch.ones(4, 2, 3, 3))
    p.grad = torch.zeros_like(p)
    Muon([p], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(p.detach(), torch.full((4, 2, 3, 3), 1 - 0.1 * 0.5))
