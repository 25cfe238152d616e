"""Experiments of ``tersor reproduce`` on further data and sizes: the same code and the same verdicts, each part with a record of its own.

``lapp``: half of the products. ``waves``: 3 x 3 x 3 convolutions over space and time. ``sap``: pruning in rounds on CIFAR-10.
``kappatune`` and ``compresso``: on SmolLM2-135M, few steps. Options were fixed beforehand.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import common


def measure_lapp(session: common.Session) -> None:
    """Widths that LAPP learns at half of the products, in the network of the paper's experiment."""
    from tersor.papers import lapp, vision
    from tersor.papers.frame import measured

    n_train, epochs = (256, 1) if session.flags.quick else (2000, 10)
    images = vision.cifar(n_train, n_train // 2)
    plan = vision.Plan(epochs=epochs, rate=0.05, batch=64)
    effort = lapp.Effort(images, (8, 24, 24, 48, 48), plan, (0.5,))
    session.data.append(images.name)
    session.rows.extend(measured(lapp.rows_of(effort)))
    lead, notes = lapp.judge(session.rows, effort)
    session.notes += notes
    says = "LAPP at half of the products, accuracy above even removal by L1 and a narrower dense network"
    session.claims.append(common.Claim(says, lead, 0.0, at_least=True))


def measure_waves(session: common.Session) -> None:
    """3-way convolutions as successions of 1-way filters, the case of the publication."""
    from tersor.papers import a_priori_conv as paper
    from tersor.papers.frame import measured

    methods = (paper.DENSE, paper.OURS, paper.NARROW)
    effort = paper.Effort(3, methods, 12, 3, *((2, (32, 4, 8)) if session.flags.quick else (40, (160, 32, 64))))
    session.data.append(f"2D wave equation by finite elements, {' / '.join(map(str, effort.sizes))} waves to train / keep apart / report")
    session.rows.extend(measured(paper.rows_of(effort, dict.fromkeys(methods, 3e-3))))
    margin, notes = paper.judge(session.rows)
    session.notes += [*notes, f"{effort.epochs} epochs of Adam at 0.003 for all, which was not searched"]
    says = "3-way kernels of 1-way filters, times the error of dense in the worst seed (with at most 35 % of its weights)"
    session.claims.append(common.Claim(says, 2 - margin, 2.0))


def measure_sap(session: common.Session) -> None:
    """Pruning in rounds of a perceptron on photographs."""
    from tersor.papers import sap, vision

    images = vision.cifar(4000, 1000, 5000)
    task = sap.Task(images, (128, 128), 5, 125, 9)
    if session.flags.quick:
        task = replace(task, epochs=1, rounds=2)
    session.data.append(images.name)
    rows, curves = sap.compared(task, {method: candidates[0] for method, candidates in sap.CANDIDATES.items()})
    session.rows.extend(rows)
    margin, notes = sap.judge(rows)
    session.notes += [*notes, *sap.shapes(task, curves), "two hidden layers of 128; the usual options of each method, none searched"]
    says = "SAP, share of weights that the nearest rival keeps more at an accuracy within a point of dense"
    session.claims.append(common.Claim(says, margin, 0.0, at_least=True))


def measure_kappatune(session: common.Session) -> None:
    """What a language model of 135 million parameters forgets, by which of its matrices are trained."""
    from tersor.papers import kappatune

    plan = kappatune.Plan(2, 1, 2) if session.flags.quick else kappatune.Plan(16, 4, 8)
    # A seventh of the matrices, as in the experiment of `tersor reproduce`.
    experiment = kappatune.Experiment("smollm2-135m", "tinyshakespeare", "wikitext2.test", 30, (1e-4, 4e-4), plan)
    _take(session, kappatune.compared(experiment), "KappaTune, nats a token that the best rival forgets more at equal loss")


def measure_compresso(session: common.Session) -> None:
    """Heads, units and width that a language model of 135 million parameters can spare."""
    from tersor.papers import compresso

    steps, pilot, windows = (2, 1, 2) if session.flags.quick else (24, 8, 32)
    effort = compresso.Effort((0.85,), steps, pilot, windows, False, "smollm2-135m", "wikitext2.valid", (5e-4, 2e-3))
    _take(session, compresso.compared(effort), "Compresso, nats a token below the best baseline of equal healing")


def _take(session: common.Session, result: Any, says: str) -> None:
    session.data += result.data
    session.rows += result.rows
    session.notes += [*result.notes, f"against {result.baseline}"]
    session.claims.append(common.Claim(says, result.margin, 0.0, at_least=True))


MEASURES = {
    "lapp": measure_lapp, "waves": measure_waves, "sap": measure_sap, "kappatune": measure_kappatune, "compresso": measure_compresso,
}  # fmt: skip


def main() -> int:
    """Run a part."""
    flags = common.parser(__doc__, repeats=1, threads=1)
    flags.add_argument("part", choices=sorted(MEASURES), help="which experiment")
    parsed = flags.parse_args()
    import torch

    torch.set_num_threads(parsed.threads)
    session = common.Session(f"training_{parsed.part}", parsed)
    MEASURES[parsed.part](session)
    return session.finish()


if __name__ == "__main__":
    sys.exit(main())
