"""A machine with a small fast memory that counts every word which crosses its border."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from tersor.errors import TersorError
from tersor.layerwise.checking import check_integer

Array = NDArray[np.float64]


class CacheOverflow(TersorError):
    """A schedule asked for more words of fast memory than there are."""


class Block:
    """A piece of fast memory; ``data`` is ``None`` on a machine that only counts."""

    def __init__(self, size: int, data: Array | None) -> None:
        self.size = size
        self._data: Array | None = data

    @property
    def data(self) -> Array:
        """The words."""
        assert self._data is not None
        return self._data


class IOMachine:
    """Two levels of memory: ``words`` fast words, in which alone can be computed, and as many slow ones as wanted.

    Use it to run a schedule as a program: :meth:`read` and :meth:`write` move words and count them, :meth:`alloc` and :meth:`free` manage
    the fast memory, and what the program computes it computes by :meth:`compute` on blocks that it holds.

    Args:
        words: Size of the fast memory.
        element_bytes: Bytes of a word, for :attr:`bytes_moved`.
        numeric: Whether to compute; otherwise the program runs without arithmetic, for its counts alone.

    Attributes:
        reads: Words read from slow memory so far.
        writes: Words written to it.
        held: Words of fast memory in use.
        peak: The most that were.

    Raises:
        InvalidArgument: If a size is not a positive integer.

    Example:
        >>> import numpy as np
        >>> machine = IOMachine(words=8)
        >>> source, target = np.array([2.0, 0.0, 3.0, 1.0]), np.zeros(4)
        >>> block = machine.read(source)
        >>> machine.compute(np.ndarray.sort, block)
        >>> machine.write(block, target)
        >>> machine.free(block)
        >>> machine.reads, machine.writes, machine.peak, target.tolist()
        (4, 4, 4, [0.0, 1.0, 2.0, 3.0])
    """

    def __init__(self, words: int, element_bytes: int = 4, *, numeric: bool = True) -> None:
        self.words = check_integer("words", words, 1)
        self.element_bytes = check_integer("element_bytes", element_bytes, 1)
        self.numeric = numeric
        self.reads = self.writes = self.held = self.peak = 0

    @property
    def bytes_moved(self) -> int:
        """Traffic in bytes."""
        return (self.reads + self.writes) * self.element_bytes

    def alloc(self, *shape: int) -> Block:
        """A block of zeros, which costs room but no traffic.

        Raises:
            CacheOverflow: If it does not fit.
        """
        size = int(np.prod(shape))
        if self.held + size > self.words:
            raise CacheOverflow(
                f"a block of {' x '.join(map(str, shape))} words beside {self.held} in use exceeds the {self.words} words of fast memory; "
                f"use smaller tiles"
            )
        self.held += size
        self.peak = max(self.peak, self.held)
        return Block(size, np.zeros(shape) if self.numeric else None)

    def read(self, source: Array) -> Block:
        """Copy a piece of slow memory into a new block.

        Raises:
            CacheOverflow: If it does not fit.
        """
        block = self.alloc(*source.shape)
        self.reads += block.size
        if self.numeric:
            block.data[...] = source
        return block

    def write(self, block: Block, target: Array) -> None:
        """Copy a block to a piece of slow memory of its shape."""
        self.writes += block.size
        if self.numeric:
            target[...] = block.data

    def free(self, *blocks: Block) -> None:
        """Give the room of ``blocks`` back."""
        for block in blocks:
            self.held -= block.size
            block._data = None

    @contextmanager
    def reading(self, *sources: Array) -> Iterator[tuple[Block, ...]]:
        """Read, and free at the end."""
        blocks = tuple(self.read(source) for source in sources)
        yield blocks
        self.free(*blocks)

    @contextmanager
    def holding(self, *shapes: tuple[int, ...]) -> Iterator[tuple[Block, ...]]:
        """Allocate, and free at the end."""
        blocks = tuple(self.alloc(*shape) for shape in shapes)
        yield blocks
        self.free(*blocks)

    def compute(self, step: Callable[..., object], *blocks: Block) -> None:
        """Run ``step`` on the data of ``blocks``, of which it changes some and returns nothing; not on a machine that only counts."""
        if self.numeric:
            step(*(block.data for block in blocks))
