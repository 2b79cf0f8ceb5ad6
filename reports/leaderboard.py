"""The leaderboard: a static site from a folder of result files, for any web server or none.

A page per table carries one copy of DataTables (as itables bundles it) and the table's numbers as
JSON; nothing is loaded from elsewhere. Pages of defenses and the index need no script at all.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.resources
import json
import shutil
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UserError
from bench.metrics.definitions import definition
from reports import submission
from reports.numbers import interval, number, show
from reports.report import HTML, LATEX, replacing, slug
from reports.run import parameters_phrase, visible
from reports.standings import (
    FLAGS,
    HEADLINE,
    Board,
    Settings,
    Source,
    Standing,
    boards,
    read_folder,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bench.results import Row

NAME_SHOWN = 80
"""Characters of a name that a table shows; the page of the defense has all."""


@dataclass(frozen=True)
class Page:
    """A table or a defense, and the file name of its page."""

    file: str
    item: Any


def write_site(folder: Path, site: Path) -> Path:
    """Build the site.

    Args:
        folder: Result files, and `leaderboard.toml` if there is one.
        site: The folder to write; what a former build left there is replaced as a whole.

    Returns:
        The first page.

    Raises:
        UserError: A file cannot be read or does not pass `veilbench submit --check`, or the site
            cannot be written.
    """
    sources, settings = read_folder(folder)
    for source in sources:
        faults = submission.faults(source.file)
        if faults:
            raise UserError(
                f"{folder / source.name} does not pass veilbench submit --check ({faults[0]}): "
                "remove it, or submit the run again."
            )
    if site.exists() and not (site / "assets" / "leaderboard.json").is_file():
        raise UserError(f"{site} exists and is no leaderboard: give another --out.")
    site.parent.mkdir(parents=True, exist_ok=True)
    with replacing(site) as made:
        write_pages(boards(sources, settings), sources, settings, made)
        for source in sources:
            (made / "results").mkdir(exist_ok=True)
            shutil.copyfile(folder / source.name, made / "results" / source.name)
    return site / "index.html"


def write_pages(
    found: Sequence[Board], sources: Sequence[Source], settings: Settings, folder: Path
) -> None:
    """Write every page and download of the site into a folder."""
    tables = [
        Page(f"table-{n:02d}-{slug(board.contest.title)}.html", board)
        for n, board in enumerate(found)
    ]
    keys = dict.fromkeys(standing.key for board in found for standing in board.standings)
    names = {
        key: f"defense-{n:03d}-{slug(key[0])}".rstrip("-") + ".html" for n, key in enumerate(keys)
    }
    common = {
        "settings": settings,
        "tables": tables,
        "pages": names,
        "flags": FLAGS,
        "version": version("veilbench"),
        "shown": _shown,
        "headline": definition(HEADLINE),
    }

    def write(name: str, template: str, **more: Any) -> None:
        text = HTML.get_template(template).render(**common, **more)
        (folder / name).write_text(text, encoding="utf-8")

    write("index.html", "site_index.html.j2", sources=sources)
    for page in tables:
        data = _data(page.item, names)
        write(page.file, "site_table.html.j2", page=page, **_scripts(), data=data)
        text = LATEX.get_template("site_table.tex.j2").render(board=page.item, shown=_shown)
        (folder / page.file).with_suffix(".tex").write_text(text, encoding="utf-8")
    for key, name in names.items():
        mine = [
            (page, standing)
            for page in tables
            for standing in (*page.item.standings, *page.item.older)
            if standing.key == key
        ]
        about, parameters = settings.about(key[0]), parameters_phrase(key[1])
        write(name, "site_defense.html.j2", mine=mine, about=about, parameters=parameters)
    _write_downloads(found, settings, folder / "assets")


def _shown(row: Row | None) -> str:
    """Return a number with its interval, or why there is none."""
    if row is None:
        return "–"
    return f"failed: {visible(row.reason)}" if row.value is None else str(show(row))


# --- the data of a table -------------------------------------------------------------------------


def _data(board: Board, pages: dict[tuple[str, str], str]) -> str:
    """Return a table's rows as JSON that may stand in a script element.

    A cell is [what is shown, what is sorted, a link or nothing].
    """
    rows = [_cells(board, standing, pages) for standing in board.standings]
    # "</script>" and "<!--" would end the element; JSON may write the sign as an escape.
    return json.dumps(rows, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def _cells(
    board: Board, standing: Standing, pages: dict[tuple[str, str], str]
) -> list[list[str | float | None]]:
    known = _cell(standing.worst, plain=True)
    if external := standing.external:
        percent = 100 * external.value
        known = [f"{percent:g}\N{NO-BREAK SPACE}%", percent, str(external.url)]
    return [
        ["–" if standing.rank is None else str(standing.rank), standing.rank],
        [_short(standing.name), None, pages[standing.key]],
        _cell(standing.worst),
        ["–", None] if standing.worst is None else [str(standing.worst.n), standing.worst.n],
        known,
        _cell(standing.ssim),
        _cell(standing.accuracy),
        [", ".join(standing.flags), None],
        *(_cell(standing.attacks.get(name), plain=True) for name in board.attacks),
    ]


def _cell(row: Row | None, *, plain: bool = False) -> list[str | float | None]:
    if row is None or row.value is None:
        return ["–" if row is None else "failed", None]
    shown = show(row)
    text = str(replace(shown, interval="") if plain else shown)
    # Sorted and filtered by what a reader sees: percent where it is shown.
    return [text, round(number(row) * (100 if shown.unit == "%" else 1), 6)]


def _short(name: str) -> str:
    return name if len(name) <= NAME_SHOWN else f"{name[: NAME_SHOWN - 1]}…"


@cache
def _bundle() -> tuple[str, str]:
    """Return DataTables' script and style, as itables ships them."""
    folder = importlib.resources.files("itables") / "html"
    script = (folder / "dt_bundle.js").read_text(encoding="utf-8")
    if "</script" in script.lower():
        raise UserError("itables' bundle cannot be put into a page: install another version of it.")
    return script, (folder / "dt_bundle.css").read_text(encoding="utf-8")


def _scripts() -> dict[str, str]:
    script, style = _bundle()
    own = (importlib.resources.files("reports") / "templates" / "table.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    return {"bundle": script, "bundle_style": style, "script": own, "script_sha256": digest}


# --- downloads ------------------------------------------------------------------------------------


def _write_downloads(found: Sequence[Board], settings: Settings, folder: Path) -> None:
    folder.mkdir()
    records = [record for board in found for record in _records(board)]
    (folder / "leaderboard.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    with (folder / "leaderboard.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(records[0]) if records else [])
        writer.writeheader()
        writer.writerows(records)
    entries = [item.bibtex.strip() for item in settings.defense if item.bibtex.strip()]
    (folder / "references.bib").write_text("\n\n".join(entries) + "\n", encoding="utf-8")


def _records(board: Board) -> Iterable[dict[str, Any]]:
    for standing in board.standings:
        defense, parameters = standing.key
        external = standing.external
        yield {
            **board.contest._asdict(),
            "rank": standing.rank,
            "defense": defense,
            "parameters": parameters,
            **_numbers("worst_case", standing.worst),
            **_numbers("ssim", standing.ssim),
            **_numbers("accuracy", standing.accuracy),
            "external": external.value if external else None,
            "external_source": str(external.url) if external else None,
            "flags": "; ".join(standing.flags),
            "file": standing.source.name,
            "date": standing.source.date,
        }


def _numbers(name: str, row: Row | None) -> dict[str, float | int | None]:
    low, high = (None, None) if row is None else interval(row)
    value = None if row is None else row.value
    n = None if row is None else row.n
    return {name: value, f"{name}_low": low, f"{name}_high": high, f"{name}_n": n}
