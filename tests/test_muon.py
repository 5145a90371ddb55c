import pytest
import torch
from torch import nn

from muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(16, 144), (144, 16), (8, 8)])
def test_orthogonalise_keeps_the_singular_vectors_and_evens_out_the_values(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, before, v = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.T @ orthogonalise(matrix, iterations=8) @ v.T  # in the matrix's own singular vectors: diagonal
    after = inside.diagonal()
    torch.testing.assert_close(inside, after.diag(), atol=1e-4, rtol=0)
    assert before.max() / before.min() > after.max() / after.min()
    assert 0.6 < after.min() < after.max() < 1.3


def test_a_zero_gradient_moves_nothing_but_by_weight_decay():
    p = nn.Parameter(torch.ones(4, 2, 3, 3))
    p.grad = torch.zeros_like(p)
    Muon([p], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(p.detach(), torch.full((4, 2, 3, 3), 1 - 0.1 * 0.5))


def test_a_step_has_the_spectral_norm_of_the_learning_rate_whatever_the_gradients_size():
    for scale in (1e-3, 1e3):
        torch.manual_seed(0)
        p = nn.Parameter(torch.zeros(8, 2, 3, 3).to(memory_format=torch.channels_last))
        p.grad = scale * torch.randn_like(p)
        Muon([p], lr=0.1, iterations=8).step()
        assert 0.06 < torch.linalg.matrix_norm(p.detach().flatten(1), 2) < 0.13


def test_momentum_is_nesterovs():
    p = nn.Parameter(torch.zeros(3, 3))
    muon = Muon([p], lr=1.0, momentum=0.5, iterations=0)  # without iterations: the update over its norm
    for gradient, expected in ((torch.eye(3), torch.eye(3)), (torch.zeros(3, 3), torch.eye(3))):
        # momentum .5 g, then .25 g; the update .75 g, then .125 g: each over its norm is eye / sqrt 3
        before = p.detach().clone()
        p.grad = gradient
        muon.step()
        torch.testing.assert_close(before - p.detach(), expected / 3**0.5)
    assert torch.allclose(muon.state[p]["momentum"], 0.25 * torch.eye(3))
