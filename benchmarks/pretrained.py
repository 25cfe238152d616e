"""Compressing a trained network in a short training, against cutting it at once, with and without as many steps afterwards.

``pictures``: a published ResNet-20 on CIFAR-10. ``stories``: a small Llama. ``smollm2``: SmolLM2-135M, one seed and few steps. Nothing is
chosen by a measurement: options, steps and rates were fixed beforehand.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import common

DENSE = "not cut"
GRADUAL, ONCE, AFTERWARDS = "gradual pruning", "pruned at once", "pruned at once, then tuned"
RANKS, SVD, SVD_TUNED = "trained rank pruning", "cut to the same ranks", "cut to the same ranks, then tuned"
PAIRS = ((GRADUAL, ONCE), (GRADUAL, AFTERWARDS), (RANKS, SVD), (RANKS, SVD_TUNED))


@dataclass(frozen=True)
class Pictures:
    """How the ResNet is tuned.

    Attributes:
        train: Pictures, each seen once by a seed's training.
        batch: Pictures a step.
        test: Pictures that accuracy is of.
        sparsity: Of every convolution but the first.
        energy: Kept by each truncation of ranks.
        rate: Peak learning rate.
    """

    train: int = 640
    batch: int = 32
    test: int = 761
    sparsity: float = 0.8
    energy: float = 0.9
    rate: float = 0.02


@dataclass(frozen=True)
class Text:
    """How a language model is tuned.

    Attributes:
        model: As :func:`tersor.load` takes it.
        text: Trained on and reported on, apart.
        held_out: See :func:`tersor.papers.workbench.split_texts`.
        sparsities: Of every linear layer.
        steps: Of AdamW towards the original.
        batch: Windows a step.
        context: Tokens of a window.
        windows: That are reported on.
        rate: Peak learning rate.
        seeds: At most so many.
    """

    model: str
    text: str
    held_out: str
    sparsities: tuple[float, ...]
    steps: int
    batch: int
    context: int
    windows: int
    rate: float
    seeds: int


STORIES = Text("stories260k", "tinystories", "tinystories.tail", (0.5, 0.7), 100, 4, 256, 32, 1e-3, 3)
SMOLLM2 = Text("smollm2-135m", "wikitext2.valid", "wikitext2.test", (0.5,), 24, 1, 128, 24, 5e-5, 1)


class ResNet:
    """A published ResNet-20 and the lossless pictures that it is judged on.

    Args:
        plan: How it is tuned.
    """

    def __init__(self, plan: Pictures) -> None:
        from tersor import data
        from tersor.coding.features import load_teacher, normalise, read_images
        from tersor.papers import vision

        self.plan = plan
        path = data.folder("images") / "cifar10_lossless_part.npz"
        (own, labels), (test, wanted) = read_images(path, "train"), read_images(path, "test")
        self.train = vision.Part(normalise(own), labels)
        self.test = vision.Part(normalise(test[: plan.test]), wanted[: plan.test])
        self.dense = load_teacher(data.folder("models") / "resnet20-12fca82f.th").requires_grad_(True)

    def tuned(self, model: Any, seed: int, methods: tuple[Any, ...] = ()) -> Any:
        """``model`` after one pass over pictures drawn by ``seed``."""
        import torch

        from tersor.papers import vision

        order = torch.randperm(len(self.train.labels), generator=torch.Generator().manual_seed(seed))
        images = vision.Images("", self.train.take(order[: self.plan.train]), self.train.take(order[-64:]), self.test)
        schedule = vision.Plan(epochs=1, rate=self.plan.rate, batch=self.plan.batch)
        tuned = vision.fit(model, images, schedule, seed=seed, methods=methods).model
        vision.recalibrate(tuned, self.train.pixels[:256])
        return tuned.eval()

    def cut(self, change: Callable[[Any], object]) -> Any:
        """A copy of the trained network after ``change``, its batch norms estimated anew."""
        from tersor.papers import vision

        model = copy.deepcopy(self.dense)
        change(model)
        vision.recalibrate(model, self.train.pixels[:256])
        return model.eval()

    def networks(self, seed: int) -> Iterator[tuple[str, str, Any]]:
        """All networks of a seed: the method, its setting, and the result."""
        from tersor import training

        fresh, ends, plan = (lambda: copy.deepcopy(self.dense)), ["conv1", "linear"], self.plan
        setting = f"sparsity {plan.sparsity:g}"
        gradual = training.GradualPruning(plan.sparsity, begin=0.1, end=0.7, frequency=2, ignore=ends)
        yield GRADUAL, setting, self.tuned(fresh(), seed, (gradual,))
        at_once = training.GradualPruning(plan.sparsity, begin=1, end=1, ignore=ends)
        yield AFTERWARDS, setting, self.tuned(self.cut(lambda model: prune(model, plan.sparsity, ends)), seed, (at_once,))
        method = training.TrainedRankPruning(plan.energy, period=5, ignore=ends)
        setting = f"energy {plan.energy:g}"
        yield RANKS, setting, self.tuned(fresh(), seed, (method,))
        report = method.report()
        ranks = {name: report["ranks"][name] for name in report["smaller"]}
        rival = self.cut(lambda model: training.factor_model(model, ranks))
        yield SVD, setting, rival
        yield SVD_TUNED, setting, self.tuned(copy.deepcopy(rival), seed)

    def row(self, method: str, setting: str, model: Any, folder: Path | None) -> common.Row:
        """Accuracy and sizes; the latency of one picture where a folder is given."""
        from tersor import training
        from tersor.papers import vision

        pixels, milliseconds = self.test.pixels[:1], None
        if folder is not None:
            training.export_onnx(copy.deepcopy(model), (self.test.pixels[:2],), folder / "model.onnx")
            milliseconds = vision.latency(folder / "model.onnx", pixels)
        return {
            "method": method, "setting": setting, "accuracy": vision.accuracy(model, self.test),
            "bytes": training.stored_bytes(training.to_sparse(copy.deepcopy(model))), "products": vision.products(model, pixels),
            "latency_ms": milliseconds,
        }  # fmt: skip


def prune(model: Any, sparsity: float, ignore: list[str]) -> None:
    """Remove the smallest weights of each layer at once."""
    import torch

    from tersor.training import magnitude_mask, prunable

    with torch.no_grad():
        for weight in prunable(model, ignore=ignore).values():
            weight.mul_(magnitude_mask(weight, sparsity))


def measure_pictures(session: common.Session, seeds: int) -> None:
    """Tune and cut the ResNet from every seed."""
    plan = Pictures(192, 32, 128) if session.flags.quick else Pictures()
    net = ResNet(plan)
    session.data.append(f"cifar10_lossless_part.npz: {plan.train} pictures a training, {plan.test} to report; resnet20-12fca82f.th")
    found: list[common.Row] = []
    with TemporaryDirectory() as name:
        found.append({"seed": None, **net.row(DENSE, "", net.dense, Path(name))})
        pruned = net.cut(lambda model: prune(model, plan.sparsity, ["conv1", "linear"]))
        found.append({"seed": None, **net.row(ONCE, f"sparsity {plan.sparsity:g}", pruned, None)})
        for seed in range(seeds):
            for method, setting, model in net.networks(seed):
                timed = seed == 0 and method in (RANKS, SVD)
                found.append({"seed": seed, **net.row(method, setting, model, Path(name) if timed else None)})
                session.say("  ".join(f"{key}={value}" for key, value in found[-1].items()))
    session.rows.extend(summary(found, ("accuracy", "bytes", "products", "latency_ms")))
    conclude(session, "accuracy")
    session.notes += [
        f"tuning is {plan.train // plan.batch} steps of {plan.batch} pictures, SGD at {plan.rate:g} with a cosine; batch norms of all "
        "networks but the given one are estimated anew in the end",
        "accuracy on 761 pictures has a standard error of about one point; networks see the same pictures, so differences have less",
        "bytes are of the tensors as stored, zeros as bit masks or indices; latency is of one picture in onnxruntime on one thread",
    ]


def measure_text(session: common.Session, plan: Text, seeds: int) -> None:
    """Prune a language model at once, at once and then trained, and gradually, from every seed."""
    import tersor
    from tersor import data
    from tersor.papers.workbench import Judge, split_texts

    original = tersor.load(plan.model)
    fitted, held_out = split_texts(plan.text, plan.held_out)
    judge = Judge.of(original, data.windows(original.encode(held_out), plan.context)[: plan.windows])
    session.data.append(f"{plan.model}, trained on {plan.text}; {plan.windows} windows of {plan.context} tokens of {plan.held_out}")
    found: list[common.Row] = []

    def see(seed: int | None, method: str, setting: str, model: Any) -> None:
        judged = judge(model)
        sizes = {"perplexity": judged.perplexity, "kl": judged.kl, "bytes": model.nbytes}
        found.append({"seed": seed, "method": method, "setting": setting, **sizes})
        session.say("  ".join(f"{key}={value}" for key, value in found[-1].items()))

    see(None, DENSE, "", original)
    with TemporaryDirectory() as name:
        text = Path(name) / "text.txt"
        text.write_text(fitted, encoding="utf-8")
        for sparsity in plan.sparsities:
            setting = f"sparsity {sparsity:g}"
            see(None, ONCE, setting, pruned_at_once(original, sparsity))
            for seed in range(min(seeds, plan.seeds)):
                for method, moments in ((GRADUAL, (0.2, 0.8)), (AFTERWARDS, (1, 1))):
                    see(seed, method, setting, trained(original, plan, text, sparsity, moments, seed, Path(name)))
    session.rows.extend(summary(found, ("perplexity", "kl", "bytes")))
    conclude(session, "perplexity")
    session.notes += [
        f"tuning is {plan.steps} steps of AdamW at {plan.rate:g} on {plan.batch} windows of {plan.context} tokens, towards the original",
        "bytes are of whole models, values of sparse layers in float16",
    ]


def pruned_at_once(original: Any, sparsity: float) -> Any:
    """The model without the smallest weights of each linear layer."""
    from tersor.models import Model
    from tersor.pipeline.training import packed

    student = Model(copy.deepcopy(original.module).float(), original.tokenizer, original.name)
    prune(student.module, sparsity, [])
    return packed(student, student.module)


def trained(original: Any, plan: Text, text: Path, sparsity: float, moments: tuple[Any, Any], seed: int, folder: Path) -> Any:
    """What ``tersor train prune`` makes, removing between two ``moments``."""
    from tersor.pipeline.training import train
    from tersor.training import GradualPruning

    method = GradualPruning(sparsity, begin=moments[0], end=moments[1], frequency=max(plan.steps // 20, 1))
    output = folder / f"{sparsity}-{moments[0]}-{seed}"
    options = {"steps": plan.steps, "batch": plan.batch, "rate": plan.rate, "context": plan.context, "seed": seed}
    return train(original, [method], str(text), output, **options).model


def summary(found: list[common.Row], keys: tuple[str, ...]) -> list[common.Row]:
    """One row a method and setting: means over the seeds, and the spread of the first of the ``keys``."""
    groups: dict[tuple[str, str], list[common.Row]] = {}
    for row in found:
        groups.setdefault((row["method"], row["setting"]), []).append(row)
    rows = []
    for (method, setting), own in groups.items():
        values = {key: [row[key] for row in own if row[key] is not None] for key in keys}
        means: Mapping[str, Any] = {key: sum(known) / len(known) if known else None for key, known in values.items()}
        row = {"method": method, "setting": setting, "seeds": len(own), **means}
        row["bytes"] = round(means["bytes"])
        row["spread"] = max(values[keys[0]]) - min(values[keys[0]])
        rows.append(row)
    return rows


def conclude(session: common.Session, key: str) -> None:
    """By how much tuning while it is cut is ahead of each rival at equal sparsity or ranks, in the mean over seeds."""
    settings = dict.fromkeys(row["setting"] for row in session.rows if row["setting"])
    for setting in settings:
        own = {row["method"]: row[key] for row in session.rows if row["setting"] == setting}
        for ours, rival in PAIRS:
            if ours in own and rival in own:
                gain = own[ours] - own[rival] if key == "accuracy" else 1 - own[ours] / own[rival]
                says = f"{setting}: {ours} over {rival}, {'accuracy gained' if key == 'accuracy' else 'share of the perplexity taken off'}"
                session.claims.append(common.Claim(says, gain, 0.0, at_least=True))


def main() -> int:
    """Run the benchmark."""
    flags = common.parser(__doc__, repeats=1, threads=1)
    flags.add_argument("part", choices=["pictures", "stories", "smollm2"], help="what is compressed; each part has a record of its own")
    flags.add_argument("--seeds", type=int, default=3, help="trainings of each kind; means are reported")
    parsed = flags.parse_args()
    import torch

    torch.set_num_threads(parsed.threads)
    seeds = 1 if parsed.quick else parsed.seeds
    session = common.Session(f"pretrained_{parsed.part}", parsed)
    if parsed.part == "pictures":
        measure_pictures(session, seeds)
    else:
        plan = STORIES if parsed.part == "stories" else SMOLLM2
        measure_text(session, replace(plan, steps=6, windows=4) if parsed.quick else plan, seeds)
    return session.finish()


if __name__ == "__main__":
    sys.exit(main())
