"""Commands on studies: run, watched, compared, ended."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpm_tune.cli.common import (
    INTERRUPTED,
    NO_RESULT,
    AddressOption,
    ClusterOption,
    HomeOption,
    JsonOption,
    NameOption,
    SetOption,
    StorageOption,
    TrackingOption,
    app,
    home_at,
    is_done_on,
    load,
    new_console,
    print_json,
    show,
    this_command,
)
from gpm_tune.errors import UserError

if TYPE_CHECKING:
    from gpm_tune.study.definition.specification import Study
    from gpm_tune.study.storage.home import Home


@app.command()
def run(
    file: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="A study file, or its bare name.")],
    overrides: SetOption = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all: budget.trials.")] = None,
    name: NameOption = None,
    address: AddressOption = "local",
    cluster: ClusterOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be run, and start nothing.")
    ] = False,
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
    storage: StorageOption = None,
) -> None:
    """Run a study to the end of its budget; the same command again continues it."""
    from gpm_tune.study.definition.specification import load_study

    document = load(file, overrides, trials=trials, name=name)
    study = load_study(document)
    if dry_run:
        from gpm_tune.study.views.preview import show as preview

        preview(study, home_at(home), address, new_console())
        return
    if cluster is not None:
        _run_on(cluster, study)
        return
    _run(study, home_at(home, tracking_uri, storage), address)


def _run_on(file: Path, study: Study) -> None:
    """Submit a study to a cluster, and follow it."""
    from gpm_tune.study.cluster.remote import Cluster

    cluster = Cluster(file)
    job = cluster.submit(study)
    print(
        f"study {study.name} is Ray job {job}; Ctrl-C leaves it, the same command follows it again",
        flush=True,
    )
    try:
        code = cluster.follow(job)
    except KeyboardInterrupt:
        print(
            f"\nthe study goes on; see how it stands, or stop it, with\n"
            f"  gpm-tune status {study.name} --cluster {file}\n  gpm-tune stop {study.name} --cluster {file}"
        )
        raise typer.Exit(INTERRUPTED) from None
    print(f"bring its results here with\n  gpm-tune fetch {study.name} --cluster {file}")
    if code:
        raise typer.Exit(code)


@app.command()
def plan(
    file: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="A study file, or its bare name.")],
    overrides: SetOption = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all: budget.trials.")] = None,
    address: AddressOption = "local",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Forecast a study's hours and GPU-hours from a few steps, measured where its trials would run."""
    from gpm_tune.study.definition.specification import load_study
    from gpm_tune.study.views.forecast import forecast, forecast_lines

    study = load_study(load(file, overrides, trials=trials))
    found = forecast(study, home_at(home), address)
    if as_json:
        print_json(found.plain())
    else:
        show(*forecast_lines(found, study))


@app.command()
def resume(
    study: Annotated[str, typer.Argument(help="A study's name.")],
    trials: Annotated[int | None, typer.Option(help="Trials in all: adds some to a finished study.")] = None,
    address: AddressOption = "local",
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
    storage: StorageOption = None,
) -> None:
    """Continue a study where it stands: after Ctrl-C, a crash or a reboot, or with more trials."""
    from gpm_tune.study.accounts.records import read_study
    from gpm_tune.study.definition.specification import load_study

    place = home_at(home, tracking_uri, storage)
    read_study(place.optuna_uri, study)
    document = load(place.study(study) / "study.yaml", None, trials=trials)
    _run(load_study(document), place, address)


def _run(study: Study, place: Home, address: str) -> None:
    from gpm_tune.study.accounts.records import read_study
    from gpm_tune.study.running.run import run_study
    from gpm_tune.study.views.results import report

    console = new_console()
    finished = run_study(study, place, address, console)
    record = read_study(place.optuna_uri, study.name)
    show(*report(place.optuna_uri, record))
    print(f"results in {place.study(study.name)}; open them in MLflow with\n  {_ui_command(place)}")
    if not finished:
        print(f"interrupted; continue with\n  {this_command()}")
        raise typer.Exit(INTERRUPTED)
    if not record.ranked():
        raise typer.Exit(NO_RESULT)


@app.command()
def status(
    study: Annotated[str | None, typer.Argument(help="A study's name; all studies if left out.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again until the study has ended.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between looks, with --watch.")] = 5.0,
    as_json: JsonOption = False,
    cluster: ClusterOption = None,
    home: HomeOption = None,
) -> None:
    """Show how studies stand."""
    if is_done_on(cluster):
        return
    if watch:
        _watch(study, home_at(home), interval)
        return
    from gpm_tune.study.accounts.records import read_study, study_names
    from gpm_tune.study.views.results import plain, report, studies_table

    storage = home_at(home).optuna_uri
    if study and not as_json:
        show(*report(storage, read_study(storage, study)))
        return
    records = [read_study(storage, name) for name in ([study] if study else study_names(storage))]
    if as_json:
        data = [plain(record) for record in records]
        print_json(data[0] if study else data)
    else:
        show(studies_table(records))


def _watch(study: str | None, place: Home, interval: float) -> None:
    """Show a study whenever something has changed, for as long as some process runs it."""
    from time import sleep

    from gpm_tune.study.accounts.records import read_study
    from gpm_tune.study.views.manage import is_running
    from gpm_tune.study.views.results import report

    if study is None:
        raise UserError("--watch follows one study: name it")
    shown = ""
    while True:
        goes_on = is_running(place, study)
        console = new_console()
        with console.capture() as text:
            for thing in report(place.optuna_uri, read_study(place.optuna_uri, study)):
                console.print(thing, highlight=False, markup=False)
        if text.get() != shown:
            shown = text.get()
            if console.is_terminal:
                console.clear()
            print(shown, end="", flush=True)
        if not goes_on:
            return
        sleep(interval)


@app.command("list")
def list_studies(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Show all studies."""
    status(None, as_json=as_json, home=home)


@app.command()
def best(
    study: Annotated[str, typer.Argument(help="A study's name.")],
    export: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write its experiment, for `gpm-tune train`."),
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Show the best trial of a study."""
    from gpm_tune.study.accounts.records import read_study
    from gpm_tune.study.views.results import best_plain, best_yaml, trials_table

    record = read_study(home_at(home).optuna_uri, study)
    data = best_plain(record)
    if export:
        export.write_text(best_yaml(record), encoding="utf-8")
    if as_json:
        print_json(data)
    else:
        show(trials_table(record, limit=1), f"checkpoint: {data['checkpoint']}")
        if export:
            print(f"its experiment is in {export}; train it with\n  gpm-tune train {export}")


@app.command()
def compare(
    studies: Annotated[list[str], typer.Argument(help="Names of studies.")],
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Show studies side by side, each by its best trial."""
    from gpm_tune.study.accounts.records import read_study
    from gpm_tune.study.views.manage import comparison
    from gpm_tune.study.views.results import best_plain

    records = [read_study(home_at(home).optuna_uri, name) for name in studies]
    table = comparison(records)
    if as_json:
        print_json([best_plain(record) for record in records])
    else:
        show(table)


@app.command()
def stop(
    study: Annotated[str, typer.Argument(help="A study's name.")],
    wait: Annotated[bool, typer.Option(help="Wait until it has stopped.")] = True,
    cluster: ClusterOption = None,
    home: HomeOption = None,
) -> None:
    """Ask a running study to stop, as its first Ctrl-C would, from any process that shares HOME."""
    if is_done_on(cluster):
        return
    from gpm_tune.study.views.manage import stop as stop_study

    if not stop_study(home_at(home), study, wait):
        print(f"study '{study}' is not running")
    else:
        print(f"study '{study}' {'has stopped' if wait else 'is asked to stop'}; continue it with")
        print(f"  gpm-tune resume {study}")


@app.command()
def delete(
    study: Annotated[str, typer.Argument(help="A study's name.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
    storage: StorageOption = None,
) -> None:
    """Delete a study: its trials, checkpoints and tracked runs."""
    from gpm_tune.study.accounts.records import read_study
    from gpm_tune.study.views.manage import delete as delete_study

    place = home_at(home, tracking_uri, storage)
    record = read_study(place.optuna_uri, study)
    question = f"Delete study '{study}', its {len(record.trials)} trials and their checkpoints?"
    if not yes and not sys.stdin.isatty():
        raise UserError(f"{question} Say so with --yes")
    if not yes and not typer.confirm(question):
        return
    delete_study(place, study)
    print(f"study '{study}' is deleted")


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000,
    cluster: ClusterOption = None,
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Open the MLflow UI on what was tracked, on 127.0.0.1."""
    if cluster is not None:
        _tunnel_ui(cluster, port)
        return
    place = home_at(home, tracking_uri)
    if place.tracking_uri.startswith("http"):
        print(f"MLflow's UI is at {place.tracking_uri}")
        return
    if not place.is_tracked:
        raise UserError(f"{place.root}: nothing has been tracked here yet; see `gpm-tune run --help`")
    print(f"MLflow UI on http://127.0.0.1:{port}; Ctrl-C ends it", flush=True)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    arguments = ["server", "--backend-store-uri", place.tracking_uri, "--workers", "1"]
    arguments += ["--host", "127.0.0.1", "--port", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", *arguments])


def _tunnel_ui(file: Path, port: int) -> None:
    from signal import pause

    from gpm_tune.study.cluster.remote import MLFLOW, Cluster

    with suppress(KeyboardInterrupt), Cluster(file).tunnel(MLFLOW, port) as here:
        print(f"MLflow UI of the cluster on http://127.0.0.1:{here}; Ctrl-C ends the tunnel", flush=True)
        pause()


def _ui_command(home: Home) -> str:
    from shlex import quote

    return f"gpm-tune ui --home {quote(os.path.relpath(home.root))}"
