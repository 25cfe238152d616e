"""Training of click models with early stopping, and what they are judged by."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.papers.ctr.data import ClickData, Clicks
from tersor.papers.ctr.models import CTRModel

_BATCH = 1024
# DeepCTR adds 1e-5 times the squared tables to the loss; as a term of the gradient that is twice as much.
_EMBEDDING_DECAY = 2e-5


@dataclass(frozen=True)
class Score:
    """How well clicks are told from others.

    Attributes:
        auc: Area under the receiver operating characteristic.
        logloss: Mean binary cross-entropy in nats.
    """

    auc: float
    logloss: float


@torch.no_grad()
def score(model: nn.Module, clicks: Clicks) -> Score:
    """The score of ``model``, which maps ids to logits, on ``clicks``."""
    from sklearn.metrics import roc_auc_score

    model.eval()
    logits = torch.cat([model(ids) for ids in clicks.ids.split(4096)])
    loss = F.binary_cross_entropy_with_logits(logits, clicks.labels)
    return Score(float(roc_auc_score(clicks.labels.numpy(), logits.numpy())), float(loss))


def train(model: CTRModel, data: ClickData, *, epochs: int, learning_rate: float, seed: int, batch: int = _BATCH) -> CTRModel:
    """The best copy of ``model``, by the area on the validation part, over ``epochs`` of Adam; the given one is left as it was.

    The model before the first step counts too, so training never ends below its start there. Two epochs without a better one end it.

    Args:
        model: Where to start.
        data: Its train part is fitted, its validation part chooses the epoch.
        epochs: At most.
        learning_rate: Of Adam.
        seed: Of the order of the rows.
        batch: Rows a step.
    """
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    tables = [parameter for name, parameter in model.named_parameters() if "table" in name]
    others = [parameter for name, parameter in model.named_parameters() if "table" not in name]
    groups: list[dict[str, Any]] = [{"params": tables, "weight_decay": _EMBEDDING_DECAY}, {"params": others}]
    optimizer = torch.optim.Adam(groups, lr=learning_rate)
    best, best_state, stale = score(model, data.validation).auc, copy.deepcopy(model.state_dict()), 0
    for _ in range(epochs):
        model.train()
        for rows in torch.randperm(len(data.train), generator=generator).split(batch):
            loss = F.binary_cross_entropy_with_logits(model(data.train.ids[rows]), data.train.labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        reached = score(model, data.validation).auc
        if reached > best:
            best, best_state, stale = reached, copy.deepcopy(model.state_dict()), 0
        elif (stale := stale + 1) == 2:
            break
    model.load_state_dict(best_state)
    return model.eval()


@torch.no_grad()
def latency(models: Mapping[str, nn.Module], ids: Tensor, repeats: int = 30) -> dict[str, float]:
    """Processor seconds that each model takes for ``ids``: the fewest of ``repeats``, taken in turn.

    Of the processor, not of the clock, which on a busy machine counts the work of others.
    """
    fastest = dict.fromkeys(models, float("inf"))
    for _ in range(repeats):
        for name, model in models.items():
            began = time.process_time()
            model(ids)
            fastest[name] = min(fastest[name], time.process_time() - began)
    return fastest
