"""Retrieval in which everything of the right digit is right, and ties count with their mean over all orders.

Equal captions have equal embeddings, so that which of them comes first is chance; what is returned here is the exact
mean over those chances. N items are ranked by similarity, `relevant` [N] says which of them are right. Values in 0..1.
"""

import numpy as np
import torch
from torch import Tensor


def average_precision(similarity: Tensor, relevant: Tensor) -> Tensor:
    """Mean, over the R right items, of the precision at each one's rank. similarity [..., N], relevant [N] -> [...].

    An item that ties with g - 1 others, m - 1 of them right, below n items, r of them right, has the rank n + j with
    chance 1/g for each j = 1 ... g, and then on average a (j - 1) right ones of its tie before it, a = (m - 1)/(g - 1).
    The precision there is (r + 1 + a (j - 1)) / (n + j); its mean over j needs harmonic numbers only.
    """
    ranked, right = ascending(similarity), ascending(similarity[..., relevant])
    above, tied = above_and_tied(ranked, right)  # n and g, [..., R]
    right_above, right_tied = above_and_tied(right, right)  # r and m
    counts = torch.arange(1, similarity.shape[-1] + 1, dtype=torch.double, device=similarity.device)
    harmonic = torch.cat([counts.new_zeros(1), counts.reciprocal().cumsum(0)])  # 0, 1, 1 + 1/2, ...
    a = (right_tied - 1) / (tied - 1).clamp(min=1).double()
    mean_reciprocal = (harmonic[above + tied] - harmonic[above]) / tied  # of the rank
    return (a + (right_above + 1 - a * (above + 1)) * mean_reciprocal).mean(dim=-1)


def ascending(x: Tensor) -> Tensor:
    """Sorted along the last dimension. numpy sorts values alone: on a CPU three times as fast as torch with indices."""
    return torch.from_numpy(np.sort(x.cpu().numpy())).to(x.device)


def above_and_tied(ranked: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """How many of `ranked` [..., N], ascending, are larger than each of `values` [..., R], and how many equal."""
    end = torch.searchsorted(ranked, values, right=True)
    return ranked.shape[-1] - end, end - torch.searchsorted(ranked, values)


def precision_at_k(similarity: Tensor, relevant: Tensor, k: int) -> Tensor:
    """Share of right items among the k most similar. similarity [..., N], relevant [N], k <= N -> [...]."""
    last = similarity.topk(k).values[..., -1:]  # items that tie with the last place share what places are left
    above, tied = similarity > last, similarity == last
    places = k - above.sum(dim=-1)
    tied_right = (tied & relevant).sum(dim=-1) / tied.sum(dim=-1)
    return ((above & relevant).sum(dim=-1) + places * tied_right) / k


def recall_at_k(similarity: Tensor, relevant: Tensor, k: int) -> Tensor:
    """Whether a right item is among the k most similar, or the chance of that. Both [..., N] -> [...].

    Several texts of one caption are all right, and the first of them decides.
    """
    best = similarity.masked_fill(~relevant, -torch.inf).amax(dim=-1, keepdim=True)
    above = (similarity > best).sum(dim=-1)
    tied, right = (similarity == best).sum(dim=-1).double(), ((similarity == best) & relevant).sum(dim=-1)
    places = (k - above).clamp(min=0).minimum(tied)
    # All places go to wrong ones in C(tied - right, places) of C(tied, places) cases; none where there are too few.
    wrong = tied - right
    log_miss = log_choose(wrong, places.minimum(wrong)) - log_choose(tied, places)
    return 1 - log_miss.exp() * (places <= wrong)


def log_choose(n: Tensor, k: Tensor) -> Tensor:
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def text_to_image_precision(similarity: Tensor, labels: Tensor) -> float:
    """R-precision of text -> image: of the n images that a digit has, the share among the caption's n best images.

    Every image of the digit is right. Over all digits, weighted by n. similarity [N, 10], labels [N].
    """
    right = 0.0
    for digit in labels.unique():
        relevant = labels == digit
        n = int(relevant.sum())
        right += n * precision_at_k(similarity[:, digit], relevant, n).item()
    return right / len(labels)


def mean_average_precision(similarity: Tensor, labels: Tensor) -> float:
    """Text -> image: the mean over the digits' captions. similarity [N, 10], labels [N]."""
    captions = [average_precision(similarity[:, digit], labels == digit) for digit in labels.unique()]
    return torch.stack(captions).mean().item()


def image_to_image_mean_average_precision(features: Tensor, labels: Tensor) -> float:
    """Each image asks for the others of its digit among all others. features [N, embed_dim], labels [N].

    A digit's queries at a time: memory for N/10 rows of N. A digit with one image asks nothing.
    """
    precisions = []
    for digit in labels.unique():
        own, others = features[labels == digit], features[labels != digit]
        n = len(own)
        if n < 2:
            continue
        # Laid out in one row, each n + 1 numbers of the square begin with one of the diagonal, which goes.
        without_self = (own @ own.T).flatten()[1:].view(n - 1, n + 1)[:, :-1].reshape(n, n - 1)
        similarity = torch.cat([without_self, own @ others.T], dim=1)  # [n, N - 1]
        precisions.append(average_precision(similarity, torch.arange(len(labels) - 1, device=labels.device) < n - 1))
    return torch.cat(precisions).mean().item()
