"""Where independent work runs: this process, or a Ray cluster, with the same result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from tersor.allocation.problem import Choices, Fitness
from tersor.errors import InvalidArgument, TersorError
from tersor.pipeline.calibrate import Pool, Serial

if TYPE_CHECKING:
    from tersor.models import Model
    from tersor.pipeline.fitness import KLFitness

RETRIES = 5  # times a call lost with its worker is run again elsewhere


def make_pool(on: str | None) -> Pool:
    """The pool that ``on`` names: ``None`` for this process, ``"ray"`` or ``"ray://host:port"`` for a cluster.

    Raises:
        InvalidArgument: If ``on`` is something else, or Ray is not installed.
    """
    return Serial() if on is None else RayPool(connect(on))


def connect(address: str) -> Any:
    """The ``ray`` module, connected to ``address``; a running connection is used as it is."""
    if address != "ray" and not address.startswith("ray://"):
        raise InvalidArgument(f"cannot run on {address!r}; use 'ray' for this machine or 'ray://host:port' for a cluster")
    try:
        import ray
    except ImportError:
        raise InvalidArgument("running on Ray needs the package ray: pip install 'tersor[ray]'") from None
    if not ray.is_initialized():
        try:
            ray.init(address=None if address == "ray" else address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, OSError, RuntimeError) as error:
            raise TersorError(f"cannot reach the Ray cluster at {address}: {str(error).splitlines()[0]}") from None
    return ray


class RayPool:
    """Spreads pure calls over a Ray cluster; results come back in order, a call lost with its worker is run again.

    Every worker computes with the thread count of this process, so that the numbers are the same bit for bit.
    """

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._threads = torch.get_num_threads()
        self._limit = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))

    def map(self, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """``function(*call)`` for every call, a bounded number of them in flight."""
        ray = self._ray
        remote = ray.remote(max_retries=RETRIES)(_call)
        waiting = iter(calls)
        flying = [remote.remote(function, self._threads, *call) for call in islice(waiting, self._limit)]
        while flying:
            yield self._result(flying.pop(0))
            flying += [remote.remote(function, self._threads, *call) for call in islice(waiting, 1)]

    def _result(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, TersorError) else TersorError(f"a worker failed: {error.cause!r}") from None
        except self._ray.exceptions.RayError as error:
            raise TersorError(f"a worker was lost {RETRIES} times: {str(error).splitlines()[0]}") from None


def _call(function: Callable[..., Any], threads: int, *arguments: Any) -> Any:
    torch.set_num_threads(threads)  # the worker process is ours alone
    return function(*arguments)


def make_fitness(on: str | None, local: KLFitness, model: Model) -> Fitness:
    """``local``, or the same measure spread over the workers of a Ray cluster."""
    return local if on is None else RayFitness(connect(on), local, model)


class RayFitness:
    """A :class:`KLFitness` in every worker; candidates are dealt out and come back in order.

    A candidate's value does not depend on which others it is judged with, so any dealing gives the serial result.
    """

    def __init__(self, ray: Any, local: KLFitness, model: Model) -> None:
        self._ray = ray
        self._local = local
        count = max(1, int(ray.cluster_resources().get("CPU", 1)))
        teacher = local.teacher
        shared = ray.put((model, local.database.folder, local.layers, local.tokens, teacher.path, local.dtype, teacher.negative_entropy))
        actor = ray.remote(max_restarts=RETRIES, max_task_retries=RETRIES)(_Judge)
        self._judges = [actor.remote(shared, torch.get_num_threads()) for _ in range(count)]

    def __call__(self, candidates: Sequence[Choices], *, parent: Choices, tokens: int, seed: int) -> list[float]:
        """Judge ``candidates`` on one minibatch, spread over the workers."""
        count = len(self._judges)
        shares = [list(candidates[index::count]) for index in range(count)]
        asked = [judge.judge.remote(share, parent, tokens, seed) for judge, share in zip(self._judges, shares, strict=True) if share]
        values: list[float] = [0.0] * len(candidates)
        try:
            for index, share in enumerate(self._ray.get(asked)):
                values[index::count] = share
        except self._ray.exceptions.RayError as error:
            raise TersorError(f"judging candidates on Ray failed: {str(error).splitlines()[0]}") from None
        self._local.evaluations += len(candidates)
        self._local.tokens_judged += len(candidates) * tokens
        return values


class _Judge:
    def __init__(self, shared: tuple[Any, ...], threads: int) -> None:
        from tersor.pipeline.fitness import KLFitness, Teacher
        from tersor.pipeline.levels import LevelDatabase

        torch.set_num_threads(threads)  # the worker process is ours alone
        model, folder, layers, tokens, teacher, dtype, entropy = shared
        self._fitness = KLFitness(model, LevelDatabase(folder), layers, tokens, Teacher.open(teacher, entropy), dtype)

    def judge(self, candidates: list[Choices], parent: Choices, tokens: int, seed: int) -> list[float]:
        return self._fitness(candidates, parent=parent, tokens=tokens, seed=seed)
