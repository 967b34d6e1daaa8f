"""A stop group: several ids that mean "the answer ends" are one class, carried by the first of them (arXiv 2609.20511).

Its probability is the sum of theirs. The others have no mass: their logit is `ABSENT`, not minus infinity, so that
0 times it is 0 in entropies, divergences and gradients.
Shapes: N or C tokens, V vocabulary, G ids of the group, int64 [G].
"""

import torch
from torch import Tensor

ABSENT = -1e30
"""Logit, and log-probability, of a token without mass: exp of it is 0 in every type."""


def merge_(logits: Tensor, group: Tensor) -> Tensor:
    """In place, in logits [C, V]. Returns each member's share [C, G] of the class's probability."""
    members = logits[:, group]
    logits[:, group] = ABSENT
    logits[:, group[0]] = members.logsumexp(1)
    return members.softmax(1)


def spread_(grad: Tensor, group: Tensor, shares: Tensor) -> Tensor:
    """In place: the gradient [C, V] of the members' own logits, from that of the merged ones. d logsumexp / d logit is
    the member's share."""
    grad[:, group] = grad[:, group[:1]] * shares
    return grad


def class_of(ids: Tensor, group: tuple[int, ...]) -> Tensor:
    """The ids, int64 of any shape; a member of the group becomes its first id."""
    if not group:
        return ids
    return torch.where(torch.isin(ids, torch.tensor(group, device=ids.device)), group[0], ids)
