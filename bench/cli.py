"""The command line. Every command imports what it needs, so that listing and help stay quick."""

from __future__ import annotations

import os
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bench import __version__
from bench.errors import UserError

app = typer.Typer(
    name="veilbench",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="How much of a face survives in what a face-recognition system stores?",
)

INTERRUPTED = 130
"""Exit code after Ctrl-C: typer ends with it and says nothing."""

Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", help="A Python file that registers attacks or defenses; repeatable."),
]

Place = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="Folder of cached artifacts, or URL such as s3://bucket/prefix [default: user cache].",
    ),
]


class Listing(StrEnum):
    """What `veilbench list` can show."""

    ATTACKS = "attacks"
    DEFENSES = "defenses"
    DATASETS = "datasets"
    RECOGNIZERS = "recognizers"
    THREATS = "threats"
    SUITES = "suites"
    METRICS = "metrics"


class Executor(StrEnum):
    """Where cells are computed."""

    SERIAL = "serial"
    PROCESS = "process"
    RAY = "ray"


class PluginKind(StrEnum):
    """What `veilbench new` can write."""

    DEFENSE = "defense"
    ATTACK = "attack"


def main() -> None:
    """Run the command line; a user's error is one sentence on stderr and exit code 2."""
    # Workers of idle thread pools would otherwise spin, and slow the others down several times.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        app()
    except UserError as error:
        typer.echo(f"veilbench: {error}", err=True)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            typer.echo("veilbench: stopped; run the same command again to continue.", err=True)
        raise


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def run(
    suite: Annotated[
        str, typer.Argument(help="Name of a suite, or path of a .toml file.")
    ] = "demo",
    out: Annotated[Path, typer.Option(help="Folder for results and report.")] = Path(
        "veilbench-runs"
    ),
    store: Place = None,
    plugin: Plugins = None,
    defense: Annotated[
        list[str] | None, typer.Option(help="Only these defenses, beside none; repeatable.")
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(help="Only these attacks; repeatable. 'strongest': the standard set."),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Another dataset than the suite's.")] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of a dataset that is not shipped, such as lfw.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or another torch device.")] = "auto",
    executor: Annotated[
        Executor, typer.Option(help="Where cells are computed: here, in processes, or on Ray.")
    ] = Executor.SERIAL,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes [default: one per GPU, or per core].")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="A Ray cluster [default: one started on this machine].")
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option(min=1, help="Seconds that a cell may take [default: any].")
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Print where the time went.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Run a suite: results, reconstructions and a report. A rerun computes only what is missing."""
    started = time.perf_counter()
    from bench.profile import profile as clock
    from bench.profile import table

    with clock.span("import libraries"):
        from bench.plan import load_suite, narrowed
        from bench.run import Workers, run_suite
        from bench.store import open_store

    _load(plugin)
    chosen = narrowed(load_suite(suite), defense or [], attack or [], dataset)
    folder = out / chosen.name if out == Path("veilbench-runs") else out
    try:
        outcome = run_suite(
            chosen,
            folder,
            open_store(store),
            device=device,
            data_root=data_root,
            quiet=quiet,
            workers=Workers(executor.value, workers, tuple(plugin or ()), time_limit, ray_address),
        )
        page = folder / "report" / "index.html"
        if outcome.changed or not page.is_file():
            with clock.span("write the report"):
                from reports.report import write_report

                write_report(folder)
    finally:  # A run that is stopped tells too.
        if profile:
            typer.echo(table(clock, time.perf_counter() - started))
    if outcome.failed:
        typer.echo(f"{outcome.failed} of the cells failed: their rows say why.", err=True)
    typer.echo(f"Results: {folder / 'results.csv'}")
    typer.echo(f"Report:  {page}")
    if outcome.refusal:
        raise outcome.refusal


@app.command("list")
def list_names(
    what: Annotated[
        Listing | None, typer.Argument(help="What to list; everything if left out.")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """List attacks, defenses, datasets, recognizers, threats, suites or metrics."""
    from bench import listing

    _load(plugin)
    for kind in [what] if what else list(Listing):
        typer.echo(listing.show(kind))


@app.command()
def report(run: Annotated[Path, typer.Argument(help="The --out folder of a run.")]) -> None:
    """Write the report of a finished run again."""
    from reports.report import write_report

    typer.echo(f"Report: {write_report(run)}")


@app.command()
def gate(
    rules: Annotated[Path, typer.Argument(metavar="GATE.toml", help="The guarantees.")],
    run: Annotated[Path, typer.Argument(help="The --out folder of a run, or a result file.")],
    out: Annotated[Path | None, typer.Option(help="Folder for gate.xml and gate.md.")] = None,
) -> None:
    """Exit with 0 if a run proves every guarantee, 1 if one is broken, 2 if it cannot tell."""
    from reports import gate_report
    from reports.gate import check

    verdict = check(rules, run)
    if out is not None:
        gate_report.write_files(verdict, out)
    typer.echo(gate_report.plain(verdict))
    if said := gate_report.tell_github(verdict):
        typer.echo(said)
    raise typer.Exit(verdict.exit_code)


@app.command()
def submit(
    what: Annotated[Path, typer.Argument(help="A run's folder, or with --check a result file.")],
    check: Annotated[bool, typer.Option("--check", help="Validate a result file.")] = False,
    out: Annotated[
        Path, typer.Option(help="The file to write; .gz at the end compresses it.")
    ] = Path("result.json.gz"),
) -> None:
    """Pack a finished run into one file for a leaderboard or a baseline, or check such a file."""
    from reports import submission

    if not check:
        typer.echo(submission.write(what, out))
        return
    told, sound = submission.check(what)
    typer.echo(told)
    if not sound:
        raise typer.Exit(1)


@app.command()
def publish(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, or result files.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the page and the result files.")],
    claims: Annotated[
        list[Path] | None, typer.Option(help="A TOML file of papers' claims; repeatable.")
    ] = None,
) -> None:
    """Write a page of tables for a repository, and what runs say about the claims of papers."""
    from reports.publish import publish as write_page

    typer.echo(f"Page: {write_page(runs, out, claims or [])}")


@app.command()
def leaderboard(
    folder: Annotated[Path, typer.Argument(help="A folder of result files of veilbench submit.")],
    out: Annotated[Path, typer.Option(help="Folder of the site.")] = Path("site"),
) -> None:
    """Build a static site from result files."""
    from reports.leaderboard import write_site

    typer.echo(f"Leaderboard: {write_site(folder, out)}")


@app.command()
def validate(
    attack: Annotated[
        list[str] | None, typer.Option(help="Plant defenses for these attacks only; repeatable.")
    ] = None,
    plugin: Plugins = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer people, steps and calls.")] = False,
    store: Place = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or another torch device.")] = "auto",
) -> None:
    """Check that attacks break what is known to be broken; exit with 1 where one fails."""
    from bench.jobs import choose_device
    from bench.store import open_store
    from bench.validate import table
    from bench.validate import validate as checks

    _load(plugin)
    found = list(
        checks(
            open_store(store),
            attack or [],
            quick=quick,
            device=choose_device(device),
            progress=lambda text: typer.echo(text, err=True),
        )
    )
    typer.echo(table(found))
    if any(check.holds is False for check in found):
        raise typer.Exit(1)


@app.command()
def train(
    records: Annotated[
        Path, typer.Argument(metavar="TRAIN.rec", help="Aligned faces, with TRAIN.idx beside it.")
    ],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    preset: Annotated[
        str, typer.Option(help="'clean', or the defense whose records to train on.")
    ] = "clean",
    depth: Annotated[int, typer.Option(help="Of the IResNet: 18, 34, 50 or 100.")] = 18,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the set [default: the paper's].")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or another torch device.")] = "auto",
) -> None:
    """Train a recogniser from scratch as the papers do. The same command again goes on."""
    from bench.jobs import choose_device
    from bench.pretraining import pretrain

    made = pretrain(
        records,
        out,
        preset=preset,
        depth=depth,
        epochs=epochs,
        device=choose_device(device),
        progress=lambda text: typer.echo(text, err=True),
    )
    typer.echo(f"Weights: {made}")


@app.command()
def new(
    kind: Annotated[PluginKind, typer.Argument(help="What to write.")],
    name: Annotated[str, typer.Argument(help="Its name, in lower case with hyphens.")],
) -> None:
    """Write a plug-in file that runs at once, and its contract test, into the current folder."""
    from bench.scaffold import write_contract_test, write_plugin

    path = write_plugin(kind, name, Path.cwd())
    test = write_contract_test(kind, name, path)
    typer.echo(f"Wrote {path.name} and {test.name}. Run them with:")
    typer.echo(f"  veilbench run smoke --plugin {path.name} --{kind} {name}")
    typer.echo(f"  pytest {test.name}")


@app.command()
def doctor() -> None:
    """Show versions, devices, weights and data, and how to get what is missing."""
    from bench import checkup

    typer.echo(checkup.describe())


data = typer.Typer(no_args_is_help=True, help="Look at sets of face images before using them.")
app.add_typer(data, name="data")


@data.command("check")
def check_data(
    sets: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME_OR_FILE...",
            help="Registered datasets, .bin and .rec files, folders of IJB's lists or of people.",
        ),
    ],
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of a dataset that is not shipped, such as lfw.")
    ] = None,
) -> None:
    """Show what sets hold; exit with 1 if two of them share a person or a photo."""
    from bench.datasets.check import check

    report, clean = check(sets, data_root)
    typer.echo(report)
    if not clean:
        raise typer.Exit(1)


store_app = typer.Typer(no_args_is_help=True, help="Look after the artifacts that runs share.")
app.add_typer(store_app, name="store")


@store_app.command("ls")
def list_store(store: Place = None) -> None:
    """Show how many artifacts there are of each stage, and their size."""
    from bench import upkeep
    from bench.store import open_store

    typer.echo(upkeep.listing(open_store(store)))


@store_app.command("verify")
def verify_store(store: Place = None) -> None:
    """Check every artifact against its sha256; exit with 1 if one is damaged."""
    from bench import upkeep
    from bench.store import open_store

    damaged = upkeep.damage(open_store(store))
    for line in damaged:
        typer.echo(line)
    if damaged:
        typer.echo("The next run that needs them makes them again.", err=True)
        raise typer.Exit(1)


@store_app.command("gc")
def collect_store(
    keep: Annotated[
        list[Path], typer.Option(metavar="RUN", help="The --out folder of a run; repeatable.")
    ],
    store: Place = None,
) -> None:
    """Delete what these runs do not need to be repeated without computing. No run may be going."""
    from bench import upkeep
    from bench.store import open_store

    typer.echo(upkeep.collect(open_store(store), keep))


def _load(plugins: list[Path] | None) -> None:
    from bench.registry import load_plugin

    for path in plugins or []:
        load_plugin(path)


if __name__ == "__main__":
    main()
