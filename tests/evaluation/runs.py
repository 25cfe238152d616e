"""A run report with something in every field, and strings that would like to be code."""

from __future__ import annotations

from tersor.evaluation import LayerRow, ReportRow, RunReport

EVIL = "</script><script>alert('1')</script><img src=x onerror=\"alert(2)\">&amp;"


def report(blocks: int = 3) -> RunReport:
    """``blocks`` blocks of two layers, and an embedding outside them."""
    layers = [LayerRow("model.embed_tokens", None, "embed_tokens", "rtn", {"bits": 6}, 6.25, 4096, 0.0)]
    for block in range(blocks):
        for role, bits in (("q_proj", 3), ("down_proj", 4)):
            options = {"bits": bits, "group_size": 64, "act_order": True, "note": EVIL}
            name, error = f"model.layers.{block}.{role}", 0.01 * bits
            layers.append(LayerRow(name, block, role, "gptq", options, bits + 0.25, 1000 + block, error, 1.1 * error, 0.01, 8192))
    search = [
        {"generation": n, "offspring": 4, "changed": n % 2 == 0, "fitness": 0.5 - n / 100, "parent_fitness": None, "evaluations": 4 * n}
        for n in (1, 2, 3)
    ]
    rows = [
        ReportRow("original", 200_000, 16.0, 20.0),
        ReportRow(f"uniform {EVIL}", 50_000, 4.0, 30.0, 0.4, 0.01, 0.7, 0.5, 3.0),
        ReportRow("searched", 49_999, 4.0, 26.0, 0.3, 0.01, 0.75, 0.5, 3.5),
    ]
    return RunReport(
        f"model {EVIL}", "2026-01-02T03:04:05+00:00", f"tersor compress {EVIL}", {"torch": "2.13.0", EVIL: EVIL}, 50_000,
        {"calibration": "wikitext2.valid", "evaluation": f"wikitext2.test {EVIL}"}, rows, layers, search, [f"few tokens {EVIL}"],
        {"fitting": 12.5, f"searching {EVIL}": 30.0}, {"peak_memory": 1_000_000, "budget": None, "seconds": 40.5}, {"candidates": 12},
    )  # fmt: skip
