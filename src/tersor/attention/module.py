"""Tensor attention as a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tersor.attention.tensor import Method, higher_order_attention
from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_integer


class TensorAttention(nn.Module):
    """A mixer of tokens in which every query attends to tuples of keys; a drop-in for self-attention in small networks.

    Args:
        dim: Features of a token.
        heads: Divides ``dim``.
        order: Keys of a tuple; 2 has five projections, one for queries and two each for keys and values, beside that of the output.
        method: See :func:`~tersor.attention.tensor_attention`; ``"poly"`` needs heads of few features and small logits.
        degree: Likewise.
        eps: Likewise.
        generator: Of the initial weights; the global one unless given, as for every layer of torch.

    Raises:
        InvalidArgument: If ``heads`` does not divide ``dim``.

    Example:
        >>> import torch
        >>> layer = TensorAttention(dim=8, heads=2, generator=torch.Generator().manual_seed(0))
        >>> layer(torch.ones(1, 5, 8)).shape
        torch.Size([1, 5, 8])

    Reference:
        Alman, Song: "How to Capture Higher-order Correlations? Generalizing Matrix Softmax Attention to Kronecker Computation", 2024.
    """

    def __init__(
        self, dim: int, heads: int = 1, order: int = 2, *, method: Method = "auto", degree: int | None = None, eps: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        for name, value in (("dim", dim), ("heads", heads), ("order", order)):
            check_integer(name, value, 1)
        if dim % heads:
            raise InvalidArgument(f"heads {heads} does not divide the {dim} features of a token")
        self.heads, self.order, self.method, self.degree, self.eps = heads, order, method, degree, eps
        self.query = nn.Linear(dim, dim)
        self.keys = nn.ModuleList(nn.Linear(dim, dim) for _ in range(order))
        self.values = nn.ModuleList(nn.Linear(dim, dim) for _ in range(order))
        self.output = nn.Linear(dim, dim)
        if generator is not None:
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -(dim**-0.5), dim**-0.5, generator=generator)

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Mix tokens.

        Args:
            x: ``[batch, tokens, dim]``.
            mask: Tokens that may be attended to, bool ``[batch, tokens]``.
            causal: Whether a token sees those up to itself alone.
        """
        q, *others = (self._split(layer(x)) for layer in (self.query, *self.keys, *self.values))
        shown = None if mask is None else mask[:, None].expand(-1, self.heads, -1)
        mixed = higher_order_attention(
            q, others[: self.order], others[self.order :], method=self.method, degree=self.degree, eps=self.eps, mask=shown, causal=causal,
        )  # fmt: skip
        made: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return made

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
