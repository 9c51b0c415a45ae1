"""Frozen values without ``dataclasses``: for what every client loads when it starts.

Contract. ``@value`` makes of an annotated class what ``dataclass(frozen=True, slots=True,
kw_only=True)`` would: keyword-only, frozen, slotted, compared by its fields. ``dataclasses`` writes
source text for each class and runs it, and loads ``inspect``, ``ast``, ``dis`` and ``tokenize`` to
do so: half of what a client's start took. Here the methods are the same functions for every class;
making an instance costs no more (a frozen dataclass sets each field through ``object``, too).

To whoever asks, these are dataclasses: ``fields``, ``replace``, ``asdict``, ``is_dataclass`` and
``inspect.signature`` work, by a real dataclass that is made when it is first asked for.

No inheritance of fields. Must not know: any value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast, dataclass_transform

_T = TypeVar("_T")


class _Made:
    """A default that each instance gets a new one of."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[], object]) -> None:
        self.make = make


def field(*, default_factory: Callable[[], _T]) -> _T:
    """A field whose default is made anew for each instance.

    Args:
        default_factory: makes it.
    """
    return cast(_T, _Made(default_factory))


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def value(cls: type[_T]) -> type[_T]:
    """Make a frozen, slotted, keyword-only value of a class with annotated fields.

    Args:
        cls: its annotations are the fields, in order; what it assigns to one is its default.

    Returns:
        A class of the same name in its place, which has the slots.
    """
    names = tuple(cls.__annotations__)
    body = {key: thing for key, thing in vars(cls).items() if key not in _DROPPED}
    defaults = {name: body.pop(name) for name in names if name in body}
    meta: Any = type(cls)
    made: Any = meta(cls.__name__, cls.__bases__, {**_METHODS, **body, "__slots__": names})
    made.__qualname__ = cls.__qualname__
    made._defaults = defaults
    made._setters = tuple((name, vars(made)[name].__set__) for name in names)
    for name in _ASKED:
        setattr(made, name, _Told(made, name))
    return cast(type[_T], made)


def replace(one: _T, **changes: object) -> _T:
    """A copy of a value with some fields changed.

    Raises:
        TypeError: it has no such field.
    """
    fields: Any = type(one)
    return cast(_T, fields(**{**_fields(one), **changes}))


class _Told:
    """An attribute that ``dataclasses`` and ``inspect`` ask for; found out when they do.

    Args:
        owner: the value's class.
        name: of the attribute.
    """

    def __init__(self, owner: type, name: str) -> None:
        self._owner = owner
        self._name = name

    def __get__(self, instance: object, owner: type) -> object:
        from dataclasses import field as known
        from dataclasses import make_dataclass
        from inspect import signature

        made: Any = self._owner
        listed: list[tuple[str, Any, Any]] = []
        for name, kind in made.__annotations__.items():
            default = made._defaults.get(name, self)
            if default is self:
                listed.append((name, kind, known()))
            elif isinstance(default, _Made):
                listed.append((name, kind, known(default_factory=default.make)))
            else:
                listed.append((name, kind, known(default=default)))
        twin: Any = make_dataclass(made.__name__, listed, frozen=True, kw_only=True)
        told = signature(twin) if self._name == "__signature__" else getattr(twin, self._name)
        setattr(made, self._name, told)
        return told


def _fields(one: Any) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__slots__}


def _init(self: Any, /, **given: object) -> None:
    defaults = self._defaults
    lacking = []
    for name, put in self._setters:
        if name in given:
            put(self, given.pop(name))
        elif name in defaults:
            default = defaults[name]
            put(self, default.make() if isinstance(default, _Made) else default)
        else:
            lacking.append(name)
    if lacking:
        raise TypeError(f"{type(self).__qualname__}: missing {', '.join(lacking)}")
    if given:
        raise TypeError(f"{type(self).__qualname__}: has no field {', '.join(given)}")


def _eq(self: Any, other: Any) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    return _fields(self) == _fields(other)


def _hash(self: Any) -> int:
    return hash(tuple(_fields(self).values()))


def _repr(self: Any) -> str:
    shown = ", ".join(f"{name}={one!r}" for name, one in _fields(self).items())
    return f"{type(self).__qualname__}({shown})"


def _frozen(self: Any, name: str, *_: object) -> None:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"{type(self).__qualname__}.{name}: a value is never changed")


def _getstate(self: Any) -> dict[str, Any]:
    return _fields(self)


def _setstate(self: Any, state: dict[str, Any]) -> None:
    for name, put in self._setters:
        put(self, state[name])


_METHODS = {
    "__init__": _init,
    "__eq__": _eq,
    "__hash__": _hash,
    "__repr__": _repr,
    "__setattr__": _frozen,
    "__delattr__": _frozen,
    "__getstate__": _getstate,
    "__setstate__": _setstate,
    "__replace__": replace,
}
_ASKED = ("__dataclass_fields__", "__dataclass_params__", "__signature__")
_DROPPED = frozenset({"__dict__", "__weakref__"})
