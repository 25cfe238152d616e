"""MEC-B: codes of limited entropy, couplings of little entropy, and messages sent through the moves of an agent in a grid world."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tersor.papers.frame import Paper, Result, Row

if TYPE_CHECKING:
    import numpy as np

PAPER = Paper(
    key="mec-b",
    claim="At every rate a code by entropy-bounded information maximisation tells more of the source than a uniform quantiser, greedy "
    "couplings have over a bit less entropy than independent ones, and in a coding game with unequal messages such codes are decoded more "
    "often at the same rates.",
    where="tersor.information.mec_b, tersor.information.ebim, tersor.information.mec, tersor.information.MarkovCodingGame",
)

SEEDS = (0, 1, 2)
RATES = (0.6, 0.3)
# Nats of entropy against reward: from a policy that hardly errs to one that wanders.
TEMPERATURES = (0.0025, 0.01)


@dataclass(frozen=True)
class Size:
    """How much work the experiment spends."""

    laws: int
    pairs: int
    messages: int
    episodes: int


FULL = Size(100, 100, 64, 120)
QUICK = Size(10, 20, 32, 16)


def run(quick: bool) -> Result:
    """Codes, couplings and games, each over three seeds."""
    size = QUICK if quick else FULL
    codes, couplings, games = list(_codes(size)), list(_couplings(size)), list(_games(size))
    margins = [*_code_margins(codes), *_coupling_margins(couplings), *_game_margins(games)]
    return Result(
        [*codes, *couplings, *games], "uniform quantiser at the same rate, the independent coupling and that of successive linear programs",
        min(margins), SEEDS, min(margins) > 0,
        ("random laws", "8 x 8 grid world"), [*_notes(codes, games), _above(couplings)],
    )  # fmt: skip


def _codes(size: Size) -> Iterator[Row]:
    """Information of the code over the rate, averaged over random laws; the guarantee checked on each of them."""
    import numpy as np

    from tersor.information import ebim, entropy, uniform_quantiser

    methods: dict[str, Any] = {
        "uniform quantiser": uniform_quantiser, "greedy": lambda p, rate: ebim(p, rate, close_gap=False), "greedy, gap closed": ebim,
    }  # fmt: skip
    for seed in SEEDS:
        random = np.random.default_rng(seed)
        laws = random.dirichlet(np.ones(32), size=size.laws)
        for share in RATES:
            rates = [share * entropy(p) for p in laws]
            for method, function in methods.items():
                told = [function(p, rate).information for p, rate in zip(laws, rates, strict=True)]
                short = [
                    rate - bits - entropy([second, 1 - second])
                    for p, rate, bits in zip(laws, rates, told, strict=True) if (second := float(np.sort(p)[-2])) > 0
                ]  # fmt: skip
                yield {
                    "part": "code", "method": method, "seed": seed, "rate": share, "bits": float(np.mean(told)),
                    "of_rate": float(np.mean(np.divide(told, rates))), "worst_beyond_guarantee": max(short),
                }  # fmt: skip


def _couplings(size: Size) -> Iterator[Row]:
    """Entropy of couplings of random laws above the larger of their entropies, which no coupling can be below."""
    import numpy as np

    from tersor.information import entropy, mec

    for seed in SEEDS:
        random = np.random.default_rng(seed)
        pairs = random.dirichlet(np.ones(16), size=(size.pairs, 2))
        bounds = [max(entropy(p), entropy(q)) for p, q in pairs]
        for method in ("independent", "sla", "max", "zero", "best"):
            found = [mec(p, q, method).entropy for p, q in pairs]
            excess = np.subtract(found, bounds)
            yield {"part": "coupling", "method": method, "seed": seed, "bits": float(np.mean(found)), "above_bound": float(excess.mean())}


def _games(size: Size) -> Iterator[Row]:
    import numpy as np

    from tersor.information import GridWorld

    process = GridWorld().process()
    ranks = np.arange(1, size.messages + 1)
    priors = {"equal": np.full(size.messages, 1 / size.messages), "zipf": (1 / ranks) / (1 / ranks).sum()}
    for seed in SEEDS:
        for name, prior in priors.items():
            for temperature in TEMPERATURES:
                yield _game(process, prior, 1.0, temperature, "none", size.episodes, seed) | {"prior": name}
                for rate in RATES:
                    for compressor in ("ebim", "uniform"):
                        yield _game(process, prior, rate, temperature, compressor, size.episodes, seed) | {"prior": name}


def _game(process: Any, prior: np.ndarray[Any, Any], rate: float, temperature: float, compressor: str, episodes: int, seed: int) -> Row:
    import numpy as np

    from tersor.information import Compressor, MarkovCodingGame

    chosen: Compressor = "uniform" if compressor == "uniform" else "ebim"
    game = MarkovCodingGame(process, prior, rate, temperature=temperature, compressor=chosen, longest=100)
    # The same messages and episode seeds for every compressor: what differs is the code.
    random = np.random.default_rng(seed)
    messages = random.choice(len(prior), size=episodes, p=prior)
    played = [game.play(int(message), seed=seed * episodes + number) for number, message in enumerate(messages)]
    rewards = np.array([episode.reward for episode in played])
    return {
        "part": "game", "method": compressor, "seed": seed, "rate": rate, "temperature": temperature,
        "accuracy": float(np.mean([episode.correct for episode in played])), "reward": float(rewards.mean()),
        "reward_stderr": float(rewards.std() / episodes**0.5), "steps": float(np.mean([len(episode.actions) for episode in played])),
        "bits_in_5_steps": float(np.mean([sum(episode.information[:5]) for episode in played])),
        "bits": float(np.mean([sum(episode.information) for episode in played])),
    }  # fmt: skip


def _code_margins(rows: list[Row]) -> Iterator[float]:
    """Bits told beyond the uniform quantiser, over the rate, by seed and rate."""
    for seed in SEEDS:
        for rate in RATES:
            found = {row["method"]: row["of_rate"] for row in rows if row["seed"] == seed and row["rate"] == rate}
            yield found["greedy, gap closed"] - found["uniform quantiser"]


def _coupling_margins(rows: list[Row]) -> Iterator[float]:
    """Bits below the independent coupling, over the one bit that is claimed, and bits below successive linear programs."""
    for seed in SEEDS:
        found = {row["method"]: row["bits"] for row in rows if row["seed"] == seed}
        yield found["independent"] - found["best"] - 1
        yield found["sla"] - found["best"]


def _game_margins(rows: list[Row]) -> Iterator[float]:
    """Accuracy gained over the uniform quantiser with unequal messages, averaged over rates and temperatures, by seed."""
    for seed in SEEDS:
        yield _gain(rows, "zipf", (seed,))


def _gain(rows: list[Row], prior: str, seeds: tuple[int, ...]) -> float:
    found = {
        method: [row["accuracy"] for row in rows if row["seed"] in seeds and row["prior"] == prior and row["method"] == method]
        for method in ("ebim", "uniform")
    }  # fmt: skip
    return sum(found["ebim"]) / len(found["ebim"]) - sum(found["uniform"]) / len(found["uniform"])


def _above(couplings: list[Row]) -> str:
    found = {row["method"]: [other["above_bound"] for other in couplings if other["method"] == row["method"]] for row in couplings}
    parts = ", ".join(f"{sum(bits) / len(bits):.3f} {method}" for method, bits in found.items())
    return f"bits of couplings above the larger of the two entropies, which none can be below, means over seeds: {parts}"


def _notes(codes: list[Row], games: list[Row]) -> list[str]:
    worst = max(row["worst_beyond_guarantee"] for row in codes if row["method"] != "uniform quantiser")
    spread = []
    for temperature in TEMPERATURES:
        rewards = [(row["reward"], row["reward_stderr"]) for row in games if row["temperature"] == temperature]
        mean = sum(reward for reward, _ in rewards) / len(rewards)
        worst_reward = max((abs(reward - mean) / error for reward, error in rewards if error > 0), default=0.0)
        spread.append(f"{mean:.3f} at {temperature:g} (largest deviation {worst_reward:.1f} standard errors)")
    early = {}
    for method in ("none", "ebim", "uniform"):
        part = [row["bits_in_5_steps"] for row in games if row["method"] == method and row["prior"] == "equal"]
        early[method] = sum(part) / len(part)
    return [
        f"the rate exceeds the information by the binary entropy of the second largest probability at most: closest case {worst:.3f} bits",
        "the reward does not depend on the code, by construction; measured, by temperature: " + "; ".join(spread),
        "accuracy gained over the uniform quantiser with unequal messages, by seed: "
        + ", ".join(f"{_gain(games, 'zipf', (seed,)):+.3f}" for seed in SEEDS)
        + f"; with equal messages, where a uniform quantiser is at home, {_gain(games, 'equal', SEEDS):+.3f} over all seeds",
        "bits told in the first five steps with equal messages, averaged over rates and temperatures: "
        + ", ".join(f"{bits:.3f} {'without a code' if method == 'none' else method}" for method, bits in early.items()),
    ]
