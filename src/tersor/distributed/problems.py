"""Small distributed problems with known answers, on which methods separate within seconds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.errors import InvalidArgument


@dataclass(frozen=True)
class Quadratics:
    """``f_i(x) = x^T A_i x / 2 - b_i^T x`` for workers ``i``; heterogeneous through both ``A_i`` and ``b_i``.

    Attributes:
        matrices: ``[workers, d, d]``, symmetric.
        offsets: ``[workers, d]``.
        noise: Standard deviation of what is added to every entry of every gradient.
        seed: Draws the noise, with the step.
    """

    matrices: Tensor
    offsets: Tensor
    noise: float = 0.0
    seed: int = 0

    @classmethod
    def random(
        cls, workers: int, dimension: int, *, eigenvalues: tuple[float, float] = (1.0, 50.0), offset: float = 10.0, noise: float = 0.0,
        seed: int = 0,
    ) -> Quadratics:  # fmt: skip
        """Eigenvalues spread evenly over an interval in a random basis of each worker's own, and normal offsets of scale ``offset``.

        Raises:
            InvalidArgument: If the eigenvalues are not an interval above zero.
        """
        low, high = eigenvalues
        if not 0 < low <= high:
            raise InvalidArgument(f"eigenvalues must be an interval above 0, got {eigenvalues}")
        generator = torch.Generator().manual_seed(seed)
        bases = torch.linalg.qr(torch.randn(workers, dimension, dimension, generator=generator, dtype=torch.float64)).Q
        spread = torch.linspace(low, high, dimension, dtype=torch.float64)
        offsets = offset * torch.randn(workers, dimension, generator=generator, dtype=torch.float64)
        return cls((bases * spread) @ bases.mT, offsets, noise, seed)

    @classmethod
    def diverging(cls) -> Quadratics:
        """Three workers in three dimensions, ``f_i(x) = <a_i, x>^2 + |x|^2 / 4`` with ``a = (-3, 2, 2)`` and its rotations.

        From a multiple of ones, the largest entry of each gradient points the wrong way: compressed SGD with Top-1 multiplies ``x`` by
        ``1 + 11 lr / 6`` a step, where every mode with a memory converges to zero.

        Reference:
            Beznosikov, Horváth, Richtárik, Safaryan: "On Biased Compression for Distributed Learning", 2023.
        """
        rows = torch.tensor([[-3.0, 2, 2], [2, -3, 2], [2, 2, -3]], dtype=torch.float64)
        matrices = 2 * rows[:, :, None] * rows[:, None, :] + 0.5 * torch.eye(3, dtype=torch.float64)
        return cls(matrices, torch.zeros_like(rows))

    @property
    def solution(self) -> Tensor:
        """The minimiser of the mean, ``[d]``."""
        solution: Tensor = torch.linalg.solve(self.matrices.mean(0), self.offsets.mean(0))
        return solution

    def gradients(self, parameters: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """Every worker's gradient at the parameter ``"x"``, ``{"x": [workers, d]}``."""
        exact = self.matrices @ parameters["x"] - self.offsets
        if not self.noise:
            return {"x": exact}
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step + 1)
        return {"x": exact + self.noise * torch.randn(exact.shape, generator=generator, dtype=exact.dtype)}

    def distance(self, parameters: dict[str, Tensor]) -> float:
        """Squared distance of ``"x"`` to the solution."""
        return float((parameters["x"] - self.solution).square().sum())


@dataclass(frozen=True)
class Logistic:
    """Regularised logistic regression whose workers see different features and different labels.

    Attributes:
        features: ``[workers, samples, d]``.
        labels: ``[workers, samples]``, 1 or -1.
        ridge: Strength of ``ridge * |x|^2 / 2``.
    """

    features: Tensor
    labels: Tensor
    ridge: float = 0.01

    @classmethod
    def random(cls, workers: int, samples: int, dimension: int, *, shift: float = 2.0, ridge: float = 0.01, seed: int = 0) -> Logistic:
        """Each worker's samples lie around a centre of its own and are labelled by a separator of its own."""
        generator = torch.Generator().manual_seed(seed)
        centres = shift * torch.randn(workers, 1, dimension, generator=generator, dtype=torch.float64)
        features = centres + torch.randn(workers, samples, dimension, generator=generator, dtype=torch.float64)
        separators = torch.randn(workers, dimension, 1, generator=generator, dtype=torch.float64)
        labels = torch.sign((features - centres) @ separators)[..., 0]
        return cls(features / dimension**0.5, labels, ridge)

    def gradients(self, parameters: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """Every worker's full gradient at the parameter ``"x"``, ``{"x": [workers, d]}``."""
        margins = self.labels * (self.features @ parameters["x"])
        weights = -self.labels * torch.sigmoid(-margins) / self.labels.shape[1]
        return {"x": (weights[:, None] @ self.features)[:, 0] + self.ridge * parameters["x"]}

    @property
    def solution(self) -> Tensor:
        """The minimiser of the mean, ``[d]``, by Newton's method."""
        dimension = self.features.shape[2]
        x = torch.zeros(dimension, dtype=self.features.dtype)
        flat, labels = self.features.flatten(0, 1), self.labels.flatten()
        for step in range(100):
            gradient = self.gradients({"x": x}, step)["x"].mean(0)
            slope = torch.sigmoid(labels * (flat @ x))
            hessian = (flat.T * (slope * (1 - slope))) @ flat / len(labels) + self.ridge * torch.eye(dimension, dtype=x.dtype)
            x = x - torch.linalg.solve(hessian, gradient)
            if float(gradient.norm()) < 1e-14:
                break
        return x

    def distance(self, parameters: dict[str, Tensor]) -> float:
        """Squared distance of ``"x"`` to the solution."""
        return float((parameters["x"] - self.solution).square().sum())
