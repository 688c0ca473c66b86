"""How far a student's distribution over the next token is from its teacher's, summed over the whole vocabulary.

They must not know networks. Invariant: a divergence is 0 where the two agree and positive elsewhere, and its gradient
reaches the student alone. N tokens, V vocabulary.
"""

from collections.abc import Callable

from torch import Tensor


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ_v p_v (log p_v − log q_v), with the teacher p and the student q.

    Hinton et al., arXiv 1503.02531, section 2, whose cross-entropy with soft targets differs from it by the teacher's
    entropy, a constant.

    Args:
        student: (N, V) log q.
        teacher: (N, V) log p, without gradient.

    Returns:
        (N,) nats.
    """
    return (teacher.exp() * (teacher - student)).sum(dim=-1)


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(q ‖ p) = Σ_v q_v (log q_v − log p_v): MiniLLM, arXiv 2306.08543, equation 1, of each token by itself.

    Shapes as in `forward_kl`.
    """
    return (student.exp() * (student - teacher)).sum(dim=-1)


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"forward": forward_kl, "reverse": reverse_kl}
