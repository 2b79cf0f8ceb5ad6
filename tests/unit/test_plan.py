"""Suites and cells: every wrong field is named, equal cells run once, keys hold what matters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from bench.errors import UserError
from bench.jobs import Job, Utility, cell_jobs
from bench.keys import derived_seed, digest
from bench.leaks import Leak
from bench.plan import (
    Cell,
    Named,
    Spec,
    Suite,
    SuiteError,
    cells,
    load_suite,
    narrowed,
    parse_suite,
    protected,
    standard_set,
    suite_names,
)
from bench.registry import RegistryError, load_plugin
from bench.threats import Threat

if TYPE_CHECKING:
    from pathlib import Path

SIZES = {
    "victims": 6,
    "probes": 6,
    "attacker_images": 20,
    "defender_images": 20,
    "gallery_people": 2,
}


def fields(**changes: Any) -> dict[str, Any]:
    """Return the fields of a suite that can be read."""
    return {
        "name": "tiny",
        "title": "Tiny",
        "dataset": "orl",
        "recognizer": {"name": "sface"},
        "split": SIZES,
        "group": [group()],
        **changes,
    }


def group(leak: str = "features", **changes: Any) -> dict[str, Any]:
    return {
        "leak": leak,
        "defenses": [{"name": "none"}, {"name": "sign-noise", "eps": 0.5}],
        "attacks": [{"name": "retrieval", "threats": ["transfer", "adaptive"]}],
        **changes,
    }


def suite(**changes: Any) -> Suite:
    return parse_suite(fields(**changes), "here.toml")


# --- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", suite_names())
def test_built_in_suites_can_be_planned(name: str) -> None:
    suite = load_suite(name)
    planned = cells(suite)
    assert bool(planned) == any(group.attacks for group in suite.group)
    assert len(set(planned)) == len(planned)
    assert {(cell.leak, cell.defense) for cell in planned} <= set(protected(suite))
    assert suite.name == name


def test_the_built_in_suites_are_those_of_the_design() -> None:
    assert {"smoke", "demo", "lfw"} <= set(suite_names())


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"name": "../up"}, "name", "pattern"),
        ({"datasets": "orl"}, "datasets", "Extra inputs"),
        ({"dataset": 3}, "dataset", "valid string"),
        ({"recognizer": "sface"}, "recognizer", "valid dictionary"),
        ({"recognizer": {"cut": 4}}, "recognizer.name", "required"),
        ({"recognizer": {"name": "sface", "label": "a/b"}}, "recognizer.label", "pattern"),
        ({"judges": [{"name": "dlib"}, {"name": "dlib"}]}, "", "recognizers are called dlib"),
        ({"judges": [{"name": "sface", "cut": 9}]}, "", "recognizers are called sface"),
        ({"seeds": []}, "seeds", "at least 1"),
        ({"seeds": ["a"]}, "seeds.0", "valid integer"),
        ({"fmr": 0}, "fmr", "greater than 0"),
        ({"fmr": 1}, "fmr", "less than 1"),
        ({"fresh_instances": 0}, "fresh_instances", "greater than or equal to 1"),
        ({"split": {**SIZES, "victims": 1}}, "split.victims", "greater than or equal to 4"),
        ({"split": {**SIZES, "probe": 1}}, "split.probe", "Extra inputs"),
        ({"split": {**SIZES, "pairs_per_fold": 3}}, "split.pairs_per_fold", "multiple of 2"),
        ({"group": []}, "group", "at least 1"),
        ({"group": [group("pixels")]}, "group.0.leak", "'image', 'features' or 'template'"),
        ({"group": [group(defenses=[])]}, "group.0.defenses", "at least 1"),
        ({"group": [group(defence=[])]}, "group.0.defence", "Extra inputs"),
        ({"group": [group(), group(attacks=[{"name": "unet"}])]}, "group.1.attacks.0.threats", ""),
        (
            {"group": [group(attacks=[{"name": "unet", "threats": ["psychic"]}])]},
            "group.0.attacks.0.threats.0",
            "'transfer'",
        ),
    ],
)
def test_a_wrong_field_is_named_with_the_file(
    changes: dict[str, Any], field: str, reason: str
) -> None:
    with pytest.raises(SuiteError) as caught:
        suite(**changes)
    message = str(caught.value)
    assert message.startswith(f"The suite here.toml has a wrong field {field!r} (")
    assert reason in message
    assert "\n" not in message


@pytest.mark.parametrize("field", ["name", "title", "dataset", "recognizer", "split", "group"])
def test_a_missing_field_is_named(field: str) -> None:
    left = {key: value for key, value in fields().items() if key != field}
    with pytest.raises(SuiteError, match=rf"wrong field '{field}' \(Field required\)"):
        parse_suite(left, "here.toml")


def test_an_unknown_suite_is_answered_with_all_names(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"no suite 'demos': choose one of demo, .*smoke"):
        load_suite("demos")
    with pytest.raises(SuiteError, match=r"no suite '.*gone\.toml'"):
        load_suite(str(tmp_path / "gone.toml"))


@pytest.mark.parametrize("content", [b"name = ", b"name = '\xff'", b"[a]\n[a]\n"])
def test_a_file_that_is_no_toml_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(SuiteError, match=r"mine\.toml cannot be read \(.*\): mend its TOML"):
        load_suite(str(path))


def test_a_suite_is_read_from_a_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "mine"\ntitle = "Mine"\ndataset = "orl"\nrecognizer = { name = "sface", cut = 6 }\n'
        "split = { victims = 6, probes = 6, attacker_images = 9, defender_images = 8, "
        "gallery_people = 0, mirror = true }\n"
        '[[group]]\nleak = "image"\ndefenses = [{ name = "pixelate", block = 4 }]\n'
        'attacks = [{ name = "unet", threats = ["adaptive"] }]\n'
    )
    mine = load_suite(str(path))
    assert mine.recognizer.parameters == {"cut": 6}
    assert mine.split.mirror
    assert mine.seeds == (0,)
    assert [str(cell) for cell in cells(mine)] == ["image/pixelate/unet/adaptive/seed 0"]
    assert cells(mine)[0].defense.parameters == {"block": 4}


# --- planning -----------------------------------------------------------------------------------


def planned(one: Suite) -> list[str]:
    return [str(cell) for cell in cells(one)]


def test_every_defense_meets_every_attack_under_every_threat_and_seed() -> None:
    attacks = [
        {"name": "retrieval", "threats": ["transfer", "adaptive"]},
        {"name": "unet", "threats": ["insider"]},
    ]
    one = suite(seeds=[3, 4], group=[group(defenses=[{"name": "quantize"}], attacks=attacks)])
    assert planned(one) == [
        f"features/quantize/{attack}/seed {seed}"
        for seed in (3, 4)
        for attack in ("retrieval/transfer", "retrieval/adaptive", "unet/insider")
    ]


def test_no_defense_meets_each_attack_once_under_its_first_threat() -> None:
    assert [name for name in planned(suite()) if "/none/" in name] == [
        "features/none/retrieval/transfer/seed 0"
    ]


def test_equal_cells_of_several_groups_run_once() -> None:
    spelled_out = group(defenses=[{"name": "sign-noise", "eps": 0.6}])
    default = group(defenses=[{"name": "sign-noise"}])
    assert len(planned(suite(group=[spelled_out, default, spelled_out]))) == 2
    assert len(planned(suite(group=[spelled_out, group()]))) == 5


def test_a_defense_spelled_out_is_the_same_under_other_attacks() -> None:
    spelled_out = group(defenses=[{"name": "sign-noise", "eps": 0.6}])
    attacks = [{"name": "unet", "threats": ["adaptive"]}]
    default = group(defenses=[{"name": "sign-noise"}], attacks=attacks)
    one = suite(group=[spelled_out, default])
    assert len({cell.defense for cell in cells(one)}) == 1
    assert len(protected(one)) == 1


def test_a_group_without_attacks_has_defenses_and_no_cells() -> None:
    one = suite(group=[group(attacks=[])])
    assert cells(one) == []
    assert [(leak, spec.name) for leak, spec in protected(one)] == [
        ("features", "none"),
        ("features", "sign-noise"),
    ]
    assert cell_jobs(one) == [Job((Utility(0, Leak.FEATURES, spec),)) for _, spec in protected(one)]


def test_a_defense_that_nothing_attacks_is_checked_too() -> None:
    with pytest.raises(SuiteError, match="'biohash' does not work on the leak image"):
        protected(suite(group=[group("image", defenses=[{"name": "biohash"}], attacks=[])]))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dataset": "orll"}, "no dataset named 'orll': did you mean 'orl'"),
        ({"recognizer": {"name": "sfaces"}}, "no recognizer named 'sfaces': did you mean 'sface'"),
        ({"judges": [{"name": "dlibb"}]}, "no recognizer named 'dlibb': did you mean 'dlib'"),
        (
            {"group": [group(defenses=[{"name": "advfase"}])]},
            "no defense named 'advfase': did you mean 'advface'",
        ),
        (
            {"group": [group(attacks=[{"name": "u-net", "threats": ["adaptive"]}])]},
            "no attack named 'u-net': did you mean 'unet'",
        ),
    ],
)
def test_an_unknown_plugin_is_answered_with_the_nearest(
    changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(RegistryError, match=sentence):
        cells(suite(**changes))


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        ({"name": "sign-noise", "eps": -1}, "'eps' of defense 'sign-noise' cannot be -1 "),
        ({"name": "sign-noise", "eps": "big"}, "'eps' of defense 'sign-noise' cannot be 'big' "),
        (
            {"name": "sign-noise", "sigma": 1},
            "'sigma' of defense 'sign-noise' .*eters are eps",
        ),
        ({"name": "none", "eps": 1}, "'eps' of defense 'none' .*its parameters are none"),
        ({"name": "quantize", "bits": 17}, "'bits' of defense 'quantize' cannot be 17 "),
    ],
)
def test_a_wrong_parameter_is_named(named: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        cells(suite(group=[group(defenses=[named])]))


def test_a_plugin_on_the_wrong_leak_is_refused_before_anything_runs() -> None:
    with pytest.raises(SuiteError, match=r"defense 'biohash' does not work .*image \(only on temp"):
        cells(suite(group=[group("image", defenses=[{"name": "biohash"}])]))
    with pytest.raises(SuiteError, match=r"attack 'linear' does not work on the leak features"):
        cells(suite(group=[group(attacks=[{"name": "linear", "threats": ["adaptive"]}])]))


def test_an_attack_under_the_wrong_threat_is_refused() -> None:
    wrong = group(attacks=[{"name": "denoise", "threats": ["transfer"]}])
    with pytest.raises(SuiteError, match=r"'denoise' does not run under .*transfer \(only under a"):
        cells(suite(group=[wrong]))


# --- narrowing ----------------------------------------------------------------------------------

MIXED = [
    group(),
    group("template", defenses=[{"name": "biohash", "bits": 64}]),
    group("image", defenses=[{"name": "none"}, {"name": "pixelate"}]),
]


def test_nothing_to_narrow_leaves_a_suite_as_it_is() -> None:
    one = suite(group=MIXED)
    assert narrowed(one, [], [], None) == one


def test_one_defense_stays_beside_none_with_its_parameters() -> None:
    one = narrowed(suite(group=MIXED), ["biohash"], [], None)
    assert [item.leak for item in one.group] == ["template"]
    assert one.group[0].defenses[0].parameters == {"bits": 64}
    one = narrowed(suite(group=MIXED), ["sign-noise"], [], None)
    kept: dict[str, list[str]] = {
        item.leak: [named.name for named in item.defenses] for item in one.group
    }
    assert kept["features"] == ["none", "sign-noise"]
    assert "image" not in kept


def test_a_defense_that_the_suite_lacks_joins_where_it_works() -> None:
    one = narrowed(suite(group=MIXED), ["quantize"], [], None)
    kept = {item.leak: [named.name for named in item.defenses] for item in one.group}
    assert kept == {"features": ["none", "quantize"], "template": ["quantize"]}


def test_an_attack_that_the_suite_lacks_joins_under_all_its_threats() -> None:
    one = narrowed(suite(group=MIXED), [], ["unet"], None)
    assert [item.leak for item in one.group] == ["features", "image"]
    for item in one.group:
        assert [named.name for named in item.attacks] == ["unet"]
        assert set(item.attacks[0].threats) == {"transfer", "adaptive", "insider", "query"}
    assert cells(one)


def test_an_attack_of_the_suite_keeps_its_threats() -> None:
    one = narrowed(suite(group=MIXED), [], ["retrieval"], None)
    assert {item.attacks[0].threats for item in one.group} == {("transfer", "adaptive")}


def test_a_group_without_attacks_takes_those_asked_for() -> None:
    bare = suite(group=[group(attacks=[]), group("template", attacks=[])])
    assert [item.leak for item in narrowed(bare, ["sign-noise"], [], None).group] == [
        "features",
        "template",
    ]
    attacked = narrowed(bare, [], ["feasibility"], None)
    assert [item.leak for item in attacked.group] == ["features"]
    assert cells(attacked)


def test_a_registered_plugin_file_joins(tmp_path: Path, registries: None) -> None:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.format(factor=2))
    load_plugin(path)
    one = narrowed(suite(group=MIXED), ["doubles"], [], None)
    assert [item.leak for item in one.group] == ["template"]


def test_other_data_replace_the_dataset() -> None:
    assert narrowed(suite(), [], [], "lfw").dataset == "lfw"
    with pytest.raises(RegistryError, match="no dataset named 'lfww'"):
        cells(narrowed(suite(), [], [], "lfww"))


def test_narrowing_to_unknown_names_is_answered_with_the_nearest() -> None:
    with pytest.raises(RegistryError, match="did you mean 'pixelate'"):
        narrowed(suite(), ["pixelat"], [], None)
    with pytest.raises(RegistryError, match="did you mean 'gradient'"):
        narrowed(suite(), [], ["gradiant"], None)


def test_narrowing_to_what_fits_nowhere_is_refused() -> None:
    with pytest.raises(SuiteError, match="Nothing in the suite tiny fits dct-drop-dc"):
        narrowed(suite(), ["dct-drop-dc"], [], None)
    with pytest.raises(SuiteError, match="Nothing in the suite tiny fits dct-inverse"):
        narrowed(suite(), [], ["dct-inverse"], None)


# --- keys ---------------------------------------------------------------------------------------

PLUGIN = '''
from dataclasses import dataclass
from bench.leaks import Leak
from bench.registry import DEFENSES
from defenses.base import Defense

@DEFENSES.register("doubles")
@dataclass
class Doubles(Defense):
    """Multiplies."""

    leaks = frozenset({{Leak.TEMPLATE}})

    def protect(self, x, *, generator):
        return x * {factor}
'''


def noise(**given: Any) -> Spec:
    return Spec("defense", "sign-noise", tuple(given.items()))


def test_a_specification_holds_all_parameters() -> None:
    assert noise().parameters == {"eps": 0.6}
    assert noise(eps=1).parameters == {"eps": 1.0}
    assert noise(eps=0.2).create().eps == 0.2


def test_how_parameters_are_written_does_not_change_a_key() -> None:
    def key(*given: tuple[str, Any]) -> str:
        return digest(Spec("attack", "unet", given).fields)

    first = key(("steps", 9), ("width", 8))
    assert key(("width", 8), ("steps", 9), ("rate", 2e-3)) == first
    assert digest(noise(eps=1).fields) == digest(noise(eps=1.0).fields)
    assert digest(noise().fields) == digest(noise(eps=0.6).fields)


def test_parameters_and_names_change_a_key() -> None:
    keys = {
        digest(spec.fields)
        for spec in (noise(), noise(eps=0.5), Spec("defense", "gaussian-noise", (("eps", 0.6),)))
    }
    assert len(keys) == 3


def test_the_source_of_a_plugin_changes_its_key(tmp_path: Path, registries: None) -> None:
    path = tmp_path / "mine.py"
    found = []
    for factor in (2, 3, 2):
        path.write_text(PLUGIN.format(factor=factor))
        load_plugin(path)
        found.append(digest(Spec("defense", "doubles", ()).fields))
    assert found[0] != found[1]
    assert found[0] == found[2]


def test_everything_that_a_cell_is_tells_it_from_others() -> None:
    retrieval = Spec("attack", "retrieval", ())
    first = Cell(Leak.FEATURES, noise(), retrieval, Threat.ADAPTIVE, 0)
    others = [
        Cell(Leak.TEMPLATE, noise(), retrieval, Threat.ADAPTIVE, 0),
        Cell(Leak.FEATURES, noise(eps=0.5), retrieval, Threat.ADAPTIVE, 0),
        Cell(Leak.FEATURES, noise(), Spec("attack", "unet", ()), Threat.ADAPTIVE, 0),
        Cell(Leak.FEATURES, noise(), retrieval, Threat.INSIDER, 0),
        Cell(Leak.FEATURES, noise(), retrieval, Threat.ADAPTIVE, 1),
    ]
    assert len({first, *others}) == 6


def test_digests_follow_from_values_alone() -> None:
    assert digest({"a": 1, "b": [2, "c"]}) == digest({"b": (2, "c"), "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.5}) != digest({"a": "1"})
    assert digest([]) == "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"
    with pytest.raises(ValueError, match="Out of range"):
        digest(float("nan"))


def test_derived_seeds_are_fixed_and_fit_a_generator() -> None:
    seeds = [derived_seed(["cell", number]) for number in range(50)]
    assert len(set(seeds)) == 50
    assert seeds[0] == derived_seed(["cell", 0])
    assert all(0 <= seed < 2**60 for seed in seeds)


# --- the standard set ---------------------------------------------------------------------------


def test_strongest_is_the_standard_set_for_every_leak() -> None:
    wanted = suite(group=[group(leak, defenses=[{"name": "none"}]) for leak in Leak])
    chosen = narrowed(wanted, [], ["strongest"], None)
    standard = standard_set()
    assert chosen.attack_set == standard.version == "standard-v3"
    assert {item.leak: item.attacks for item in chosen.group} == {
        leak: standard.against(leak) for leak in Leak
    }
    assert chosen.query_budget == chosen.score_budget == standard.calls * (SIZES["probes"] + 1)
    assert cells(chosen)


def test_strongest_meets_the_defenses_of_all_groups_of_a_leak() -> None:
    two = [group(), group(defenses=[{"name": "sign-noise", "eps": 0.3}])]
    chosen = narrowed(suite(group=two), [], ["strongest"], None)
    assert len(chosen.group) == 1
    assert Named.model_validate({"name": "sign-noise", "eps": 0.3}) in chosen.group[0].defenses


def test_strongest_stands_alone() -> None:
    with pytest.raises(SuiteError, match="give it alone"):
        narrowed(suite(), [], ["strongest", "unet"], None)
