"""Equal-Info windows: compressed text that a second language model can learn, where plain arithmetic coding leaves it nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tersor.papers.frame import Paper, Result, Row, measured

PAPER = Paper(
    key="equal-info",
    claim="A transformer trained on tokens of compressed text learns more than 0.3 bits a token from Equal-Info windows beyond how often "
    "each token occurs, and less than 0.03 from one arithmetic code over the whole text.",
    where="tersor.coding.windows.EqualInfoTokenizer, ArithmeticTokenizer, train_second_model",
)

SEEDS = (0, 1, 2)
LEARNED, NOTHING = 0.3, 0.03
WINDOWS = (16, 32, 48)


@dataclass(frozen=True)
class Size:
    """How much text, and what the second model is."""

    first: int
    train: int
    test: int
    config: dict[str, Any]


# A few minutes of one core each: what separates the two kinds of tokens shows after a hundred steps.
FULL = Size(2_000_000, 1_100_000, 200_000, {"layers": 1, "width": 64, "steps": 200, "learning_rate": 6e-3})
QUICK = Size(1_000_000, 300_000, 60_000, {"layers": 1, "width": 64, "steps": 120, "learning_rate": 6e-3, "batch": 16})


def run(quick: bool) -> Result:
    """Ratios and failures of every tokenizer, then second models on windows and on one code, three seeds each."""
    from tersor.coding.windows import ArithmeticTokenizer, EqualInfoTokenizer, NGramByteLM
    from tersor.data import text

    size = QUICK if quick else FULL
    first = text("wikipedia").encode()[: size.first]
    train, test = text("wikitext2.valid.raw").encode()[: size.train], text("wikitext2.test.raw").encode()[: size.test]
    model = NGramByteLM(first, 4)
    rows = list(measured(_ratios(model, NGramByteLM(first, 0), test)))
    tokenizers = {"equal-info 16, exact": EqualInfoTokenizer(model, 16), "arithmetic": ArithmeticTokenizer(model)}
    trained = list(measured(_second_models(tokenizers, train, test, size)))
    rows += trained
    gains = {name: [row["learned"] for row in trained if row["method"] == name] for name in tokenizers}
    margins = (min(gains["equal-info 16, exact"]) - LEARNED, NOTHING - max(gains["arithmetic"]))
    return Result(
        rows, "what the frequencies of tokens tell, and one arithmetic code", min(margins), SEEDS,
        min(margins) > 0, ("wikipedia", "wikitext2.valid", "wikitext2.test"), _notes(rows, gains),
    )  # fmt: skip


def _of(rows: list[Row], method: str) -> Row:
    return next(row for row in rows if row["method"] == method)


def _ratios(model: Any, unigram: Any, test: bytes) -> Iterator[Row]:
    from tersor.coding.windows import ArithmeticTokenizer, EqualInfoTokenizer

    for name, tokenizer in (("arithmetic, static", ArithmeticTokenizer(unigram)), ("arithmetic", ArithmeticTokenizer(model))):
        yield {"method": name, "bytes_per_token": len(test) / len(tokenizer.encode(test))}
    for bits in WINDOWS:
        for mode in ("exact", "delay", "greedy") if bits <= 32 else ("exact",):
            windows = EqualInfoTokenizer(model, bits, mode=mode)
            ratio = len(test) / len(windows.encode(test))
            yield {"method": f"equal-info {bits}, {mode}", "bytes_per_token": ratio, "wrong_windows": _wrong(windows, test)}


def _wrong(tokenizer: Any, text: bytes) -> float:
    """Fraction of windows that do not decode to the text that they were made of."""
    windows = tokenizer.encode(text).reshape(-1, tokenizer.tokens_per_window)
    lengths = tokenizer.window_lengths(text)
    begin, wrong, count = 0, 0, min(len(windows), 3000)
    for window, length in zip(windows[:count], lengths[:count].tolist(), strict=True):
        wrong += tokenizer.decode(window) != text[begin : begin + length]
        begin += length
    return wrong / count


def _second_models(tokenizers: dict[str, Any], train: bytes, test: bytes, size: Size) -> Iterator[Row]:
    from tersor.coding.windows import SecondModelConfig, bits_per_byte, bits_per_token, train_second_model, unigram_bits

    for name, tokenizer in tokenizers.items():
        ids, held_out = tokenizer.encode(train), tokenizer.encode(test)
        unigram = unigram_bits(ids, held_out, tokenizer.vocabulary)
        config = SecondModelConfig(**size.config, phases=getattr(tokenizer, "tokens_per_window", 1))
        for seed in SEEDS:
            model = train_second_model(ids, tokenizer.vocabulary, replace(config, seed=seed))
            phases = bits_per_token(model, held_out)
            bits = sum(phases) / len(phases)
            yield {
                "method": name, "seed": seed, "bytes_per_token": len(test) / len(held_out), "unigram": unigram, "second_model": bits,
                "learned": unigram - bits, "bits_per_byte": bits_per_byte(bits, len(held_out), len(test)),
                "first_of_window": phases[0], "last_of_window": phases[-1],
            }  # fmt: skip


def _notes(rows: list[Row], gains: dict[str, list[float]]) -> list[str]:
    wrong = {row["method"]: row["wrong_windows"] for row in rows if "wrong_windows" in row}
    ratio = {
        bits: {mode: _of(rows, f"equal-info {bits}, {mode}")["bytes_per_token"] for mode in ("exact", "delay", "greedy")}
        for bits in (16, 32)
    }
    costs = "; ".join(
        f"{bits} bits: exact {value['exact'] / value['greedy']:.3f}, delay {value['delay'] / value['greedy']:.3f} of greedy's bytes a token"
        for bits, value in ratio.items()
    )
    ordered = [
        _of(rows, name)["bytes_per_token"]
        for name in ("arithmetic, static", *(f"equal-info {bits}, exact" for bits in WINDOWS), "arithmetic")
    ]
    listed = ", ".join(f"{name} {value:.1%}" for name, value in wrong.items() if value > 0)
    order = "in" if ordered == sorted(ordered) else "not in"
    learned = ", ".join(f"{name} {min(values):.3f} to {max(values):.3f}" for name, values in gains.items())
    return [
        f"windows that decode to other text than they were made of: {listed or 'none'}; all other modes: none",
        costs,
        f"bytes a token from static coding over windows of {WINDOWS} bits to one code: {', '.join(f'{value:.3g}' for value in ordered)}; "
        f"{order} the paper's order",
        f"learned beyond frequencies, bits a token over seeds: {learned}",
        "the first model is an integer 4-gram, the second a small transformer trained for minutes: numbers are far from the paper's",
    ]
