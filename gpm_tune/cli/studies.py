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
    MACHINES,
    NO_RESULT,
    STUDIES,
    AddressOption,
    ClusterOption,
    HomeOption,
    NameOption,
    SetOption,
    StorageOption,
    StudyArgument,
    StudyFileArgument,
    TrackingOption,
    command,
    complete_study,
    home_at,
    is_done_on,
    load,
    override,
    refuse_beside_cluster,
    this_command,
    writable,
)
from gpm_tune.cli.output import output
from gpm_tune.errors import UserError

if TYPE_CHECKING:
    from gpm_tune.api import Study
    from gpm_tune.study.storage.home import Home

TrialsOption = Annotated[
    int | None,
    typer.Option("--trials", min=1, help="Trials in all: budget.trials; a higher number adds some."),
]


@command(
    STUDIES,
    "gpm-tune run quickstart.yaml",
    "gpm-tune run discr_flow.yaml --set experiment.training.steps=20000 --trials 16 --name short",
    "gpm-tune run discr_flow.yaml --dry-run",
    "gpm-tune run discr_flow.yaml --cluster cluster.yaml",
)
def run(
    file: StudyFileArgument,
    overrides: SetOption = None,
    trials: TrialsOption = None,
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
    from gpm_tune.api import Study

    if cluster is not None:
        refuse_beside_cluster(cluster, home=home, tracking_uri=tracking_uri, storage=storage)
        if address != "local" or dry_run:
            raise UserError(
                f"{'--dry-run' if dry_run else '--address'} cannot be combined with --cluster, which runs "
                "the study on the cluster of that file\n"
                "help: leave one of them out; `gpm-tune plan STUDY.yaml --address auto` on its head "
                "forecasts the study"
            )
    document = load(file, overrides, trials=trials, name=name)
    study = Study(document, home=home, tracking_uri=tracking_uri, storage=storage)
    if dry_run:
        from gpm_tune.study.views.preview import preview

        found = preview(study.definition, study.home, address)
        output.result(found.plain(), found.lines())
        output.advise("dry run: nothing was started")
    elif cluster is not None:
        _run_on(cluster, study)
    else:
        _finish(study, study.run(address=address, console=output.progress))


def _run_on(file: Path, study: Study) -> None:
    """Submit a study to a cluster, and follow it."""
    from gpm_tune.study.cluster.remote import Cluster

    cluster = Cluster(file)
    job = cluster.submit(study.definition, ["--verbose"] if output.verbose else [])
    output.advise(f"study {study.name} is Ray job {job}; Ctrl-C leaves it, the same command follows it again")
    try:
        code = cluster.follow(job, output.log)
    except KeyboardInterrupt:
        output.advise(
            "\nthe study goes on; see how it stands, or stop it, with",
            f"  gpm-tune status {study.name} --cluster {file}",
            f"  gpm-tune stop {study.name} --cluster {file}",
        )
        raise typer.Exit(INTERRUPTED) from None
    output.result({"study": study.name, "job": job, "exit_code": code}, [])
    output.advise("bring its results here with", f"  gpm-tune fetch {study.name} --cluster {file}")
    if code:
        raise typer.Exit(code)


def _finish(study: Study, finished: bool) -> None:
    """Show what a study has found, and end with the exit code that says how it ended."""
    from gpm_tune.study.views.results import plain, report

    record, home = study.record, study.home
    output.result(plain(record), report(home.optuna_uri, record))
    output.advise(
        f"results in {os.path.relpath(home.root)}; open them in MLflow with", f"  {_ui_command(home)}"
    )
    if not finished:
        output.advise("interrupted; continue with", f"  {this_command()}")
        raise typer.Exit(INTERRUPTED)
    if not record.ranked():
        raise typer.Exit(NO_RESULT)


@command(STUDIES, "gpm-tune plan discr_flow.yaml", "gpm-tune plan discr_flow.yaml --address auto --json")
def plan(
    file: StudyFileArgument,
    overrides: SetOption = None,
    trials: TrialsOption = None,
    address: AddressOption = "local",
    home: HomeOption = None,
) -> None:
    """Forecast a study's hours and GPU-hours from a few steps, measured where its trials would run."""
    from gpm_tune.study.definition.specification import load_study
    from gpm_tune.study.views.forecast import forecast, forecast_lines

    study = load_study(load(file, overrides, trials=trials))
    found = forecast(study, home_at(home), address)
    output.result(found.plain(), forecast_lines(found, study))


@command(
    STUDIES,
    "gpm-tune resume discr_flow",
    "gpm-tune resume discr_flow --trials 128 --set budget.hours=24",
)
def resume(
    study: StudyArgument,
    overrides: SetOption = None,
    trials: TrialsOption = None,
    address: AddressOption = "local",
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
    storage: StorageOption = None,
) -> None:
    """Continue a study where it stands: after Ctrl-C, a crash or a reboot, or with a larger budget."""
    from gpm_tune.api import Study, kept_file

    document = override(kept_file(home_at(home), study), overrides, trials=trials)
    found = Study(document, home=home, tracking_uri=tracking_uri, storage=storage)
    _finish(found, found.run(address=address, console=output.progress))


@command(
    STUDIES, "gpm-tune status", "gpm-tune status discr_flow --watch", "gpm-tune status discr_flow --json"
)
def status(
    study: Annotated[
        str | None,
        typer.Argument(help="A study's name; all studies if left out.", autocompletion=complete_study),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again until the study has ended.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between looks, with --watch.")] = 5.0,
    cluster: ClusterOption = None,
    home: HomeOption = None,
) -> None:
    """Show how studies stand."""
    if is_done_on(cluster, home):
        return
    if watch:
        _watch(study, home_at(home), interval)
        return
    from gpm_tune.study.accounts.records import read_studies, read_study
    from gpm_tune.study.running.manage import is_running
    from gpm_tune.study.views.results import plain, report, studies_table

    storage = home_at(home).optuna_uri
    if study:
        record = read_study(storage, study)
        output.result(plain(record), report(storage, record))
        if any(t.state == "running" for t in record.trials) and not is_running(home_at(home), study):
            output.advise("nobody runs it here now; continue it with", f"  gpm-tune resume {study}")
        return
    records = read_studies(storage)
    output.result([plain(record) for record in records], [studies_table(records)])


def _watch(study: str | None, place: Home, interval: float) -> None:
    """Show a study whenever something has changed, for as long as some process runs it."""
    from time import sleep

    from gpm_tune.console import new_console
    from gpm_tune.study.accounts.records import read_study
    from gpm_tune.study.running.manage import is_running
    from gpm_tune.study.views.results import report

    if study is None:
        raise UserError("--watch follows one study: name it")
    if output.json:
        raise UserError("--watch is for people; with --json ask for the status once, and again")
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


@command(STUDIES, "gpm-tune list", name="list")
def list_studies(home: HomeOption = None) -> None:
    """Show all studies."""
    status(None, home=home)


@command(STUDIES, "gpm-tune best discr_flow", "gpm-tune best discr_flow --export best.yaml")
def best(
    study: StudyArgument,
    export: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write its experiment, for `gpm-tune train`.", callback=writable),
    ] = None,
    home: HomeOption = None,
) -> None:
    """Show the best trial of a study."""
    from gpm_tune.study.accounts.records import read_study
    from gpm_tune.study.views.results import best_plain, best_yaml, trials_table

    place = home_at(home)
    record = read_study(place.optuna_uri, study)
    data = best_plain(record)
    run = (
        f"{place.runs.location}/{data['run']}"
        if data["run"]
        else "none: `gpm-tune migrate` makes one of what version 0.1 left"
    )
    lines = [trials_table(record, limit=1), f"training run: {run}, weights of step {data['best_step']}"]
    output.result(data, lines)
    if export:
        export.write_text(best_yaml(record), encoding="utf-8")
        output.advise(f"its experiment is in {export}; train it with", f"  gpm-tune train {export}")


@command(STUDIES, "gpm-tune compare gan score_gan discr_flow")
def compare(
    studies: Annotated[list[str], typer.Argument(help="Names of studies.", autocompletion=complete_study)],
    home: HomeOption = None,
) -> None:
    """Show studies side by side, each by its best trial."""
    from gpm_tune.study.accounts.records import read_study
    from gpm_tune.study.views.results import best_plain, comparison

    records = [read_study(home_at(home).optuna_uri, name) for name in studies]
    table = comparison(records)
    best = [best_plain(record) if record.ranked() else {"study": record.name} for record in records]
    output.result(best, [table])


@command(STUDIES, "gpm-tune stop discr_flow", "gpm-tune stop discr_flow --cluster cluster.yaml")
def stop(
    study: StudyArgument,
    wait: Annotated[bool, typer.Option(help="Wait until it has stopped.")] = True,
    cluster: ClusterOption = None,
    home: HomeOption = None,
) -> None:
    """Ask a running study to stop, as its first Ctrl-C would, from any process that shares HOME."""
    if is_done_on(cluster, home):
        return
    from gpm_tune.study.running.manage import stop as stop_study

    was_running = stop_study(home_at(home), study, wait)
    done = ("has stopped" if wait else "is asked to stop") if was_running else "is not running"
    output.result({"study": study, "was_running": was_running}, [f"study '{study}' {done}"])
    if was_running:
        output.advise("continue it with", f"  gpm-tune resume {study}")


@command(STUDIES, "gpm-tune delete short", "gpm-tune delete short --yes")
def delete(
    study: StudyArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    keep_runs: Annotated[bool, typer.Option("--keep-runs", help="Leave what MLflow has of it.")] = False,
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
    storage: StorageOption = None,
) -> None:
    """Delete a study: its trials, its runs in MLflow, and training runs that nothing else uses."""
    from gpm_tune.study.accounts.records import count_trials
    from gpm_tune.study.running.manage import delete as delete_study

    place = home_at(home, tracking_uri, storage)
    trials = count_trials(place.optuna_uri, study)
    question = f"Delete study '{study}', its {trials} trials, and training runs that nothing else uses?"
    if not yes and not sys.stdin.isatty():
        raise UserError(f"{question}\nhelp: say so with --yes")
    if not yes and not typer.confirm(question, err=True):
        return
    notes = delete_study(place, study, keep_runs=keep_runs)
    done = {"study": study, "trials": trials, "notes": notes}
    output.result(done, [f"study '{study}' is deleted", *notes])


@command(MACHINES, "gpm-tune ui", "gpm-tune ui --port 5001", "gpm-tune ui --cluster cluster.yaml")
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 5000,
    cluster: ClusterOption = None,
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Open the MLflow UI on what was tracked, on 127.0.0.1."""
    if cluster is not None:
        refuse_beside_cluster(cluster, home=home, tracking_uri=tracking_uri)
        _tunnel_ui(cluster, port)
        return
    place = home_at(home, tracking_uri)
    if place.tracking_uri.secret().startswith("http"):
        output.result({"url": str(place.tracking_uri)}, [f"MLflow's UI is at {place.tracking_uri}"])
        return
    if not place.is_tracked:
        raise UserError(f"{place.root}: nothing has been tracked here yet; see `gpm-tune run --help`")
    url = f"http://127.0.0.1:{port}"
    output.result({"url": url}, [f"MLflow UI on {url}; Ctrl-C ends it"])
    sys.stdout.flush()
    os.environ["MLFLOW_BACKEND_STORE_URI"] = place.tracking_uri.secret()  # arguments can be read by everybody
    arguments = ["server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", *arguments])


def _tunnel_ui(file: Path, port: int) -> None:
    from signal import pause

    from gpm_tune.study.cluster.remote import MLFLOW, Cluster

    with suppress(KeyboardInterrupt), Cluster(file).tunnel(MLFLOW, port) as here:
        url = f"http://127.0.0.1:{here}"
        output.result({"url": url}, [f"MLflow UI of the cluster on {url}; Ctrl-C ends the tunnel"])
        sys.stdout.flush()
        pause()


def _ui_command(home: Home) -> str:
    from shlex import quote

    is_server = home.tracking_uri.secret().startswith("http")
    tracking = f" --tracking-uri {quote(str(home.tracking_uri))}" if is_server else ""
    return f"gpm-tune ui --home {quote(os.path.relpath(home.root))}{tracking}"
