from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from made_results import ADVFACE, TRANSFER, Maker, small

import bench
from bench import result_file
from bench.errors import UserError
from bench.leaks import Leak
from bench.result_file import ResultFile
from reports.submission import check

if TYPE_CHECKING:
    from collections.abc import Callable

SCHEMAS = Path(bench.__file__).with_name("schemas")


def test_the_committed_schema_is_that_of_the_code() -> None:
    """To write a new one: print `bench.result_file.schema()`, and raise VERSION if it breaks."""
    path = SCHEMAS / f"result-{result_file.VERSION}.json"
    assert json.loads(path.read_text()) == json.loads(json.dumps(result_file.schema()))


def test_every_version_has_a_schema_and_a_way_up() -> None:
    versions = {int(path.stem.partition("-")[2]) for path in SCHEMAS.glob("result-*.json")}
    assert versions == set(range(1, result_file.VERSION + 1))
    assert set(result_file.UPGRADES) == versions - {result_file.VERSION}


def test_an_old_version_is_brought_up_step_by_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if version 0 had called the rows "results", and version -1 the seeds "splits"."""
    file = small().file()
    document = json.loads(file.model_dump_json())
    old = {**document, "version": -1, "results": document["rows"], "splits": document["seeds"]}
    del old["rows"], old["seeds"]

    def renamed(old_name: str, new_name: str, version: int) -> Callable[[Any], Any]:
        def upgrade(given: dict[str, Any]) -> dict[str, Any]:
            rest = {name: value for name, value in given.items() if name != old_name}
            return {**rest, new_name: given[old_name], "version": version}

        return upgrade

    steps = {-1: renamed("splits", "seeds", 0), 0: renamed("results", "rows", 1)}
    monkeypatch.setattr(result_file, "UPGRADES", steps)
    path = tmp_path / "old.json"
    path.write_text(json.dumps(old))
    assert result_file.read(path) == file


@pytest.mark.parametrize("name", ["r.json", "r.json.gz", "new/folder/r.json"])
def test_a_file_comes_back_as_it_was(tmp_path: Path, name: str) -> None:
    file = small().file()
    result_file.write(file, tmp_path / name)
    again = result_file.read(tmp_path / name)
    assert again == file
    assert again.content() == file.sha256


def test_infinite_values_are_strict_json(tmp_path: Path) -> None:
    maker = small()
    key = next(key for key in maker.cells if "original" in key)
    maker.cells[key].values["psnr"][:] = [float("inf")] * 119 + [float("nan")]
    result_file.write(maker.file(), tmp_path / "r.json")
    json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)
    values = result_file.read(tmp_path / "r.json").cells[key].array("psnr")
    assert values[0] == float("inf")
    assert values[-1] != values[-1]


def checked(folder: Path, file: ResultFile) -> str:
    """Return what the check says of a file whose own hash is right."""
    result_file.write(file.model_copy(update={"sha256": file.content()}), folder / "r.json")
    told, sound = check(folder / "r.json")
    assert sound is ("FAIL" not in told)
    return told


def test_a_sound_file_passes_every_check(tmp_path: Path) -> None:
    told = checked(tmp_path, small().file())
    assert [line.split()[0] for line in told.splitlines()] == ["ok"] * 6


def test_an_altered_file_is_found_by_its_hash(tmp_path: Path) -> None:
    file = small().file()
    row = file.rows[-1].model_copy(update={"n": 7})
    result_file.write(file.model_copy(update={"rows": [*file.rows[:-1], row]}), tmp_path / "r.json")
    assert "FAIL  sha256 of the content" in check(tmp_path / "r.json")[0]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"value": 0.01}, "the value is 0.01, recomputed 0.05"),
        ({"ci_high": 0.06}, "the high is 0.06, recomputed 0.1"),
        ({"ci_low": None}, "the low is None, recomputed 0.0"),
        ({"n": 3}, "n is 3, recomputed 120"),
        ({"cell": "gone"}, "There are no raw values behind rank-1"),
        ({"definition": "rank-0"}, "Unknown metric definition 'rank-0'"),
    ],
)
def test_a_number_that_does_not_follow_from_the_raw_values_is_found(
    tmp_path: Path, changes: dict[str, Any], fault: str
) -> None:
    file = small().file()
    rows = [
        row.model_copy(update=changes)
        if (row.defense, row.threat, row.attack, row.metric)
        == ("advface", "transfer", "unet", "rank-1")
        else row
        for row in file.rows
    ]
    told = checked(tmp_path, file.model_copy(update={"rows": rows}))
    assert "FAIL  every number follows from the raw values" in told
    assert f"features / advface / unet / transfer / rank-1 / dlib: {fault}" in told


KEYED: dict[str, Any] = {"leak": Leak.TEMPLATE, "defense": "keyed", "defense_params": "{}"}


@pytest.mark.parametrize(
    ("metric", "changes", "fault"),
    [
        ("d-sys", {"value": 0.01}, "the value is 0.01, recomputed 0."),
        ("d-sys", {"ci_low": 0.9}, "the low is 0.9, recomputed 0."),
        ("d-sys", {"ci_low": None}, "the low is None, recomputed 0."),
        ("d-sys", {"flags": "null-mean=0.9 null-p95=0.95"}, "it is not flagged null-mean=0.0"),
        ("linkage-auc", {"ci_high": 0.5}, "the high is 0.5, recomputed 0."),
        ("renewed-linked", {"n": 7}, "n is 7, recomputed 120"),
        ("ms-per-record", {"value": 0.001}, "the value is 0.001, recomputed 5"),
        ("ms-per-record", {"ci_low": 1.0}, "the low is 1.0, recomputed nan"),
        ("bytes-per-record", {"ci_high": 65.0}, "the high is 65.0, recomputed 64"),
        ("storage-factor", {"cell": "gone"}, "there are no raw values behind storage-factor"),
        ("d-sys", {"cell": "cost"}, "the raw values say nothing about d-sys"),
    ],
)
def test_linkage_and_cost_are_taken_again(
    tmp_path: Path, metric: str, changes: dict[str, Any], fault: str
) -> None:
    file = small().linkage(1.0, **KEYED).file()
    assert "FAIL" not in checked(tmp_path, file)
    rows = [row.model_copy(update=changes) if row.metric == metric else row for row in file.rows]
    told = checked(tmp_path, file.model_copy(update={"rows": rows}))
    assert f"template / keyed / {metric}: {fault}" in told


def test_linkage_under_one_pair_of_keys_is_taken_again_as_it_was(tmp_path: Path) -> None:
    """Files of before have one pair of applications: their intervals count people."""
    file = Maker(people=150).references().linkage(1.0, one_for_all=True, **KEYED).file()
    assert {"d-sys", "linkage-auc", "renewed-linked"} <= {row.definition for row in file.rows}
    assert "FAIL  every number" not in checked(tmp_path, file)
    several = {
        key: pairs.model_copy(update={"fold": [place % 64 for place in pairs.left]})
        for key, pairs in file.pairs.items()
    }
    told = checked(tmp_path, file.model_copy(update={"pairs": several}))
    assert "template / keyed / linkage-auc: the low is" in told


PUBLISHED = Path(__file__).parents[3] / "reports" / "published"


@pytest.mark.parametrize("path", sorted(PUBLISHED.glob("*/*.json.gz")), ids=lambda path: path.stem)
def test_every_published_number_follows_from_its_raw_values(path: Path) -> None:
    told, sound = check(path)
    assert sound, told


def test_an_eer_is_taken_again_with_its_interval(tmp_path: Path) -> None:
    file = small().utility(0.05, measure="eer", **KEYED).file()
    assert "FAIL" not in checked(tmp_path, file)
    for changes, fault in (
        ({"value": 0.3}, "the value is 0.3, recomputed 0.08"),
        ({"ci_high": 0.09}, "the high is 0.09, recomputed 0.1"),
        ({"n": 7}, "n is 7, recomputed 240"),
    ):
        rows = [
            row.model_copy(update=changes) if row.definition == "eer" else row for row in file.rows
        ]
        told = checked(tmp_path, file.model_copy(update={"rows": rows}))
        assert f"template / keyed / eer.stored-vs-stored: {fault}" in told


def test_rows_that_older_versions_wrote_without_interval_are_sound(tmp_path: Path) -> None:
    file = small().linkage(1.0, **KEYED).utility(0.05, measure="eer", **KEYED).file()
    old = ("eer", "d-sys", "bytes-per-record", "storage-factor")
    rows = [
        row.model_copy(update={"ci_low": None, "ci_high": None}) if row.definition in old else row
        for row in file.rows
    ]
    assert "FAIL" not in checked(tmp_path, file.model_copy(update={"rows": rows}))


@pytest.mark.parametrize(
    ("cell", "change", "fault"),
    [
        ("linkage", {"values": {}}, "There are no linkage scores"),
        ("linkage", {"values": {"linkage": [0.5]}}, "There are 1 linkage scores for"),
        ("linkage", {"pairs": None}, "There are no linkage scores"),
        ("cost", {"facts": {"count": 0, "shape": [1], "protect_seconds": 1}}, "ZeroDivisionError"),
        ("cost", {"facts": {"count": 1, "shape": ["x"], "protect_seconds": 1}}, "facts give no"),
    ],
)
def test_raw_values_that_say_nothing_are_faults(
    tmp_path: Path, cell: str, change: dict[str, Any], fault: str
) -> None:
    file = small().linkage(1.0, **KEYED).file()
    cells = {**file.cells, cell: file.cells[cell].model_copy(update=change)}
    assert fault in checked(tmp_path, file.model_copy(update={"cells": cells}))


def test_a_worst_case_that_an_attack_beats_is_found(tmp_path: Path) -> None:
    maker = small().attack(0.5, attack="gradient", **TRANSFER)
    assert "an attack beats the worst case in dlib/rank-1" in checked(tmp_path, maker.file())


def test_missing_floors_are_found(tmp_path: Path) -> None:
    told = checked(tmp_path, Maker().utility(0.1, **ADVFACE).file())
    assert "seed 0 has no row of mean-face" in told
    assert "seed 0 has no row of original" in told


def test_people_in_two_roles_are_found(tmp_path: Path) -> None:
    file = small().file()
    victim = file.seeds["0"].roles["victims"][0]
    for field, message in (("identity", "The person v0"), ("sha256", "The photo with sha256 v0/0")):
        roles = dict(file.seeds["0"].roles)
        spy = roles["attacker"][0].model_copy(update={field: getattr(victim, field)})
        roles["attacker"] = [spy]
        seed = file.seeds["0"].model_copy(update={"roles": roles})
        assert message in checked(tmp_path, file.model_copy(update={"seeds": {"0": seed}}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ("[]", "Input should be"),
        ("{}", "version: Field required"),
        ('{"version": 99}', "has version 99 of the schema, this veilbench knows 1"),
        ("[" * 100_000, "no result file"),
    ],
)
def test_what_is_no_result_file_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        check(tmp_path / "r.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["pairs"]["pairs"]["left"].pop(), "pairs.pairs: .*differ in length"),
        (lambda d: d["pairs"]["pairs"]["left"].__setitem__(0, 9999), "a photo that is not there"),
        (lambda d: d["pairs"]["pairs"]["left"].__setitem__(0, -1), "greater than or equal to 0"),
        (lambda d: d["seeds"].clear(), "a seed that is not there: 0"),
        (lambda d: d["rows"][0].update(more=1), "rows.0.more: Extra inputs"),
        (lambda d: d["rows"][0].update(value="high"), "rows.0.value"),
        (lambda d: next(iter(d["cells"].values()))["facts"].update(training=[{}]), "0.network"),
    ],
)
def test_a_file_whose_parts_do_not_fit_is_refused(
    tmp_path: Path, change: Callable[[Any], object], message: str
) -> None:
    document = json.loads(small().file().model_dump_json())
    change(document)
    (tmp_path / "r.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=message):
        result_file.read(tmp_path / "r.json")


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json cannot be read \(No such file"):
        result_file.read(tmp_path / "none.json")


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result_file.write(small().file(), tmp_path / "r.json.gz")
    monkeypatch.setattr(result_file, "LARGEST", 1000)
    with pytest.raises(UserError, match="cut off, or larger than"):
        check(tmp_path / "r.json.gz")
    (tmp_path / "r.json.gz").write_bytes((tmp_path / "r.json.gz").read_bytes()[:50])
    with pytest.raises(UserError, match="cut off, or larger than"):
        check(tmp_path / "r.json.gz")
