"""Classes of a model and of a file, matched by name."""
from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigError
from ..system.log import logger


def placeholders(count: int) -> list[str]:
    """Names of classes that nobody has named."""
    return [f"class {i}" for i in range(count)]


def order(trained: Sequence[str] | None, listed: Sequence[str], source: object, *,
          by_place: bool = False) -> list[int]:
    """For each class of a model its place in a list of classes, found by name.

    Args:
        trained: the model's names; None or `placeholders`: unknown, so that its classes are those of the list.
        source: where the list stands, for messages.
        by_place: whatever they are called, the first is the first.

    Raises: ConfigError: the two do not name the same classes.
    """
    if trained is None or list(trained) == list(listed):
        return list(range(len(listed)))
    if by_place and len(trained) == len(listed):
        logger.warning("%s: its classes (%s) are matched with the model's (%s) by their places", source, _some(listed),
                       _some(trained))
        return list(range(len(listed)))
    if sorted(trained) == sorted(listed) and len(set(listed)) == len(listed):
        logger.warning("%s lists the classes in another order (%s) than the model has them (%s); they are matched by "
                       "name", source, _some(listed), _some(trained))
        return [list(listed).index(name) for name in trained]
    if len(trained) == len(listed) and placeholders(len(listed)) in (list(trained), list(listed)):  # nobody named them
        return list(range(len(listed)))
    raise ConfigError(f"{source}: lists {_some(listed)}; the model has {_some(trained)}; take the annotations that "
                      "belong to the model, or set match_classes=place if only the names differ")


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} classes: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
