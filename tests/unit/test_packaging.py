"""What is tested is what users install: the built wheel, whole and unmixed with the checkout.

Holds under ``tools/test``, which installs the wheel; it fails, on purpose, when the tests are run
with the checkout on the path.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import mailstrom

CHECKOUT = Path(__file__).resolve().parents[2]
SITE = Path(sysconfig.get_path("purelib")).resolve()
PACKAGES = {"mailstrom": CHECKOUT / "mailstrom"}
PACKAGES["mailstrom_workers"] = CHECKOUT / "workers" / "mailstrom_workers"


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_the_package_lies_in_site_packages(package: str) -> None:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).resolve().parent == SITE / package


@pytest.mark.parametrize("package", PACKAGES)
def test_the_wheel_holds_every_file_of_the_checkout_and_no_other(package: str) -> None:
    installed, source = files(SITE / package), files(PACKAGES[package])
    assert installed.keys() == source.keys()
    assert [name for name in source if installed[name] != source[name]] == []


def test_no_module_was_imported_from_the_checkout() -> None:
    from_checkout = [
        name
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in PACKAGES
        and Path(getattr(module, "__file__", None) or SITE).resolve().is_relative_to(CHECKOUT)
        and not Path(getattr(module, "__file__", None) or SITE).resolve().is_relative_to(SITE)
    ]
    assert from_checkout == []


def test_the_wheel_brings_nothing_but_its_two_packages_and_the_commands() -> None:
    listed = importlib.metadata.files("mailstrom")
    assert listed is not None
    tops = {file.parts[0] for file in listed if ".dist-info" not in file.parts[0]}
    assert tops - {".."} == set(PACKAGES)
    commands = [file.name for file in listed if file.parts[0] == ".."]
    assert sorted(commands) == ["mailstrom", "mailstrom-mailq", "mailstrom-sendmail"]


def test_the_versions_agree() -> None:
    assert importlib.metadata.version("mailstrom") == mailstrom.__version__


def test_importing_mailstrom_loads_nothing_else() -> None:
    program = (
        "import sys; before = set(sys.modules); import mailstrom;"
        "print(sorted(set(sys.modules) - before - {'mailstrom', '__future__'}))"
    )
    # typing is the standard library's; a parent's coverage or pth files are in `before`
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import typing\n{program}"],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "[]"


def test_every_public_name_of_the_package_loads() -> None:
    names = vars(mailstrom)["__all__"]
    assert "Mailstrom" in names
    for name in names:
        assert getattr(mailstrom, name).__name__ == name
