"""``@value`` against the dataclass that it stands in for."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from mailstrom.value import field, replace, value


@value
class Point:
    """A place."""

    x: int
    y: int = 0
    words: dict[str, int] = field(default_factory=dict)

    @property
    def far(self) -> bool:
        return self.x > 100


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """A place."""

    x: int
    y: int = 0
    words: dict[str, int] = dataclasses.field(default_factory=dict)


def test_it_compares_by_class_and_fields() -> None:
    assert Point(x=1, y=2) == Point(y=2, x=1)
    assert Point(x=1) != Point(x=2)
    assert Point(x=1) != Twin(x=1)  # type: ignore[comparison-overlap]
    assert Point(x=101).far


def test_it_is_shown_as_a_dataclass_is() -> None:
    assert repr(Point(x=1)).replace("Point", "Twin") == repr(Twin(x=1))


def test_each_instance_has_its_own_made_default() -> None:
    one, other = Point(x=1), Point(x=1)
    one.words["a"] = 1
    assert other.words == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [({}, "missing x"), ({"x": 1, "z": 2, "q": 3}, "no field z, q")],
)
def test_wrong_arguments_are_named(given: dict[str, int], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        Point(**given)  # type: ignore[arg-type]


def test_fields_are_keywords() -> None:
    with pytest.raises(TypeError):
        Point(1)  # type: ignore[misc]


def test_it_is_frozen() -> None:
    one = Point(x=1)
    for change in (lambda: setattr(one, "x", 2), lambda: delattr(one, "x")):
        with pytest.raises(dataclasses.FrozenInstanceError, match=r"Point\.x"):
            change()
    with pytest.raises(AttributeError):
        one.other = 1  # type: ignore[attr-defined]
    assert not hasattr(one, "__dict__")


def test_hashing_needs_fields_that_can_be_hashed() -> None:
    @value
    class Plain:
        x: int

    assert hash(Plain(x=1)) == hash(Plain(x=1))
    with pytest.raises(TypeError, match="unhashable"):
        hash(Point(x=1))


def test_a_copy_with_changes() -> None:
    one = Point(x=1, words={"a": 1})
    assert replace(one, y=5) == Point(x=1, y=5, words={"a": 1})
    with pytest.raises(TypeError, match="no field z"):
        replace(one, z=5)


def test_it_is_copied_and_pickled_whole() -> None:
    one = Point(x=1, words={"a": 1})
    for made in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert made == one
    assert copy.deepcopy(one).words is not one.words


def test_to_dataclasses_it_is_one() -> None:
    one = Point(x=1, y=2)
    assert dataclasses.is_dataclass(Point)
    assert dataclasses.is_dataclass(one)
    assert dataclasses.asdict(one) == {"x": 1, "y": 2, "words": {}}
    assert dataclasses.astuple(one) == (1, 2, {})
    assert dataclasses.replace(one, x=3) == Point(x=3, y=2)
    told = [(one.name, one.type, one.default) for one in dataclasses.fields(Point)]
    assert told == [(one.name, one.type, one.default) for one in dataclasses.fields(Twin)]


def test_its_signature_is_a_dataclass_s() -> None:
    assert str(inspect.signature(Point)) == str(inspect.signature(Twin))


def test_a_client_starts_without_dataclasses_and_openssl(tmp_path: Path) -> None:
    code = (
        "import sys, mailstrom\n"
        "mailstrom.Mailstrom(sys.argv[1])\n"
        "print(*sorted({'dataclasses', 'inspect', '_hashlib', 'email', 'asyncio', 'socket', 'ssl',"
        " 'logging', 'msgspec'} & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code, tmp_path / "spool.db"],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ran.stdout.split() == []
