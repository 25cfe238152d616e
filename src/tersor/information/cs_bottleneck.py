"""A regressor whose representation keeps as little of the input as predicting takes, as a scikit-learn estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, RegressorMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from tersor.errors import InvalidArgument
from tersor.information.cauchy_schwarz import (
    ConditionalEstimator,
    Width,
    cs_bottleneck_loss,
    effective_neighbours,
    kernel_width,
    normalised_cs_information,
)
from tersor.layerwise.checking import check_choice, check_integer, check_number

# Samples that widths by rule and the information plane are computed on at once.
_BATCH_FOR_STATISTICS = 1000


class CSBottleneck(RegressorMixin, TransformerMixin, BaseEstimator):
    """Regression through an information bottleneck, fitted by Cauchy-Schwarz divergences instead of squared errors and variational bounds.

    A network ``x -> t -> y_hat`` minimises ``D(p(y|x); q(y_hat|x)) + beta I(x; t)``, both estimated by kernels on batches of standardised
    data. Use it instead of a network fitted to squared errors where the representation has to keep little of the input, as one that is sent
    or stored; as a plain regressor, or against attacked inputs, it was no better in our experiment.

    Args:
        beta: Weight of the compression; 0 for none. Choose it on data that is split off.
        hidden_size: Units of the two hidden layers of the encoder and the one of the decoder.
        code_size: Features of the representation.
        width_x: Of the kernel on standardised inputs, see :func:`~tersor.information.kernel_width`. What matters most: check
            ``neighbours_``, about 1.5 to 10 is sound. In tens of dimensions use ``"nearest"``.
        width_t: Of the kernel on representations.
        width_y: Of the kernel on standardised targets.
        estimator: ``"psd"`` or ``"paper"``, see :func:`~tersor.information.cs_conditional`.
        epochs: Passes over the data.
        warm_up: Of these, the first with squared errors: far from the targets the kernel has no gradient.
        batch_size: Samples that are compared with each other in a step.
        learning_rate: Of Adam; multiplied by 0.6 ten times over the training.
        random_state: Seed of the initial weights and the batches; ``None`` for another at each fit.

    Attributes:
        encoder_: ``x -> t`` on standardised inputs, in float64.
        decoder_: ``t -> y_hat`` in units of the standardised targets.
        neighbours_: Samples of a batch that the kernel on inputs averages over.
        widths_: Widths in use for inputs and targets, by ``"x"`` and ``"y"``.
        n_features_in_: Features of the input.

    Reference:
        Yu, Yu, Lokse, Jenssen, Principe: "Cauchy-Schwarz Divergence Information Bottleneck for Regression", 2024.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(200, 3))
        >>> CSBottleneck(epochs=40).fit(x, x[:, 0] - x[:, 1]).score(x, x[:, 0] - x[:, 1]) > 0.9
        True
    """

    def __init__(
        self, beta: float = 1e-3, hidden_size: int = 64, code_size: int = 16, *,
        width_x: Width = 1.0, width_t: Width = 1.0, width_y: Width = 1.0, estimator: ConditionalEstimator = "psd",
        epochs: int = 100, warm_up: int = 5, batch_size: int = 128, learning_rate: float = 3e-3,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:  # fmt: skip
        self.beta = beta
        self.hidden_size = hidden_size
        self.code_size = code_size
        self.width_x = width_x
        self.width_t = width_t
        self.width_y = width_y
        self.estimator = estimator
        self.epochs = epochs
        self.warm_up = warm_up
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> CSBottleneck:
        """Train on inputs ``X`` ``[n, d]`` and targets ``y`` ``[n]`` or ``[n, m]``."""
        inputs, targets = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True, ensure_min_samples=2)
        self._check_options()
        random = torch.Generator().manual_seed(self._seed())
        self._scale(inputs, targets)
        x, t = self._standardised(inputs), torch.from_numpy((targets.reshape(len(targets), -1) - self._target_mean) / self._target_scale)
        d, m = x.shape[1], t.shape[1]
        self.encoder_ = nn.Sequential(
            _linear(d, self.hidden_size, random), nn.ReLU(), _linear(self.hidden_size, self.hidden_size, random), nn.ReLU(),
            _linear(self.hidden_size, self.code_size, random),
        )  # fmt: skip
        self.decoder_ = nn.Sequential(_linear(self.code_size, self.hidden_size, random), nn.ReLU(), _linear(self.hidden_size, m, random))
        sample = torch.randperm(len(x), generator=random)[:_BATCH_FOR_STATISTICS]
        self.widths_ = {"x": kernel_width(x[sample], self.width_x), "y": kernel_width(t[sample], self.width_y)}
        self.neighbours_ = effective_neighbours(x[: self.batch_size], self.widths_["x"])
        self._train(x, t, random)
        return self

    def predict(self, X: Any) -> np.ndarray[Any, Any]:
        """Predictions ``[n]``, or ``[n, m]`` if the targets were a matrix, for ``X`` ``[n, d]``."""
        predicted = self._decoded(self._encoded(X)).numpy() * self._target_scale + self._target_mean
        return predicted if self._matrix_target else predicted[:, 0]

    def transform(self, X: Any) -> np.ndarray[Any, Any]:
        """Representations ``[n, code_size]`` of ``X`` ``[n, d]``."""
        codes: np.ndarray[Any, Any] = self._encoded(X).numpy()
        return codes

    def information_plane(self, X: Any, y: Any) -> tuple[float, float]:
        """Where the fitted network stands: what its representation keeps of the input, and what it says of the target.

        Args:
            X: ``[n, d]``, such as held-out data.
            y: ``[n]`` or ``[n, m]``.

        Returns:
            The normalised Cauchy-Schwarz information of input and representation, averaged over batches, from 0 to 1; and
            ``0.5 log2(var(y) / mse)`` bits.
        """
        codes, x = self._encoded(X), self._standardised(validate_data(self, X, dtype=np.float64, reset=False))
        size = min(_BATCH_FOR_STATISTICS, self.batch_size)
        parts = [
            float(normalised_cs_information(part, code, width_x=self.widths_["x"], width_t=self.width_t))
            for part, code in zip(x.split(size), codes.split(size), strict=True) if len(part) > 1
        ]  # fmt: skip
        truth = np.asarray(y, dtype=np.float64).reshape(len(codes), -1)
        error = np.square(truth - self.predict(X).reshape(truth.shape)).mean()
        return sum(parts) / len(parts), float(0.5 * np.log2(truth.var(0).mean() / max(error, np.finfo(float).tiny)))

    def gradient(self, X: Any, y: Any) -> np.ndarray[Any, Any]:
        """Gradient ``[n, d]`` of each sample's squared error by its standardised input: what an adversary with full knowledge follows."""
        x = self._standardised(validate_data(self, X, dtype=np.float64, reset=False)).requires_grad_(True)
        truth = torch.from_numpy((np.asarray(y, dtype=np.float64).reshape(len(x), -1) - self._target_mean) / self._target_scale)
        (slopes,) = torch.autograd.grad((self.decoder_(self.encoder_(x)) - truth).square().sum(), x)
        return slopes.numpy()

    def attack(self, X: Any, y: Any, epsilon: float, *, step: float | None = None, iterations: int = 1) -> np.ndarray[Any, Any]:
        """Inputs that an adversary with full knowledge makes of ``X``: no feature moves by more than ``epsilon``.

        With one iteration this is the fast gradient sign method; with more and a smaller step, projected gradient ascent on the squared
        error from ``X`` itself, without a random start.

        Args:
            X: ``[n, d]``.
            y: ``[n]`` or ``[n, m]``.
            epsilon: In the unit of ``X``; standardise inputs whose features differ in scale.
            step: Of each iteration; all of ``epsilon`` unless given.
            iterations: Steps.

        Returns:
            ``[n, d]``.

        Raises:
            InvalidArgument: On a negative ``epsilon`` or ``step``, or less than one iteration.

        Reference:
            Goodfellow, Shlens, Szegedy: "Explaining and Harnessing Adversarial Examples", 2015.
            Madry, Makelov, Schmidt, Tsipras, Vladu: "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018.
        """
        check_number("epsilon", epsilon, 0.0)
        length = epsilon if step is None else check_number("step", step, 0.0)
        check_integer("iterations", iterations, 1)
        check_is_fitted(self)
        start = validate_data(self, X, dtype=np.float64, reset=False)
        moved = np.zeros_like(start)
        for _ in range(iterations):
            # Standardising an input does not change the sign of its slope.
            moved = np.clip(moved + length * np.sign(self.gradient(start + moved, y)), -epsilon, epsilon)
        attacked: np.ndarray[Any, Any] = start + moved
        return attacked

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _train(self, x: Tensor, y: Tensor, random: torch.Generator) -> None:
        parameters = [*self.encoder_.parameters(), *self.decoder_.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, max(-(-self.epochs // 10), 1), 0.6)
        for epoch in range(self.epochs):
            for rows in torch.randperm(len(x), generator=random).split(self.batch_size):
                optimizer.zero_grad()
                # A batch of one sample has nothing to be compared with.
                self._loss(x[rows], y[rows], squared=epoch < self.warm_up or len(rows) < 2).backward()
                optimizer.step()
            schedule.step()
        for parameter in parameters:
            parameter.requires_grad_(False)

    def _loss(self, x: Tensor, y: Tensor, squared: bool) -> Tensor:
        t = self.encoder_(x)
        y_hat = self.decoder_(t)
        if squared:
            return (y_hat - y).square().mean()
        return cs_bottleneck_loss(
            x, t, y, y_hat, beta=self.beta, estimator=self.estimator,
            width_x=self.widths_["x"], width_t=self.width_t, width_y=self.widths_["y"],
        )  # fmt: skip

    def _encoded(self, inputs: Any) -> Tensor:
        check_is_fitted(self)
        with torch.no_grad():
            codes: Tensor = self.encoder_(self._standardised(validate_data(self, inputs, dtype=np.float64, reset=False)))
        return codes

    def _decoded(self, codes: Tensor) -> Tensor:
        with torch.no_grad():
            predicted: Tensor = self.decoder_(codes)
        return predicted

    def _scale(self, inputs: np.ndarray[Any, Any], targets: np.ndarray[Any, Any]) -> None:
        self._matrix_target = targets.ndim == 2
        matrix = targets.reshape(len(targets), -1)
        self._input_mean, self._target_mean = inputs.mean(0), matrix.mean(0)
        self._input_scale, self._target_scale = (np.where((scale := values.std(0)) > 0, scale, 1.0) for values in (inputs, matrix))

    def _standardised(self, inputs: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy((inputs - self._input_mean) / self._input_scale)

    def _seed(self) -> int:
        if self.random_state is None:
            fresh = np.random.default_rng()
            return int(fresh.integers(2**31))
        if isinstance(self.random_state, np.random.RandomState):
            return int(self.random_state.randint(2**31 - 1))
        return int(self.random_state)

    def _check_options(self) -> None:
        check_number("beta", self.beta, 0.0)
        for name in ("hidden_size", "code_size", "epochs", "batch_size"):
            check_integer(name, getattr(self, name), 1)
        check_integer("warm_up", self.warm_up, 0)
        check_choice("estimator", self.estimator, ConditionalEstimator)
        if check_number("learning_rate", self.learning_rate, 0.0) <= 0:
            raise InvalidArgument(f"learning_rate must be positive, got {self.learning_rate!r}")


def _linear(inputs: int, outputs: int, random: torch.Generator) -> nn.Linear:
    """A linear layer with PyTorch's own initial distribution, drawn from ``random`` instead of the global generator."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=torch.float64)
    bound = inputs**-0.5
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_((2 * torch.rand(parameter.shape, generator=random, dtype=torch.float64) - 1) * bound)
    return layer
