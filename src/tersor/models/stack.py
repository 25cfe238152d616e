"""A model whose size is changed while it runs: residual blocks on disk in one order of importance, loaded and dropped from its end.

The folder is a native one that holds the smallest model, beside ``blocks.bin``, all further blocks one after the other, and
``stack.json``, which says whose block is next. Any prefix of ``blocks.bin`` is a working model.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from tersor.errors import CorruptFile, InvalidArgument, TersorError
from tersor.models.generation import end_tokens, sample_tokens
from tersor.models.model import Model
from tersor.models.storage import DESCRIPTION, check_target, description_checksum, save
from tersor.models.tensorfile import file_sha256
from tersor.weights import ResidualStack, SignBlock

FORMAT = 1
BLOCKS, ORDER = "blocks.bin", "stack.json"


@dataclass(frozen=True)
class Entry:
    """One block in the file.

    Attributes:
        layer: Dotted name of the layer that it belongs on top of.
        nbytes: Its bytes.
        sha256: Their checksum.
    """

    layer: str
    nbytes: int
    sha256: str


@dataclass(frozen=True)
class Resized:
    """What a change of size did.

    Attributes:
        nbytes: Size of the model now.
        loaded: Bytes read from the disk.
        dropped: Bytes given back.
    """

    nbytes: int
    loaded: int
    dropped: int

    def __str__(self) -> str:
        return f"{self.nbytes:,} bytes ({self.loaded:,} read, {self.dropped:,} dropped)"


class StackedModel(Model):
    """A model made of residual stacks that :meth:`resize` grows and shrinks in place, reading or dropping blocks and nothing else.

    Open one with :func:`load_stack`. Everything that works on a model works on it at its present size; :meth:`copy` and
    :meth:`save` give a plain model of that size.

    Attributes:
        folder: Where the blocks are.
        loaded: Blocks of the file that are in memory.

    Example:
        >>> model = load_stack("stacked", "60MB")                                   # doctest: +SKIP
        >>> model.resize("120MB").loaded                                            # doctest: +SKIP
        59871232
    """

    folder: Path
    loaded: int
    _entries: list[Entry]
    _sizes: list[int]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The smallest model of a folder, with everything above it still on the disk."""
        from tersor.models.restoring import load_native

        entries, minimum = _read_order(folder)
        base = load_native(folder)
        model = cls(base.module, base.tokenizer, base.name)
        model.provenance = base.provenance
        model.folder, model.loaded, model._entries = folder, 0, entries
        model._sizes = list(accumulate((entry.nbytes for entry in entries), initial=minimum))
        return model

    @property
    def sizes(self) -> Sequence[int]:
        """Every size in bytes that the model can have, ascending."""
        return tuple(self._sizes)

    def resize(self, budget: int | str | float) -> Resized:
        """Make the model the largest that fits ``budget``; the time it takes is that of the bytes moved.

        Args:
            budget: Bytes of all stored tensors, or a size such as ``"120MB"``; ratios and bits per weight relate to the 16-bit model.

        Raises:
            InvalidArgument: If not even the smallest model fits.
            CorruptFile: If a block on disk is missing or damaged; the model stays as it was.
            TersorError: If a layer was given another weight since the stack was loaded.
        """
        return self._load(self._count(budget))

    def generate(
        self, prompt: str, *, max_new_tokens: int = 64, temperature: float = 0.0, seed: int = 0,
        resize: Mapping[int, int | str | float] | None = None, on_resize: Callable[[int, Resized], None] | None = None,
    ) -> str:  # fmt: skip
        """Continue ``prompt``, changing size on the way: as :meth:`Model.generate`, with budgets.

        Args:
            prompt: As there, like the next three.
            max_new_tokens: As there.
            temperature: As there.
            seed: As there.
            resize: Budget to change to before the token of that number, counted from 0. Keys and values of earlier tokens stay as the
                earlier size computed them. A text that ends earlier never gets there.
            on_resize: Told the number of the token and what the change did, after each.

        Raises:
            InvalidArgument: If a budget is below the smallest size or not for one of the tokens; nothing is written then.
        """
        budgets = dict(resize or {})
        self._check_plan(budgets, max_new_tokens)
        tokens = self.encode(prompt)
        if tokens.numel() == 0:
            raise InvalidArgument("the prompt is empty and the tokenizer adds no token of its own; give some text")
        ends, written = end_tokens(self), []
        generator = torch.Generator().manual_seed(seed)
        columns = sample_tokens(self, tokens[None], max_new_tokens, temperature=temperature, generator=generator)
        for number in range(max_new_tokens):
            if number in budgets:
                change = self.resize(budgets[number])
                if on_resize is not None:
                    on_resize(number, change)
            if (token := int(next(columns))) in ends:
                break
            written.append(token)
        return str(self.tokenizer.decode(written, skip_special_tokens=True))  # type: ignore[union-attr]

    def _count(self, budget: int | str | float) -> int:
        """Blocks of the file that fit ``budget``."""
        count = bisect_right(self._sizes, self._bytes_of(budget)) - 1
        if count < 0:
            raise InvalidArgument(f"the budget {budget!r} is below the smallest size of this model, {self._sizes[0]} bytes; raise it")
        return count

    def _check_plan(self, budgets: Mapping[int, int | str | float], max_new_tokens: int) -> None:
        for number, budget in budgets.items():
            if not 0 <= number < max_new_tokens:
                raise InvalidArgument(f"the size {budget!r} is for token {number}; name one of the {max_new_tokens} tokens, counted from 0")
            self._count(budget)

    def _load(self, count: int) -> Resized:
        weights = {name: weight for name, weight in self.weights().items() if isinstance(weight, ResidualStack)}
        self._check_heights(weights)
        before = self._sizes[self.loaded]
        for layer, block in self._read(weights, count):
            weights[layer].push(block)
        for entry in reversed(self._entries[count : self.loaded]):
            weights[entry.layer].pop()
        self.loaded = count
        after = self._sizes[count]
        return Resized(after, max(after - before, 0), max(before - after, 0))

    def _read(self, weights: dict[str, ResidualStack], count: int) -> list[tuple[str, SignBlock]]:
        """All blocks up to ``count`` that are not in memory yet, every one checked before the first is put to use."""
        wanted = self._entries[self.loaded : count]
        if not wanted:
            return []
        path = self.folder / BLOCKS
        found = []
        try:
            with path.open("rb") as file:
                file.seek(self._sizes[self.loaded] - self._sizes[0])
                for number, entry in enumerate(wanted, self.loaded):
                    data = bytearray(file.read(entry.nbytes))
                    if len(data) < entry.nbytes:
                        raise CorruptFile(
                            f"{path} is truncated: it holds {number} of {len(self._entries)} blocks; fetch it again, or ask for at most "
                            f"{self._sizes[number]} bytes"
                        )
                    if hashlib.sha256(data).hexdigest() != entry.sha256:
                        raise CorruptFile(
                            f"{path} is damaged: block {number}, of layer {entry.layer}, was changed after it was written; fetch it again, "
                            f"or ask for at most {self._sizes[number]} bytes"
                        )
                    weight = weights[entry.layer]
                    found.append((entry.layer, _block_of(data, weight.shape, weight.rank).to(weight.device)))
        except OSError as error:
            raise CorruptFile(f"{path} cannot be read: {error.strerror}; fetch it again") from None
        return found

    def _check_heights(self, weights: dict[str, ResidualStack]) -> None:
        heights = Counter(entry.layer for entry in self._entries[: self.loaded])
        for layer in {entry.layer for entry in self._entries}:
            if layer not in weights or len(weights[layer]) != heights[layer] + 1:
                raise TersorError(f"layer {layer} was given another weight since the stack was loaded; load the stack again to resize it")

    def _bytes_of(self, budget: int | str | float) -> int:
        from tersor.allocation.budget import parse_budget

        return parse_budget(budget, dense_bytes=2 * self.n_parameters, n_weights=self.n_parameters)


def load_stack(path: str | Path, budget: int | str | float | None = None) -> StackedModel:
    """Open a folder that :func:`save_stack` wrote, at the largest size that fits ``budget``.

    Args:
        path: The folder.
        budget: As for :meth:`StackedModel.resize`; everything unless given. Of ``blocks.bin`` only what fits is read.

    Raises:
        InvalidArgument: If the folder holds no stack, or not even the smallest model fits.
        CorruptFile: If a file is missing, truncated or changed.
    """
    folder = Path(path)
    if not (folder / ORDER).is_file():
        raise InvalidArgument(f"{folder} holds no residual stack ({ORDER} is missing); name a folder that save_stack wrote")
    model = StackedModel.open(folder)
    model.resize(model.sizes[-1] if budget is None else budget)
    return model


def parse_resizes(written: Sequence[str]) -> dict[int, str]:
    """Changes of size as a command line writes them, ``"30MB@16"``, as :meth:`StackedModel.generate` takes them.

    Raises:
        InvalidArgument: If one is not of that form, or two are for the same token.
    """
    plan: dict[int, str] = {}
    for text in written:
        budget, _, number = text.partition("@")
        if not (budget and number.isdecimal()):
            raise InvalidArgument(f"{text!r} is no change of size; write SIZE@TOKEN, such as 30MB@16")
        if int(number) in plan:
            raise InvalidArgument(f"{text!r} is the second size for token {number}; give one")
        plan[int(number)] = budget
    return plan


def save_stack(model: Model, path: str | Path, order: Sequence[str]) -> None:
    """Write a model of residual stacks so that it can be loaded at any size, whole or not at all.

    Args:
        model: Holds a :class:`tersor.weights.ResidualStack` in some or all of its layers; all else is part of every size.
        path: A folder that does not exist, is empty, or is tersor's own.
        order: Layer names, most important next block first: each name as often as its stack has blocks above the first.

    Raises:
        InvalidArgument: If the order does not name every block once, no layer holds a stack, or the folder holds something else.
        TersorError: If the disk is full or the folder cannot be written; nothing is left behind.
    """
    target = Path(path)
    check_target(target)
    stacks = {name: weight for name, weight in model.weights().items() if isinstance(weight, ResidualStack)}
    _check_order(order, stacks)
    work = target.absolute().with_name(f".{target.name}.stacking")
    try:
        # Left by a process that was killed while it saved.
        shutil.rmtree(work, ignore_errors=True)
        smallest = model.copy()
        for name, weight in stacks.items():
            smallest.replace(name, weight.prefix(1))
        save(smallest, work)
        entries = _write_blocks(work / BLOCKS, order, stacks)
        description: dict[str, Any] = {
            "format": FORMAT, "base": file_sha256(work / DESCRIPTION), "minimum": smallest.nbytes,
            "blocks": [asdict(entry) for entry in entries],
        }  # fmt: skip
        description["checksum"] = description_checksum(description)
        (work / ORDER).write_text(json.dumps(description, indent=1), encoding="utf-8")
        _put(work, target)
    except OSError as error:
        raise TersorError(f"cannot write {target}: {error.strerror or error}; nothing was left behind") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_order(order: Sequence[str], stacks: dict[str, ResidualStack]) -> None:
    if not stacks:
        raise InvalidArgument("no layer of the model holds a residual stack; compress it with the method 'bitstack' first")
    named, needed = Counter(order), {name: len(weight) - 1 for name, weight in stacks.items()}
    for name in sorted(named.keys() | needed.keys()):
        if named[name] != needed.get(name, 0):
            raise InvalidArgument(f"the order names layer {name} {named[name]} times; it has {needed.get(name, 0)} blocks above the first")


def _write_blocks(path: Path, order: Sequence[str], stacks: dict[str, ResidualStack]) -> list[Entry]:
    above: dict[str, Iterator[SignBlock]] = {name: iter(list(weight)[1:]) for name, weight in stacks.items()}
    entries = []
    with path.open("wb") as file:
        for layer in order:
            data = b"".join(part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() for part in next(above[layer]).buffers())
            entries.append(Entry(layer, len(data), hashlib.sha256(data).hexdigest()))
            file.write(data)
    return entries


def _block_of(data: bytearray, shape: tuple[int, int], rank: int) -> SignBlock:
    block = SignBlock.empty(shape, rank)
    position = 0
    for name, promised in list(block.named_buffers()):
        stored: Tensor = torch.frombuffer(data, dtype=torch.uint8, count=promised.nbytes, offset=position)
        # A copy: a view would keep the whole of what was read alive for its smallest part.
        promised.view(torch.uint8).view(-1).copy_(stored)
        setattr(block, name, promised)
        position += promised.nbytes
    return block


def _put(work: Path, target: Path) -> None:
    if not target.is_dir():
        work.replace(target)
        return
    aside = target.absolute().with_name(f".{target.name}.replaced")
    shutil.rmtree(aside, ignore_errors=True)
    target.replace(aside)
    work.replace(target)
    shutil.rmtree(aside, ignore_errors=True)


def _read_order(folder: Path) -> tuple[list[Entry], int]:
    path = folder / ORDER
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        version, checksum = description["format"], description["checksum"]
    except (OSError, ValueError, KeyError, TypeError):
        raise CorruptFile(f"{path} is damaged; fetch or write the stack again") from None
    if type(version) is int and version > FORMAT:
        raise InvalidArgument(f"{path} is in format {version}; this version reads up to {FORMAT}")
    if checksum != description_checksum(description):
        raise CorruptFile(f"{path} was changed or damaged after it was written; fetch or write the stack again")
    if not (folder / DESCRIPTION).is_file() or file_sha256(folder / DESCRIPTION) != description["base"]:
        raise CorruptFile(f"{path} belongs to another model than the one in {folder}; write the stack again")
    return [Entry(**entry) for entry in description["blocks"]], description["minimum"]
