from __future__ import annotations

import csv
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from made_results import Maker, started
from report_pages import Page
from run_folder import HOSTILE, build

from bench import result_file
from bench.errors import UserError
from bench.leaks import Leak
from bench.threats import Threat
from reports.figures import plain
from reports.leaderboard import write_site
from reports.report import latex, markdown, write_report
from reports.run import visible

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bench.results import Row


@pytest.fixture(scope="module")
def run(synthetic: Path) -> Path:
    write_report(synthetic)
    return synthetic


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page((run / "report/index.html").read_text(encoding="utf-8"))


def test_everything_is_written_and_nothing_else_is_left(run: Path) -> None:
    tables = {path.name for path in (run / "report/tables").iterdir()}
    stems = ("privacy", "worst-case", "utility")
    assert tables == {f"{stem}.{kind}" for stem in stems for kind in ("csv", "tex")}
    figures = {path.suffix for path in (run / "report/figures").iterdir()}
    assert figures == {".png", ".pdf"}
    kept = {"cells", "report", "results.csv", "results.parquet", "run.json", "seeds"}
    assert {path.name for path in run.iterdir()} == kept


def test_the_page_loads_nothing_and_runs_nothing(page: Page) -> None:
    assert {"script", "link", "iframe", "object", "base"}.isdisjoint(
        tag for tag, _ in page.elements
    )
    assert all((image["src"] or "").startswith("data:image/") for image in page.all("img"))
    assert not any(name.startswith("on") for _, found in page.elements for name in found)
    targets = [link["href"] or "" for link in page.all("a")]
    assert all(
        re.match(r"(#|\.\./cells/cell\d+/$|\.\./results|tables/|report)", x) for x in targets
    )
    assert "default-src 'none'" in (page.all("meta")[2]["content"] or "")


def test_links_lead_somewhere(run: Path, page: Page) -> None:
    ids = {attributes.get("id") for _, attributes in page.elements}
    for link in page.all("a"):
        target = link["href"] or ""
        assert target[1:] in ids if target.startswith("#") else (run / "report" / target).exists()


def test_a_hostile_name_stays_text(page: Page) -> None:
    text = "".join(page.text)
    assert visible(HOSTILE) in text
    assert "<img src=x onerror=alert(2)>" in text
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in text


def test_tables_and_images_speak_to_screen_readers(page: Page) -> None:
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(heading.get("scope") for heading in page.all("th"))
    assert all(image.get("alt") for image in page.all("img"))
    regions = [x for x in page.all("div") if x.get("class") == "scroll"]
    ids = {caption.get("id") for caption in page.all("caption")}
    assert all(x["tabindex"] == "0" and x["aria-labelledby"] in ids for x in regions)
    levels = [tag for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count("h1") == 1


def test_every_number_says_where_it_comes_from(page: Page) -> None:
    numbers = [cell for cell in page.all("td") if cell.get("class") == "number"]
    told = [cell["title"] or "" for cell in numbers]
    assert all(re.search(r"n = \d+, \S+|no value", title) for title in told)
    assert any("PSNR: ∞ dB; n = 8, psnr:rgb-uint8" in title for title in told)


def test_markdown_prints_names_verbatim(run: Path) -> None:
    text = (run / "report/report.md").read_text(encoding="utf-8")
    assert "<script" not in re.sub(r"\\.", "", text)
    rows = [line for line in text.splitlines() if line.startswith("| worst case, adaptive |")]
    assert rows[0].count(" |") == 12
    for target in re.findall(r"\]\((figures/[^)]+)\)", text):
        assert (run / "report" / target).is_file()


def test_latex_prints_names_verbatim(run: Path) -> None:
    text = (run / "report/tables/privacy.tex").read_text(encoding="utf-8")
    assert text.isascii()
    assert latex(HOSTILE) in text
    body = text[text.index(r"\begin") :]
    assert not re.search(r"(?<!\\)[%#]", body)
    assert body.count("{") - body.count(r"\{") == body.count("}") - body.count(r"\}")


@pytest.mark.parametrize(
    ("function", "given", "expected"),
    [
        (
            latex,
            "50% & a_b\\{$x^2$}\n~ ∞ é 你 1\N{EN DASH}2",
            r"50\% \& a\_b\textbackslash{}\{\$x\textasciicircum{}2\$\} "
            r"\textasciitilde{} $\infty$ e ? 1--2",
        ),
        (markdown, "a|b<i>*_`[x](y)\nz", r"a\|b\<i\>\*\_\`\[x\](y) z"),
        (plain, "$x$\N{RIGHT-TO-LEFT MARK}" + "y" * 60, r"\$x\$" + "y" * 36 + "…"),
    ],
)
def test_escapes(function: Callable[[str], str], given: str, expected: str) -> None:
    assert function(given) == expected


def test_the_same_run_gives_the_same_report(run: Path) -> None:
    before = {path: path.read_bytes() for path in (run / "report").rglob("*.*")}
    write_report(run)
    assert before == {path: path.read_bytes() for path in (run / "report").rglob("*.*")}


def test_a_report_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    run = build(tmp_path)
    old = run / "report/index.html"
    old.parent.mkdir()
    old.write_text("old")
    for path in run.glob("cells/*/reconstructions.npy"):
        path.write_bytes(b"broken")
    with pytest.raises(UserError, match=r"reconstructions\.npy cannot be used"):
        write_report(run)
    assert old.read_text() == "old"
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results.parquet", None, "holds no results.parquet"),
        ("run.json", None, "holds no run.json"),
        ("run.json", "{", "run.json cannot be used"),
        ("seeds/0/probes.csv", "key\n1\n", "probes.csv cannot be used"),
    ],
)
def test_a_folder_that_is_no_run_is_named(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    run = build(tmp_path)
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    with pytest.raises(UserError, match=message):
        write_report(run)


def test_a_very_long_name_is_no_file_name(tmp_path: Path) -> None:
    def change(row: Row) -> Row:
        return row.model_copy(update={"defense": "d" * 5000}) if row.defense == HOSTILE else row

    run = build(tmp_path, change=change)
    write_report(run)
    with (run / "report/tables/privacy.csv").open(newline="") as stream:
        assert list(csv.reader(stream))[-1][1] == "d" * 5000


# --- LaTeX, where a TeX is installed ------------------------------------------------------------

DOCUMENT = r"""\documentclass{{article}}
\usepackage{{booktabs}}
\begin{{document}}
\tiny
{inputs}
\end{{document}}
"""


def test_the_tables_of_a_report_and_of_a_site_compile(run: Path, tmp_path: Path) -> None:
    compiler = next((tex for x in ("pdflatex", "lualatex") if (tex := shutil.which(x))), None)
    if compiler is None:
        pytest.skip("no TeX: neither pdflatex nor lualatex is on the path")
    about = {"leak": Leak.FEATURES, "defense": HOSTILE, "defense_params": "{}"}
    maker = Maker().references().utility(0.02, **about)
    maker.attack(0.5, attack="worst-case", **about, threat=Threat.ADAPTIVE)
    (tmp_path / "results").mkdir()
    result_file.write(started(maker.file(), "2026-01-01"), tmp_path / "results" / "r.json")
    write_site(tmp_path / "results", tmp_path / "site")
    found = [
        *sorted((run / "report" / "tables").glob("*.tex")),
        *sorted((tmp_path / "site").glob("*.tex")),
    ]
    assert len(found) == 4
    for place, path in enumerate(found):
        shutil.copyfile(path, tmp_path / f"t{place}.tex")
    inputs = "\n\n".join(rf"\input{{t{place}}}" for place in range(len(found)))
    (tmp_path / "all.tex").write_text(DOCUMENT.format(inputs=inputs))
    command = [compiler, "-halt-on-error", "-interaction=nonstopmode", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    assert (tmp_path / "all.pdf").stat().st_size > 10_000
