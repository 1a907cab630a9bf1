"""Commands that start people off: a schema for their editor, a first study, a package of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpm_tune.cli.common import STARTING, command, writable
from gpm_tune.cli.output import output

OutputOption = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", metavar="FILE", help="Write it there, instead of printing it.", callback=writable
    ),
]


@command(STARTING, "gpm-tune schema -o study.schema.json")
def schema(
    file: OutputOption = None,
    experiment: Annotated[
        bool, typer.Option("--experiment", help="Of an experiment file, instead of a study file.")
    ] = False,
) -> None:
    """Print the JSON Schema of study files, with which an editor completes and checks them."""
    from gpm_tune.study.definition.schema import as_text, experiment_schema, study_schema

    found = experiment_schema() if experiment else study_schema()
    if file is None:
        print(as_text(found), end="")
        return
    file.write_text(as_text(found), encoding="utf-8")
    output.result({"file": str(file)}, [f"the schema is {file}"])
    output.advise(
        "an editor with yaml-language-server uses it for files beside it whose first line is",
        f"  # yaml-language-server: $schema={file.name}",
    )


@command(
    STARTING,
    "gpm-tune init my_gan.yaml --model gan --data digits",
    "gpm-tune init --model edm --data folder --root my_pictures",
)
def init(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", help="Where to write (default: MODEL_DATA.yaml); its stem names it."
        ),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", help="edm, gan, score_gan, discr_flow or kernel_flow.")
    ] = "discr_flow",
    data: Annotated[
        str, typer.Option("--data", help="gaussians, digits, mnist, celeba, folder, or a plug-in's.")
    ] = "digits",
    root: Annotated[
        Path | None, typer.Option("--root", metavar="FOLDER", help="Where the data are: data.root.")
    ] = None,
    generator: Annotated[
        bool, typer.Option("--generator", help="Let a generator follow the flow (kernel_flow).")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a study of a model on a data set, with a comment on every key, that runs as it is."""
    import torch

    from gpm_tune.study.starting.starter import write_starter

    path = file or Path(f"{model}_{data}.yaml")
    gpu = torch.cuda.is_available()
    begun = write_starter(path, model, data, root=root, generator=generator, gpu=gpu, force=force)
    output.result({"file": str(path)}, [f"{path}: a study of {model} on {data}"])
    output.advise(
        "see what it would do, and how long it would take, with", f"  gpm-tune run {path} --dry-run"
    )
    if begun.lacks_gpu:
        output.advise(
            "its trials are meant for GPUs, and this machine has none: see resources.gpu in the file"
        )


@command(STARTING, "gpm-tune new dataset spiral", "gpm-tune new network wide_mlp packages/wide_mlp")
def new(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="dataset, network, flow or solver.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What chooses it in a study file.")],
    folder: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="Where to write (default: gpm-tune-NAME).")
    ] = None,
) -> None:
    """Write a package that adds a data set, a network, a flow or a solver, with its test and a study."""
    from gpm_tune.study.starting.skeleton import write_skeleton

    place = write_skeleton(kind, name, folder)
    output.result(
        {"folder": str(place)}, [f"{place}: a package with the {kind} '{name}', which works as it is"]
    )
    output.advise(
        "go on with",
        f"  pip install --editable {place}",
        f"  pytest {place}",
        f"  gpm-tune run {place / name}.yaml --dry-run",
    )
