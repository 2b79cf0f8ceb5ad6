from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest
from browser import open_browser
from made_results import ADAPTIVE, ADVFACE, TRANSFER, Maker, started
from report_pages import Page
from typer.testing import CliRunner

import reports
from bench import result_file
from bench.cli import app
from bench.curves import Curve
from bench.errors import UserError
from bench.leaks import Leak
from bench.threats import Threat
from reports.leaderboard import write_site
from reports.run import visible
from reports.standings import Board, boards, read_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser
    from playwright.sync_api import Page as Tab


HOSTILE = (
    "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
    "</script>\"'\N{RIGHT-TO-LEFT OVERRIDE}\N{RIGHT-TO-LEFT MARK}" + "long" * 1250
)
SETTINGS = """
[[defense]]
name = "advface"
title = "Privacy-preserving Adversarial Facial Features"
implementation = "re-implementation"
bibtex = "@inproceedings{advface, title={AdvFace}}"

[[defense]]
name = "mine"
implementation = "official"

[[external]]
dataset = "faces"
leak = "features"
threat = "adaptive"
defense = "mine"
value = 0.75
source = "An <i>attack</i> by others"
url = "https://example.org/paper"
"""


def defended(name: str, level: float, maker: Maker, threat: Threat = Threat.ADAPTIVE) -> None:
    about = {"leak": Leak.FEATURES, "defense": name, "defense_params": "{}"}
    if not any(row.defense == name and row.attack is None for row in maker.rows):
        maker.utility(0.01, **about)
    for attack in ("unet", "worst-case"):
        maker.attack(level, attack=attack, **about, threat=threat)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files: two defenses that are level and one that is worse, a hostile one, an old one."""
    folder = tmp_path_factory.mktemp("results")
    maker = Maker().references()
    for name, level in (("mine", 0.1), ("other", 0.15), ("none", 0.95), (HOSTILE, 0.6)):
        defended(name, level, maker)
    defended("mine", 0.05, maker, Threat.TRANSFER)
    result_file.write(started(maker.file(), "2026-02-01"), folder / "b c.json.gz")
    old = Maker().references()
    defended("mine", 0.3, old)
    result_file.write(started(old.file(), "2026-01-01"), folder / "a.json")
    paper = Maker().references().utility(0.02, **ADVFACE)
    paper.attack(0.9, attack="unet", **ADAPTIVE).attack(0.9, attack="worst-case", **ADAPTIVE)
    paper.failed("<b>boom</b>", attack="gradient", **ADAPTIVE)
    paper.attack(0.05, attack="worst-case", **TRANSFER)
    result_file.write(started(paper.file(), "2026-01-02"), folder / "paper.json")
    (folder / "leaderboard.toml").write_text(SETTINGS)
    return folder


@pytest.fixture(scope="module")
def site(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site(folder, tmp_path_factory.mktemp("site") / "out").parent


@pytest.fixture(scope="module")
def adaptive(folder: Path) -> Board:
    return boards(*read_folder(folder))[0]


# --- standings ---------------------------------------------------------------------------------


def test_there_is_a_table_per_dataset_leak_and_threat(folder: Path) -> None:
    found = boards(*read_folder(folder))
    assert [board.contest.title for board in found] == [
        "faces · features · adaptive",
        "faces · features · transfer",
    ]
    assert [x.name for x in found[1].standings] == ["advface", "mine"]
    assert [name for name, _ in found[0].floors] == ["mean-face", "other-person"]


def test_the_best_of_several_attacks_stands_beside_the_best_of_as_many_guesses(
    tmp_path: Path,
) -> None:
    maker = Maker().references()
    maker.attack(0.02, attack="best-of-guesses", attack_params='{"guesses": 2}')
    defended("mine", 0.1, maker)
    defended("other", 0.1, maker)
    other = {"leak": Leak.FEATURES, "defense": "other", "threat": Threat.ADAPTIVE}
    maker.attack(0.1, attack="gradient", **other)
    result_file.write(started(maker.file(), "2026-01-01"), tmp_path / "a.json")
    (board,) = boards(*read_folder(tmp_path))
    assert [name for name, _ in board.floors] == ["mean-face", "other-person", "best-of-guesses"]
    floor = dict(board.floors)["best-of-guesses"]
    assert floor.value == pytest.approx(0.02, abs=0.01)
    assert floor.n == 120


def test_ranks_are_shared_where_probes_cannot_tell(adaptive: Board) -> None:
    placed = [(x.rank, x.name[:7]) for x in adaptive.standings]
    assert placed == [(1, "mine"), (1, "other"), (3, "<script"), (4, "advface"), (4, "none")]


def test_only_the_newest_result_of_a_defense_counts(adaptive: Board) -> None:
    assert [(x.name, x.source.name) for x in adaptive.older] == [("mine", "a.json")]


def test_flags_say_what_a_reader_must_know(adaptive: Board) -> None:
    flags = {x.name[:7]: x.flags for x in adaptive.standings}
    assert flags["mine"] == ("one seed",)
    assert flags["other"] == ("re-implementation", "one seed")
    assert flags["none"] == ("undefended", "one seed")
    assert flags["advface"] == ("re-implementation", "one seed", "failed attack")


def test_more_flags(tmp_path: Path) -> None:
    maker = Maker().references()
    about = {"leak": Leak.FEATURES, "defense": "noisy", "defense_params": "{}"}
    maker.utility(0.1, **about)
    (cell,) = (key for key, cell in maker.cells.items() if cell.kind == "utility")
    maker.cells[cell] = maker.cells[cell].model_copy(update={"facts": {"random": True}})
    for steps, level in ((10, 0.2), (100, 0.9)):
        parameters = {"attack_params": json.dumps({"steps": steps})}
        maker.attack(level, attack="unet", **about, **parameters, threat=Threat.ADAPTIVE)
    maker.attack(0.9, attack="worst-case", **about, threat=Threat.ADAPTIVE)
    file = started(maker.file(), "2026-01-01")
    run = {**file.run, "suite": {**file.run["suite"], "recognizer": {"name": "x", "label": "dlib"}}}
    result_file.write(file.model_copy(update={"run": run}), tmp_path / "r.json")
    (standing,) = boards(*read_folder(tmp_path))[0].standings
    assert standing.flags == (
        "re-implementation",
        "random",
        "one judge",
        "unsaturated budget",
        "one seed",
    )


@pytest.mark.parametrize(
    ("helps", "flagged"), [([True], True), ([False], False), ([None], True), ([False, True], True)]
)
def test_learning_curves_say_whether_the_budget_was_enough(
    tmp_path: Path, helps: list[bool | None], flagged: bool
) -> None:
    """One attack with a budget: without a curve, nothing says that more would not help."""
    maker = Maker().references()
    about = {"leak": Leak.FEATURES, "defense": "mine", "defense_params": "{}"}
    maker.attack(0.5, attack="worst-case", **about, threat=Threat.ADAPTIVE)
    maker.attack(0.5, attack="unet", **about, attack_params='{"steps": 9}', threat=Threat.ADAPTIVE)
    (cell,) = (key for key, cell in maker.cells.items() if "unet" in key)
    training = [
        Curve(network="U", steps=[9], training=[1], held_out=[1], best=9, more_budget_helps=told)
        for told in helps
    ]
    facts = {"training": [curve.model_dump() for curve in training]}
    maker.cells[cell] = maker.cells[cell].model_copy(update={"facts": facts})
    result_file.write(started(maker.file(), "2026-01-01"), tmp_path / "r.json")
    (standing,) = boards(*read_folder(tmp_path))[0].standings
    assert ("unsaturated budget" in standing.flags) is flagged


def test_best_known_is_the_attack_of_others_where_it_is_better(adaptive: Board) -> None:
    external = {x.name[:7]: x.external for x in adaptive.standings}
    assert external["mine"] is not None
    assert external["mine"].value == 0.75
    assert external["advface"] is None


# --- files -------------------------------------------------------------------------------------


def test_pages_and_downloads_are_there_and_links_lead_somewhere(site: Path) -> None:
    assert {path.name for path in (site / "assets").iterdir()} == {
        "leaderboard.csv",
        "leaderboard.json",
        "references.bib",
    }
    assert sorted(path.name for path in (site / "results").iterdir()) == [
        "a.json",
        "b c.json.gz",
        "paper.json",
    ]
    for path in site.glob("*.html"):
        page = Page(re.sub(r"(?s)<script.*?</script>", "", path.read_text(encoding="utf-8")))
        for link in page.all("a"):
            target = link["href"] or ""
            if not target.startswith(("#", "https://example.org/")):
                assert (site / unquote(target)).is_file(), (path.name, target)
        assert all(heading.get("scope") for heading in page.all("th"))


def test_no_page_loads_anything_and_each_script_is_there_once(site: Path) -> None:
    for path in site.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        elements = re.findall(r"(?s)<script([^>]*)>.*?</script>", text)
        kinds = ("application/json", "text/plain", "module") if "table-" in path.name else ()
        assert [re.findall('type="(.*?)"', found)[0] for found in elements] == list(kinds)
        page = Page(re.sub(r"(?s)<script.*?</script>|<style>.*?</style>", "", text))
        assert page.all("img", "link", "iframe", "object", "base") == []
        assert "default-src 'none'" in (page.all("meta")[2]["content"] or "")
        assert len(text) < 1_000_000


def test_a_hostile_name_is_escaped_everywhere(site: Path) -> None:
    for path in site.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert "<script>document" not in text
        assert "<img src=x" not in text
        assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in text
        assert "<b>boom" not in text


def test_the_downloads_say_the_same_as_the_tables(site: Path, adaptive: Board) -> None:
    with (site / "assets/leaderboard.csv").open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    records = json.loads((site / "assets/leaderboard.json").read_text())
    assert [line["defense"] for line in lines] == [record["defense"] for record in records]
    assert records[0]["rank"] == 1
    worst = adaptive.standings[0].worst
    assert worst is not None
    assert records[0]["worst_case_high"] == pytest.approx(worst.ci_high)
    assert records[0]["external_source"] == "https://example.org/paper"
    assert "@inproceedings{advface" in (site / "assets/references.bib").read_text()


def test_a_site_is_rebuilt_in_place_and_nothing_else_is_overwritten(
    folder: Path, site: Path, tmp_path: Path
) -> None:
    (site / "stale.html").write_text("old")
    write_site(folder, site)
    assert not (site / "stale.html").exists()
    (tmp_path / "precious").write_text("x")
    with pytest.raises(UserError, match="is no leaderboard"):
        write_site(folder, tmp_path)
    assert (tmp_path / "precious").is_file()


def test_a_file_that_is_not_sound_stops_the_build(tmp_path: Path) -> None:
    file = started(Maker().utility(0.1, **ADVFACE).file(), "2026-01-01")
    result_file.write(file, tmp_path / "r.json")
    with pytest.raises(UserError, match=r"r\.json does not pass .* no row of mean-face"):
        write_site(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("[[external]]\nvalue = 2", r"external\.0"),
        ('[[defense]]\nname = "x"\nurl = "javascript:alert(1)"', r"defense\.0\.url: URL scheme"),
        ("[[", "cannot be read"),
    ],
)
def test_settings_that_cannot_be_used_are_one_sentence(
    tmp_path: Path, settings: str, message: str
) -> None:
    with pytest.raises(UserError, match="holds no result files"):
        read_folder(tmp_path)
    result_file.write(started(Maker().references().file(), "2026"), tmp_path / "r.json")
    (tmp_path / "leaderboard.toml").write_text(settings)
    with pytest.raises(UserError, match=message):
        read_folder(tmp_path)


# --- in the browser ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def tab(site: Path, browser: Browser) -> Iterator[Tab]:
    """The table of the adaptive threat; a fault on the page fails the test."""
    page = browser.new_page()
    page.set_default_timeout(20_000)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text))
    page.route(re.compile("^(?!file:|blob:)"), lambda route: faults.append(route.request.url))
    page.goto(next(site.glob("table-00-*.html")).as_uri())
    page.wait_for_selector("html[data-ready]")
    yield page
    assert faults == []


def column(tab: Tab, place: int) -> list[str]:
    """Return the texts of a column, from the top."""
    return tab.locator(f"#table tbody td:nth-child({place})").all_inner_texts()


def test_a_click_on_a_heading_sorts_by_number(tab: Tab) -> None:
    assert [name[:5] for name in column(tab, 2)] == ["mine", "other", "<scri", "advfa", "none"]
    for direction in ("ascending", "descending"):
        tab.locator("#table thead th", has_text="Worst case").click()
        tab.wait_for_selector(f'#table th[aria-sort="{direction}"]:has-text("Worst case")')
        rates = [float(text.split("\N{NO-BREAK SPACE}")[0]) for text in column(tab, 3)]
        assert rates == sorted([10.0, 15.0, 60.0, 90.0, 95.0], reverse=direction == "descending")
    tab.locator("#table thead th", has_text="Rank").first.click()
    tab.wait_for_selector('#table th[aria-sort="ascending"]:has-text("Rank")')


def test_a_search_leaves_what_matches(tab: Tab) -> None:
    box = tab.get_by_role("searchbox").first
    box.fill("advf")
    assert column(tab, 2) == ["advface"]
    box.fill("")
    assert len(column(tab, 2)) == 5


def test_a_filter_by_number_leaves_what_is_below(tab: Tab) -> None:
    tab.get_by_role("button", name="Filter").click()
    tab.locator("select.dtsb-data").select_option(label="Worst case (rank-1)")
    tab.locator("select.dtsb-condition").select_option("<")
    tab.locator("input.dtsb-value").fill("50")
    tab.locator("#table tbody tr").nth(2).wait_for(state="detached")
    assert column(tab, 2) == ["mine", "other"]
    tab.locator("button.dtsb-delete").click()
    tab.keyboard.press("Escape")


def test_a_hostile_name_stays_text_in_the_browser(tab: Tab) -> None:
    names = column(tab, 2)
    assert names[2] == visible(HOSTILE)[:79] + "…"
    assert tab.title() != "taken"
    assert tab.locator("#table img").count() == 0
    tab.locator("#table tbody tr").nth(2).locator("a").click()
    tab.wait_for_selector("h1")
    assert tab.locator("h1").inner_text() == visible(HOSTILE)
    assert not tab.title().startswith("taken")
    tab.go_back()
    tab.wait_for_selector("html[data-ready]")


def test_the_committed_results_become_a_site_by_one_command(
    browser: Browser, tmp_path: Path
) -> None:
    committed = Path(reports.__file__).parent / "published" / "results"
    arguments = ["leaderboard", str(committed), "--out", str(tmp_path / "site")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    page = browser.new_page()
    page.goto((tmp_path / "site" / "index.html").as_uri())
    page.get_by_role("link", name="orl · features · adaptive").click()
    page.wait_for_selector("html[data-ready]")
    assert column(page, 2) == ["advface"]
    page.locator("#table tbody a").first.click()
    assert page.locator("h1").inner_text() == "advface"
    assert "Privacy-preserving Adversarial Facial Features" in page.locator("pre").inner_text()


@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_fits_its_window_and_text_stands_out(
    site: Path, browser: Browser, width: int, scheme: str
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(next(site.glob("table-00-*.html")).as_uri())
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    colors = page.evaluate(
        """() => ["#table tbody td:nth-child(3) bdi", ".dt-container", "body"].map(
            (where) => getComputedStyle(document.querySelector(where))
        ).map((style, place) => place ? style.backgroundColor : style.color)"""
    )
    ink, *papers = (sum(int(x) for x in re.findall(r"\d+", color)[:3]) for color in colors)
    assert all(abs(ink - paper) > 300 for paper in papers)
