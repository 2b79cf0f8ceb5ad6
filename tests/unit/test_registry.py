"""The registry: lazy names, checks, and plug-ins from files and from other packages."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from bench.errors import UserError
from bench.registry import ATTACKS, DEFENSES, Registry, RegistryError, load_plugin
from defenses.base import Defense

if TYPE_CHECKING:
    from pathlib import Path

_numbers = count()

BASE = '''
class Animal:
    """What all animals share."""
'''

CAT = '''
from bench.leaks import Leak
from bench.registry import ATTACKS

ANIMALS = ATTACKS  # any name: the file is only read
OTHERS = ATTACKS

@ANIMALS.register("cat")
class Cat:
    """Purrs, and
    sleeps.

    More about it.
    """

    leaks = frozenset({Leak.IMAGE, Leak.TEMPLATE})

@OTHERS.register(name="table")
class Table:
    """No animal."""

raise RuntimeError("listing must not import this")
'''

DOG = """
from {package}.base import Animal

class ANIMALS:
    @staticmethod
    def register(name):
        return lambda kind: kind

@ANIMALS.register("dog")
class Dog(Animal):
    pass
"""

ROCK = DOG.replace("dog", "rock").replace("Dog(Animal)", "Rock")


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with a base class and three files that register something."""
    package = f"zoo_of_test_{next(_numbers)}"
    folder = tmp_path / package
    (folder / "deep").mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "base.py").write_text(BASE)
    (folder / "cat.py").write_text(CAT)
    (folder / "rock.py").write_text(ROCK.format(package=package))
    (folder / "deep" / "__init__.py").touch()
    (folder / "deep" / "dog.py").write_text(DOG.format(package=package))
    monkeypatch.syspath_prepend(str(tmp_path))
    return package


def animals(package: str, group: str | None = None) -> Registry:
    return Registry("animal", package, f"{package}.base:Animal", group)


def entry_points(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> None:
    def found(*, group: str) -> list[importlib.metadata.EntryPoint]:
        return [importlib.metadata.EntryPoint(name, value, group) for name, value in points]

    monkeypatch.setattr(importlib.metadata, "entry_points", found)


# --- scanning -----------------------------------------------------------------------------------


def test_names_are_found_without_importing_their_files(zoo: str) -> None:
    registry = animals(zoo)
    assert registry.names() == ["cat", "dog", "rock"]
    assert not [name for name in sys.modules if name.startswith(f"{zoo}.")]


def test_entries_carry_summary_traits_target_and_origin(zoo: str, tmp_path: Path) -> None:
    cat, dog, _ = animals(zoo).entries()
    assert cat.summary == "Purrs, and sleeps"
    assert set(cat.traits) == {"image", "template"}
    assert cat.target == f"{zoo}.cat:Cat"
    assert cat.origin == str(tmp_path / zoo / "cat.py")
    assert dog.target == f"{zoo}.deep.dog:Dog"
    assert dog.summary == ""


def test_get_imports_the_target_once(zoo: str) -> None:
    registry = animals(zoo)
    dog = registry.get("dog")
    assert dog.__name__ == "Dog"
    assert dog.__module__ == f"{zoo}.deep.dog"
    assert registry.get("dog") is dog


def test_a_target_of_the_wrong_type_is_refused(zoo: str) -> None:
    with pytest.raises(RegistryError, match=rf"'rock' must be a subclass of {zoo}\.base\.Animal"):
        animals(zoo).get("rock")


def test_an_unknown_name_is_answered_with_the_nearest_or_all(zoo: str) -> None:
    with pytest.raises(RegistryError, match=r"no animal named 'dogg': did you mean 'dog'\?"):
        animals(zoo).get("dogg")
    with pytest.raises(RegistryError, match="choose one of cat, dog, rock"):
        animals(zoo).entry("zzzzzz")


def test_registry_errors_are_for_the_user() -> None:
    assert issubclass(RegistryError, UserError)


# --- the decorator ------------------------------------------------------------------------------


@pytest.mark.usefixtures("registries")
def test_the_decorator_registers_a_class_and_returns_it() -> None:
    @DEFENSES.register("of-this-test")
    class Mine(Defense):
        """Does nothing. And more."""

    assert DEFENSES.get("of-this-test") is Mine
    assert "of-this-test" in DEFENSES.names()
    assert DEFENSES.entry("of-this-test").origin == __file__


@pytest.mark.usefixtures("registries")
def test_the_decorator_refuses_a_class_of_another_kind() -> None:
    with pytest.raises(RegistryError, match=r"must be a subclass of attacks\.base\.Attack"):

        @ATTACKS.register("of-this-test")
        class Wrong(Defense):
            pass

    assert "of-this-test" not in ATTACKS.names()


@pytest.mark.usefixtures("registries")
def test_a_name_belongs_to_one_class() -> None:
    taken = r"defense name 'none' is taken by defenses\.none:NoDefense .*give .*:.*Second.*another"
    with pytest.raises(RegistryError, match=taken):

        @DEFENSES.register("none")
        class Second(Defense):
            pass

    assert DEFENSES.get("none").__name__ == "NoDefense"


# --- entry points -------------------------------------------------------------------------------


def test_entry_points_join_and_load_when_asked(zoo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry_points(monkeypatch, ("wolf", f"{zoo}.deep.dog:Dog"))
    registry = animals(zoo, "zoo.animals")
    assert registry.names() == ["cat", "dog", "rock", "wolf"]
    assert f"{zoo}.deep.dog" not in sys.modules
    assert registry.get("wolf").__name__ == "Dog"


def test_a_registry_without_group_asks_for_no_entry_points(
    zoo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry_points(monkeypatch, ("wolf", f"{zoo}.deep.dog:Dog"))
    assert "wolf" not in animals(zoo).names()


def test_an_entry_point_cannot_take_a_name(zoo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry_points(monkeypatch, ("dog", "elsewhere:Hound"))
    with pytest.raises(RegistryError, match=r"'dog' is taken by .*dog:Dog .*elsewhere:Hound"):
        animals(zoo, "zoo.animals").names()


def test_a_collision_is_told_every_time(zoo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry_points(monkeypatch, ("wolf", "here:Wolf"), ("wolf", "there:Wolf"))
    registry = animals(zoo, "zoo.animals")
    for _ in range(2):
        with pytest.raises(RegistryError, match="'wolf' is taken by here:Wolf"):
            registry.names()


@pytest.mark.parametrize(
    "value", ["no_such_package_at_all:Dog", "{zoo}.base:Fish", "{zoo}.base", "{zoo}.cat:Cat"]
)
def test_an_entry_point_that_leads_nowhere_is_named(
    value: str, zoo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry_points(monkeypatch, ("wolf", value.format(zoo=zoo)))
    with pytest.raises(RegistryError, match=r"animal 'wolf' cannot be loaded from .*: install"):
        animals(zoo, "zoo.animals").get("wolf")


def test_attacks_and_defenses_are_open_to_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def none(*, group: str) -> list[Any]:
        asked.append(group)
        return []

    monkeypatch.setattr(importlib.metadata, "entry_points", none)
    for registry in (ATTACKS, DEFENSES):
        monkeypatch.setattr(registry, "_entries", None)
        assert registry.names()
    assert asked == ["veilbench.attacks", "veilbench.defenses"]


# --- plug-in files ------------------------------------------------------------------------------

PLUGIN = '''
from bench.registry import DEFENSES
from defenses.base import Defense

@DEFENSES.register("{name}")
class Mine(Defense):
    """A defense from a file."""
'''


def plugin(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.usefixtures("registries")
def test_a_plugin_file_registers_what_it_defines(tmp_path: Path) -> None:
    path = plugin(tmp_path, PLUGIN.format(name="from-a-file"))
    module = load_plugin(path)
    assert DEFENSES.get("from-a-file") is module.Mine
    assert DEFENSES.entry("from-a-file").summary == "A defense from a file"
    assert DEFENSES.entry("from-a-file").origin == str(path)


def test_a_missing_plugin_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"gone\.py does not exist: check the path"):
        load_plugin(tmp_path / "gone.py")


def test_a_plugin_that_is_no_python_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"mine\.txt is not a Python file"):
        load_plugin(plugin(tmp_path, "", "mine.txt"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def broken(:", "SyntaxError"),
        ("import no_such_package_at_all", "ModuleNotFoundError: No module"),
        ("raise OSError('the disk is gone')", "OSError: the disk is gone"),
    ],
)
@pytest.mark.usefixtures("registries")
def test_a_plugin_that_fails_on_import_says_why(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(RegistryError, match=rf"mine\.py fails on import \({reason}"):
        load_plugin(plugin(tmp_path, text))
    assert not [name for name in sys.modules if name.startswith("veilbench_plugin_mine")]


def test_a_plugin_that_registers_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"mine\.py registers nothing: put `@DEFENSES"):
        load_plugin(plugin(tmp_path, "x = 1"))


@pytest.mark.usefixtures("registries")
def test_a_plugin_may_be_loaded_twice_and_leaves_nothing_in_its_folder(tmp_path: Path) -> None:
    path = plugin(tmp_path, PLUGIN.format(name="from-a-file"))
    load_plugin(path)
    load_plugin(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("registries")
def test_two_plugins_may_have_the_same_file_name(tmp_path: Path) -> None:
    loaded = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        loaded.append(load_plugin(plugin(tmp_path / name, PLUGIN.format(name=f"of-{name}"))))
    assert [sys.modules[module.__name__] for module in loaded] == loaded
    assert DEFENSES.get("of-one") is not DEFENSES.get("of-two")
    (tmp_path / "three").mkdir()
    with pytest.raises(RegistryError, match="'of-one' is taken by"):
        load_plugin(plugin(tmp_path / "three", PLUGIN.format(name="of-one")))


@pytest.mark.usefixtures("registries")
def test_a_plugin_cannot_take_a_name(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"'biohash' is taken by .*mine\.py"):
        load_plugin(plugin(tmp_path, PLUGIN.format(name="biohash")))


# --- listing ------------------------------------------------------------------------------------

LIST_ALL = """
import sys
import bench.cli
from bench import listing
for kind in bench.cli.Listing:
    assert len(listing.show(kind).splitlines()) > 1, kind
heavy = {"torch", "numpy", "pandas", "pydantic", "cv2", "scipy", "sklearn"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""


def test_listing_everything_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", LIST_ALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
