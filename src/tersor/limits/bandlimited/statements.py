"""What ``tersor limits`` says about networks with random weights of a bounded band."""

from __future__ import annotations

import math

import numpy as np

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_number
from tersor.limits.bandlimited.bounds import cosine_tail, gaussian_tail, norm_budget, parseval_frame, truncation_error
from tersor.limits.bandlimited.features import draw_parameters, evaluate_features, mean_gram
from tersor.limits.bandlimited.ridgelet import band_error, ridgelet_network
from tersor.limits.registry import Bound, Measurement

_PAPER = "bandlimited-networks"
_POINTS = np.linspace(-1, 1, 160)
_FLAG = (
    "with unbounded coefficients and an analytic activation the span of any open band is dense on a bounded domain, so the abstract's "
    "'cannot approximate' can only mean canonical coefficients, bounded coefficients, or the whole line"
)


def _target(frequency: float) -> np.ndarray:
    return np.sin(frequency * _POINTS) * np.exp(-(_POINTS**2))


def _budget(bandwidth: float = 2.0, frequency: float = 20.0, radius: float = 100.0) -> float:
    check_number("bandwidth", bandwidth, math.ulp(0.0))
    check_number("frequency", frequency, math.ulp(0.0))
    values = _target(frequency)
    gram = mean_gram(_POINTS[:, None], bandwidth=bandwidth, samples=4096)
    return norm_budget(gram, values, radius) / float(np.sqrt((values**2).mean()))


def _measure_budget() -> list[Measurement]:
    values, rows = _target(20.0), []
    size = float(np.sqrt((values**2).mean()))
    for bandwidth in (2.0, 10.0):
        for width in (50, 200):
            random = np.random.default_rng(0)
            features = evaluate_features(_POINTS[:, None], *draw_parameters(_POINTS[:, None], width, bandwidth, "band", random), "tanh")
            coefficients = np.linalg.lstsq(features, values, rcond=1e-6)[0]
            error = float(np.sqrt(((features @ coefficients - values) ** 2).mean())) / size
            norm = math.sqrt(width) * float(np.linalg.norm(coefficients))
            bound = norm_budget(features @ features.T / width, values, norm) / size
            rows.append(
                {"system": f"tanh, band {bandwidth:g}, width {width}", "measured": error, "side": "at least", "bound": bound, "norm": norm}
            )
    return rows


def _parseval(energy: float = 0.25) -> dict[str, float]:
    if not 0 <= energy <= 1:
        raise InvalidArgument(f"energy must be a fraction from 0 to 1, got {energy!r}")
    return {"at least": energy, "at most": math.sqrt(energy)}


def _measure_parseval() -> list[Measurement]:
    random, rows = np.random.default_rng(0), []
    weights, biases = draw_parameters(_POINTS[:, None], 1200, 60.0, "data", random)
    frame = parseval_frame(evaluate_features(_POINTS[:, None], weights, biases, "relu") + 1e-3 * random.standard_normal((160, 1200)))
    values = _target(20.0)
    for bandwidth in (5.0, 20.0, 40.0):
        kept = np.abs(weights[0]) <= bandwidth
        error = truncation_error(frame, values, kept)
        outside = (frame @ values)[~kept]
        energy = float(outside @ outside / (values @ values))
        rows.append({"system": f"|a| <= {bandwidth:g}", "measured": error, "side": "at least", "bound": energy})
        rows.append({"system": f"|a| <= {bandwidth:g}", "measured": error, "side": "at most", "bound": math.sqrt(energy)})
    return rows


def _measure_tail() -> list[Measurement]:
    spacing = 0.02
    x = np.arange(-1024, 1024) * spacing
    values, rows = np.cos(20 * x) * np.exp(-(x**2) / 2), []
    for band in (10.0, 18.0, 25.0):
        # Cosines of the band under a wide window, which adds a little to the band.
        window = np.exp(-(x**2) / 2 / 3.0**2)
        frequencies = np.linspace(0, band, 120)
        basis = window[:, None] * np.cos(x[:, None] * frequencies)
        fitted = basis @ np.linalg.lstsq(basis, values, rcond=1e-10)[0]
        error = float(np.linalg.norm(fitted - values) / np.linalg.norm(values))
        rows.append(
            {"system": f"cosines up to {band:g}", "measured": error, "side": "at least", "bound": cosine_tail(values, spacing, band + 3.0)}
        )
    return rows


_LINE = np.linspace(-8, 8, 321)


def _windowed(frequency: float) -> np.ndarray:
    return np.cos(frequency * _LINE) * np.exp(-(_LINE**2) / 2)


def _ridgelet(bandwidth: float = 8.0, frequency: float = 4.0, activation: str = "tanh") -> dict[str, float]:
    check_number("frequency", frequency, 0.0, 40.0)
    error, energy = band_error(_windowed(frequency), float(_LINE[1] - _LINE[0]), bandwidth, activation)  # type: ignore[arg-type]
    return {"bound": error, "at least": energy, "at most": math.sqrt(energy)}


def _measure_ridgelet() -> list[Measurement]:
    values, spacing, rows = _windowed(4.0), float(_LINE[1] - _LINE[0]), []
    for bandwidth in (6.0, 10.0):
        error, _ = band_error(values, spacing, bandwidth, "gauss")
        for width in (200, 1000):
            nets = (
                ridgelet_network(_LINE[:, None], values, spacing, bandwidth=bandwidth, width=width, activation="gauss", seed=seed)
                for seed in range(8)
            )
            found = math.sqrt(float(np.mean([((net(_LINE[:, None]) - values) ** 2).sum() for net in nets])) / float(values @ values))
            name = f"gauss, band {bandwidth:g}, {width} units, mean square of 8 networks"
            rows.append({"system": name, "measured": found, "side": "at least", "bound": error})
    return rows


LIMITS = (
    Bound(
        name="bandlimited-norm-budget",
        statement="A network with frozen weights of a bounded band, whose read-out has a norm of at most R, has at least this relative "
        "error on sin(w x) exp(-x^2) over [-1, 1].",
        assumptions=[
            "the norm is sqrt(width) |c|; here at infinite width, tanh, weights and biases uniform in the band",
            "limits.bandlimited.norm_budget takes the gram matrix of any features and any target",
        ],
        proven=["here: projection on a ball, exact on the given points for the given features", "the paper's theorem was not available"],
        formula="sqrt(sum_i (f_i v/(mu_i + v))^2) with v >= 0 such that sum_i f_i^2 mu_i/(mu_i + v)^2 = R^2",
        correction=_FLAG, calculator=_budget, measure=_measure_budget, paper=_PAPER,
    ),
    Bound(
        name="bandlimited-parseval",
        statement="If a fraction E of the energy of a function's canonical (ridgelet) coefficients lies outside of the band, "
        "dropping them leaves a relative error between E and sqrt(E).",
        assumptions=["a Parseval frame and its canonical coefficients; other coefficients of the same band may do better"],
        proven=["here: |R^T 1_out R f| >= <f, R^T 1_out R f>/|f|, and |R^T| <= 1"],
        formula="E <= |f - R^T 1_V R f| / |f| <= sqrt(E),  E = |1_out R f|^2 / |f|^2",
        correction=_FLAG, calculator=_parseval, measure=_measure_parseval, paper=_PAPER,
    ),
    Bound(
        name="bandlimited-ridgelet",
        statement="A network of infinite width whose coefficients are the ridgelet transform of a function, cut to a band of the weights, "
        "has exactly this relative error on cos(w x) exp(-x^2/2); one with units drawn from the band has more in the mean.",
        assumptions=[
            "weights |a| <= bandwidth, all biases; activation tanh, relu, gauss or cos; squared error on the whole line",
            "the coefficients of the transform: fitted ones of the same band do better, see bandlimited-norm-budget",
        ],
        proven=["here: in the spectrum the cut transform multiplies f by M(|w|/bandwidth), 0 <= M <= 1", "Sonoda, Murata 2017: no cut"],
        formula="|f - S 1_V R f|^2 = sum_w |f^(w)|^2 (1 - M)^2,  M(t) = share of A(z) |z|^-d beyond t, A the product of both spectra;  "
        "E <= error <= sqrt(E),  E = sum_w |f^(w)|^2 (1 - M) / |f|^2",
        correction=_FLAG, calculator=_ridgelet, measure=_measure_ridgelet, paper=_PAPER,
    ),
    Bound(
        name="bandlimited-cosine",
        statement="On the whole line no network of any width whose spectrum ends at the cutoff has a relative error below this for "
        "cos(w x) exp(-x^2/(2 s^2)).",
        assumptions=["activation with a bounded spectrum, such as cos; squared error on the whole line, not on an interval"],
        proven=["here: Plancherel"],
        formula="sqrt(energy beyond the cutoff / energy);  cutoff = bandwidth times the edge of the activation's own spectrum",
        correction=_FLAG, calculator=gaussian_tail, measure=_measure_tail, paper=_PAPER,
    ),
)  # fmt: skip
