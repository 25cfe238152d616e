"""A few steps of one way to train, one process: ``finetuning.py REQUEST``. The model is loaded here, so that nothing else is in memory."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

LAPS = "laps"  # processor seconds of each step
# Of numbers that selective fine-tuning and adapters train.
SHARE = 0.1
ADAPTED = ("q_proj.weight", "v_proj.weight")


def language_step(module: Any, optimizer: Any) -> Callable[[Any], None]:
    """One step of plain training on a batch of tokens."""
    import torch

    from tersor.training import language_loss

    def step(tokens: Any) -> None:
        module.train()
        optimizer.zero_grad(set_to_none=True)
        language_loss(module, tokens).backward()
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()

    return step


def adamw(module: Any) -> Any:
    """AdamW over what requires a gradient."""
    import torch

    return torch.optim.AdamW([parameter for parameter in module.parameters() if parameter.requires_grad], lr=1e-4)


def plain(model: Any, change: Callable[[Any], None] = lambda module: None) -> tuple[Callable[[Any], None], int]:
    """Cross entropy over all parameters, after ``change``."""
    module = model.module.float().requires_grad_(True)
    change(module)
    return language_step(module, optimizer := adamw(module)), trained(optimizer)


def trained(optimizer: Any) -> int:
    """Numbers that an optimizer moves."""
    return sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])


def compressed(model: Any, method: Any) -> tuple[Callable[[Any], None], int]:
    """Plain training with a method of compression on board."""
    from tersor.training import Compression

    module = model.module.float().requires_grad_(True)
    compression = Compression(module, [method], total_steps=10_000)
    optimizer = adamw(module)
    compression.attach(optimizer)
    return language_step(module, optimizer), trained(optimizer)


def adapted(model: Any) -> tuple[Callable[[Any], None], int]:
    """LoRA through peft, of as many numbers as selective fine-tuning trains."""
    from peft import get_peft_model

    from tersor.finetuning import lora_config

    names = [name for name, _ in model.module.named_parameters() if name.endswith(ADAPTED)]
    shapes = [tuple(model.module.get_parameter(name).shape) for name in names]
    rank = round(SHARE * model.n_parameters / sum(sum(shape) for shape in shapes))
    module = get_peft_model(model.module.float(), lora_config(model.module, names, r=rank, alpha=rank, dropout=0.0))
    return language_step(module, optimizer := adamw(module)), trained(optimizer)


def selected(model: Any) -> tuple[Callable[[Any], None], int]:
    """The best conditioned matrices alone."""
    from tersor.finetuning import kappatune

    module = model.module.float()
    kappatune(module, budget_params=round(SHARE * model.n_parameters))
    return language_step(module, optimizer := adamw(module)), trained(optimizer)


def healed(model: Any) -> tuple[Callable[[Any], None], int]:
    """Adapters that heal a cut of all layers to half of their units."""
    from tersor.training import Compresso, Decoder, Shape, magnitude_scores, masks_of

    decoder = Decoder(model.module.float())
    full, layers = decoder.shape, len(decoder.layers)
    masks = masks_of(Shape(full.groups, (full.units[0] // 2,) * layers, full.width), **magnitude_scores(decoder))
    return compressed(model, Compresso(masks=masks))


def towards_original(model: Any) -> tuple[Callable[[Any], None], int]:
    """All parameters, and the divergence from the original for a loss: what tuning with a teacher costs without anything compressed."""
    import copy

    from tersor.finetuning.pv_tuning import divergence
    from tersor.models import Model

    student = Model(copy.deepcopy(model.module).float(), model.tokenizer, model.name)
    student.module.requires_grad_(True)  # making a Model froze it
    optimizer = adamw(student.module)

    def step(tokens: Any) -> None:
        optimizer.zero_grad(set_to_none=True)
        divergence(student, model, tokens).backward()
        optimizer.step()

    return step, trained(optimizer)


def language_methods() -> dict[str, Callable[[Any], tuple[Callable[[Any], None], int]]]:
    """By name, what makes a step and says how many numbers it trains."""
    from tersor import training

    return {
        "dense": plain,
        "dense, towards its original": towards_original,
        "KappaTune": selected,
        "LoRA": adapted,
        "QuEST, W4A4": lambda model: plain(model, lambda module: training.quest(module, weights=4, activations=4)),
        "LSQ, W4A4": lambda model: plain(model, lambda module: training.lsq(module)),
        "Compresso, gates": lambda model: compressed(model, training.Compresso(begin=0, end=5000, fix=9000)),
        "Compresso, healing": healed,
        "gradual pruning": lambda model: compressed(model, training.GradualPruning(0.5, begin=0, end=5000, frequency=1)),
    }


def language(request: dict[str, Any]) -> dict[str, Any]:
    """Steps on random tokens, whose values change nothing of the cost."""
    import torch

    from tersor.models import load

    model = load(request["model"])
    size = request["steps"] + 1, request["batch"], request["context"]
    tokens = torch.randint(model.vocabulary, size, generator=torch.Generator().manual_seed(0))
    if request["method"] == "PV-tuning":
        return {**tuned(model, tokens, request["group_size"]), "tokens": request["batch"] * request["context"]}
    step, numbers = language_methods()[request["method"]](model)
    return {"trained": numbers, LAPS: laps(step, tokens), "tokens": request["batch"] * request["context"]}


def tuned(model: Any, tokens: Any, group_size: int) -> dict[str, Any]:
    """PV-tuning of grids of 2 bits; layers are rounded to nearest, because a better start would not make a step cheaper."""
    from tersor import layerwise
    from tersor.finetuning import PVConfig, pv_tuning

    small = model.copy()
    for name in small.linears():
        small.replace(name, layerwise.rtn(small.matrix(name), None, bits=2, group_size=group_size))
    times = [time.process_time()]
    config = PVConfig(steps=len(tokens), batch=tokens.shape[1])
    pv_tuning(small, model, tokens.flatten(0, 1), config, progress=lambda *_: times.append(time.process_time()))
    inside = sum(weight.shape[0] * weight.shape[1] for weight in small.weights().values())
    return {"trained": inside, LAPS: [after - before for before, after in pairwise(times[1:])]}


def classifier(request: dict[str, Any]) -> dict[str, Any]:
    """Compressor: a large classifier on labels, or a small one on the answers of a large one that were written down before."""
    import torch

    from tersor.training import RobertaCost, TaughtStudent, build_student

    student = build_student(request["architecture"], RobertaCost(request["context"]), dropout=0.1)
    size = request["steps"] + 1, request["batch"]
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(4, request["architecture"]["vocab_size"], (*size, request["context"]), generator=random)
    targets = torch.randint(2, size, generator=random) if request["labels"] else torch.randn((*size, 2), generator=random)
    taught = TaughtStudent(student)
    optimizer = adamw(taught)

    def step(part: tuple[Any, Any]) -> None:
        optimizer.zero_grad(set_to_none=True)
        taught.train()(*part)["loss"].backward()
        optimizer.step()

    found = laps(step, list(zip(ids, targets, strict=True)))
    return {"trained": trained(optimizer), LAPS: found, "tokens": request["batch"] * request["context"]}


def laps(step: Callable[[Any], None], batches: Any) -> list[float]:
    """Processor seconds of every step but the first, which pays once for what later ones find ready."""
    found = []
    for batch in batches:
        began = time.process_time()
        step(batch)
        found.append(time.process_time() - began)
    return found[1:]


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Run the request; the memory of the process before the model came in is what the libraries hold."""
    import peft  # noqa: F401 - a library of one method must not count as its memory
    import torch
    import transformers  # noqa: F401

    from tersor.evaluation.speed import process_memory

    torch.ones(64, 64).matmul(torch.ones(64, 64))
    libraries, _ = process_memory()
    reply = classifier(request) if "architecture" in request else language(request)
    return {**reply, "libraries": libraries}


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(asked["reply"]).write_text(json.dumps(main(asked)), encoding="utf-8")
