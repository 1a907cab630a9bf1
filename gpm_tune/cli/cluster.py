"""Commands on what studies run on: this machine, or a cluster."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpm_tune.cli.common import (
    MACHINES,
    NO_RESULT,
    AddressOption,
    ClusterOption,
    HomeOption,
    StorageOption,
    StudyArgument,
    TrackingOption,
    command,
    complete_file,
    home_at,
    load,
    refuse_beside_cluster,
)
from gpm_tune.cli.output import output
from gpm_tune.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from gpm_tune.study.cluster.doctor import Finding


@command(
    MACHINES,
    "gpm-tune doctor",
    "gpm-tune doctor discr_flow.yaml",
    "gpm-tune doctor discr_flow.yaml --cluster cluster.yaml",
)
def doctor(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="STUDY.yaml",
            help="A study: are its data here, does it fit?",
            autocompletion=complete_file,
        ),
    ] = None,
    address: AddressOption = "local",
    cluster: ClusterOption = None,
    storage: StorageOption = None,
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Check this machine, or every node of a cluster, and say what to do; exit code 1 if anything fails."""
    if cluster is not None:
        refuse_beside_cluster(cluster, home=home, tracking_uri=tracking_uri, storage=storage)
        if address != "local":
            raise UserError("--address cannot be combined with --cluster\nhelp: leave one of them out")
        _examine_on(cluster, file)
        return
    from gpm_tune.console import new_console
    from gpm_tune.study.cluster.doctor import examine

    console = new_console(quiet=output.json)
    findings = []
    for finding in examine(file, home_at(home, tracking_uri, storage), address):
        findings.append(finding)
        _show(finding, console)  # at once: some checks take a while
    output.result([asdict(finding) for finding in findings], [])
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(NO_RESULT)


def _examine_on(file: Path, study: Path | None) -> None:
    """Let the head of a cluster examine itself and all nodes."""
    from gpm_tune.documents import as_yaml
    from gpm_tune.study.cluster.remote import Cluster
    from gpm_tune.study.definition.specification import load_study

    cluster = Cluster(file)
    words = ["gpm-tune", "doctor", "--address", "auto", *output.flags]
    if study is not None:
        found = load_study(load(study, None))
        cluster.share_data(found.experiment)  # nodes get it from there
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder) / f"{found.name}.yaml"  # with the teacher that it may name by a file
            whole.write_text(as_yaml(found.model_dump(mode="json")), encoding="utf-8")
            words.append(cluster.put(whole))
    if not cluster.run(words):
        raise typer.Exit(NO_RESULT)


@command(
    MACHINES,
    "gpm-tune fetch discr_flow --cluster cluster.yaml",
    "gpm-tune fetch discr_flow --storage s3://bucket/prefix --checkpoints all",
)
def fetch(
    study: StudyArgument,
    cluster: ClusterOption = None,
    storage: StorageOption = None,
    checkpoints: Annotated[
        str, typer.Option(help="`best`, `all` or `none` of its trials' checkpoints.")
    ] = "best",
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Bring a study's results here, from a cluster or a storage: its trials, MLflow's runs, checkpoints."""
    from gpm_tune.study.cluster.fetching import fetch as fetch_study
    from gpm_tune.study.cluster.fetching import from_storage
    from gpm_tune.study.running.publishing import publish_study
    from gpm_tune.study.views.results import plain, report

    if checkpoints not in ("best", "all", "none"):
        raise UserError(f"--checkpoints {checkpoints}: expected best, all or none")
    place = home_at(home, tracking_uri, storage)
    here = place.alone
    if cluster is not None:
        refuse_beside_cluster(cluster, storage=storage)
        from gpm_tune.study.cluster.remote import Cluster

        get = Cluster(cluster).get()
    elif place.storage:
        get = from_storage(place.storage)
    else:
        raise UserError("where is the study? Name the cluster's file (--cluster), or its storage (--storage)")
    record = fetch_study(study, here, get, checkpoints=checkpoints)
    publish_study(study, here)
    output.result(plain(record), report(here.optuna_uri, record))
    output.advise(f"in {here.root}; open it in MLflow with", f"  gpm-tune ui --home {here.root}")


def _show(finding: Finding, console: Console) -> None:
    """One finding, its lines below each other."""
    from rich.table import Table
    from rich.text import Text

    style = {"ok": "green", "warn": "yellow", "fail": "bold red"}[finding.level]
    line = Table.grid(padding=(0, 2))
    for width in (4, 9, None):
        line.add_column(width=width, overflow="fold")
    line.add_row(Text(finding.level, style), finding.check, Text(finding.found))
    if finding.advice:
        line.add_row("", "", Text(finding.advice, "italic"))
    console.print(line)
