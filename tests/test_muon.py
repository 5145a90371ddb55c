import pytest
import torch
from torch import nn

from training.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(16, 144), (144, 16), (8, 8)])
def test_orthogonalise_keeps_the_singular_vectors_and_evens_out_the_values(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, before, v = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.T @ orthogonalise(matrix[None], iterations=8)[0] @ v.T  # in the matrix's own singular vectors: diagonal
    after = inside.diagonal()
    torch.testing.assert_close(inside, after.diag(), atol=1e-4, rtol=0)
    assert before.max() / before.min() > after.max() / after.min()
    assert 0.6 < after.min() < after.max() < 1.3


def test_a_stack_of_matrices_is_each_by_itself_and_zero_stays_zero():
    torch.manual_seed(0)
    matrices = torch.randn(4, 6, 9) * torch.tensor([1e-3, 1.0, 0.0, 1e3])[:, None, None]
    together = orthogonalise(matrices)
    torch.testing.assert_close(together, torch.cat([orthogonalise(matrix[None]) for matrix in matrices]))
    assert together[2].eq(0).all()


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


@pytest.mark.parametrize(("shape", "further"), [((32, 8), 2), ((8, 32), 1)])
def test_a_tall_matrix_steps_further_by_the_root_of_its_ratio(shape, further):
    torch.manual_seed(0)
    p = nn.Parameter(torch.zeros(shape))
    p.grad = torch.randn_like(p)
    Muon([p], lr=0.1, iterations=8).step()
    assert 0.6 < torch.linalg.matrix_norm(p.detach(), 2) / (0.1 * further) < 1.3


def test_parameters_together_move_as_each_would_alone():
    """Of equal and of different shapes, in both memory formats, over two steps; one has no gradient."""

    def kernels() -> list[nn.Parameter]:
        torch.manual_seed(0)
        shapes = [(8, 2, 3, 3), (8, 2, 3, 3), (4, 8, 3, 3), (6, 10), (5, 5)]
        values = [torch.randn(shape) for shape in shapes]
        values[1] = values[1].to(memory_format=torch.channels_last)
        return [nn.Parameter(value) for value in values]

    together, alone = kernels(), kernels()
    muons = [Muon(together, lr=0.1, weight_decay=0.1), *(Muon([p], lr=0.1, weight_decay=0.1) for p in alone)]
    for _ in range(2):
        for p, q in zip(together[:-1], alone[:-1], strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for muon in muons:
            muon.step()
    for p, q in zip(together, alone, strict=True):
        torch.testing.assert_close(p.detach(), q.detach())
    torch.testing.assert_close(together[-1].detach(), kernels()[-1].detach())  # no gradient: as it was


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
