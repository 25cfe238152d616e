"""The optimum for toy programs, and what automatic caches make of a given order of accesses."""

from __future__ import annotations

import heapq
from collections import OrderedDict, defaultdict, deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Literal

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_choice, check_integer

Graph = Mapping[str, Sequence[str]]
Policy = Literal["lru", "opt"]

# Each vertex is in or out of each memory: 4 ** 12 states are the most that a search in Python should meet.
_LARGEST = 12


def optimal_pebbling(graph: Graph, words: int) -> int:
    """The fewest words that any program moves which computes ``graph`` with ``words`` words of fast memory.

    Args:
        graph: Each vertex with what it is computed from; a vertex of nothing is an input, which starts in slow memory, and a vertex that
            nothing is computed from is an output, which must end there.
        words: Of fast memory.

    Returns:
        Reads and writes of the best order, found by Dijkstra's algorithm over all contents of both memories.

    Raises:
        InvalidArgument: If the graph is too large or has a cycle, or a vertex and what it needs do not fit.

    Reference:
        Hong, Kung: "I/O Complexity: The Red-Blue Pebble Game", 1981.
    """
    check_integer("words", words, 1)
    names = list(graph)
    if len(names) > _LARGEST:
        raise InvalidArgument(f"the search is for graphs of at most {_LARGEST} vertices, this one has {len(names)}")
    bit = {name: 1 << index for index, name in enumerate(names)}
    needs = [sum(bit[parent] for parent in graph[name]) for name in names]
    inputs = sum(bit[name] for name in names if not graph[name])
    outputs = sum(bit[name] for name in names) & ~sum(bit[parent] for parent in {p for parents in graph.values() for p in parents})
    best = {(0, inputs): 0}
    queue = [(0, 0, inputs)]
    while queue:
        cost, red, blue = heapq.heappop(queue)
        if not outputs & ~blue:
            return cost
        if cost > best[red, blue]:
            continue
        for price, *state in _moves(red, blue, needs, words):
            key = (state[0], state[1])
            if cost + price < best.get(key, cost + price + 1):
                best[key] = cost + price
                heapq.heappush(queue, (cost + price, *key))
    raise InvalidArgument(f"the graph cannot be computed with {words} words: a vertex and what it needs must fit, and no cycle be there")


def _moves(red: int, blue: int, needs: Sequence[int], words: int) -> Iterator[tuple[int, int, int]]:
    """Price and result of every move: load, compute, store, forget."""
    room = red.bit_count() < words
    for index, parents in enumerate(needs):
        mark = 1 << index
        if red & mark:
            yield 0, red & ~mark, blue
            if not blue & mark:
                yield 1, red, blue | mark
        elif room:
            if blue & mark:
                yield 1, red | mark, blue
            if parents and not parents & ~red:
                yield 0, red | mark, blue


def misses(trace: Sequence[Hashable], words: int, policy: Policy) -> int:
    """Reads of an automatic cache of ``words`` words over a trace of accesses, one word each.

    Args:
        trace: What is accessed, in order.
        words: Of the cache.
        policy: ``"lru"`` evicts what was not used for longest, ``"opt"`` what will not be used for longest: no policy misses less.

    Raises:
        InvalidArgument: If the policy is unknown or ``words`` not positive.

    Reference:
        Belady: "A study of replacement algorithms for a virtual-storage computer", 1966.
        Sleator, Tarjan: "Amortized efficiency of list update and paging rules", 1985.
    """
    check_integer("words", words, 1)
    check_choice("policy", policy, Policy)
    return _lru(trace, words) if policy == "lru" else _opt(trace, words)


def _lru(trace: Sequence[Hashable], words: int) -> int:
    held: OrderedDict[Hashable, None] = OrderedDict()
    missed = 0
    for word in trace:
        if word in held:
            held.move_to_end(word)
            continue
        missed += 1
        if len(held) == words:
            held.popitem(last=False)
        held[word] = None
    return missed


def _opt(trace: Sequence[Hashable], words: int) -> int:
    uses: dict[Hashable, deque[int]] = defaultdict(deque)
    for time, word in enumerate(trace):
        uses[word].append(time)
    held: set[Hashable] = set()
    furthest: list[tuple[int, int, Hashable]] = []
    missed = 0
    for time, word in enumerate(trace):
        uses[word].popleft()
        following = uses[word][0] if uses[word] else len(trace)
        if word not in held:
            missed += 1
            while len(held) == words:
                stamp, _, candidate = heapq.heappop(furthest)
                # An entry is out of date if its word was used since.
                if candidate in held and -stamp == (uses[candidate][0] if uses[candidate] else len(trace)):
                    held.remove(candidate)
            held.add(word)
        heapq.heappush(furthest, (-following, time, word))
    return missed


def attention_trace(n: int, d: int) -> list[tuple[str, int, int]]:
    """The accesses of attention written as three plain loops: what a program has that leaves its memory to a cache.

    Args:
        n: Queries and keys.
        d: Width of a head.

    Returns:
        Matrix, row and column of each access: for every score the products, then for every output the weighted values.
    """
    trace: list[tuple[str, int, int]] = []
    for i in range(n):
        for j in range(n):
            for feature in range(d):
                trace += [("q", i, feature), ("k", j, feature)]
            trace.append(("s", i, j))
    for i in range(n):
        for feature in range(d):
            for j in range(n):
                trace += [("s", i, j), ("v", j, feature)]
            trace.append(("o", i, feature))
    return trace
