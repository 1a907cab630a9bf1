"""A first study of a model on a data set: the shipped one of such samples, with what these need."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from gpm_tune.config import Config, nearest
from gpm_tune.data import DataConfig
from gpm_tune.documents import Document
from gpm_tune.errors import UserError
from gpm_tune.models import ModelConfig
from gpm_tune.plugins import members, name_of
from gpm_tune.study.definition import space
from gpm_tune.study.definition.specification import load_study, shipped_studies
from gpm_tune.study.starting.commented import CommentedStudy
from gpm_tune.training import Experiment

Tree = dict[str, Any]  # of a study, as a file has it
Shape = tuple[int, ...]

SMALL_SIDE = 16  # of images that a CPU learns in minutes
MNIST_SIDE = 32  # of images for which the studies of MNIST are the pattern; of larger ones, those of CelebA
LAPTOP = {"cpu": 1, "concurrent": 2}
SMALL_TRIALS = 16
# What small samples have in place of the paper's networks and numbers of steps.
SMALL_NETWORKS: dict[str, Tree] = {
    "mlp": {"width": 128},
    "dcgan": {"width": 16},
    "unet": {"channels": 16, "channel_mult": [1, 2], "blocks": 1, "attention_resolutions": []},
}
SMALL_IMAGES: dict[str, Tree] = {
    "edm": {
        "experiment.training": {
            "steps": 1000,
            "batch_size": 32,
            "optimizer": {"lr": 1e-3, "betas": [0.9, 0.999]},
        },
        "experiment.model.sampling_steps": 8,
        "experiment.evaluation": {"every": 250, "nfe": [3, 7]},
        "scheduler.grace_steps": 250,
    },
    "gan": {
        "experiment.training.steps": 2000,
        "experiment.training.batch_size": 64,
        "experiment.evaluation.every": 250,
        "scheduler.grace_steps": 500,
    },
    "score_gan": {
        "experiment.training.steps": 1000,
        "experiment.training.batch_size": 32,
        "experiment.evaluation.every": 125,
        "scheduler.grace_steps": 250,
    },
}
# In the space of images density estimates fail; the energy distance has no bandwidth to be chosen.
KERNEL_FLOW_OF_IMAGES: Tree = {
    "experiment.model.functionals": [{"name": "mmd", "kernel": {"name": "energy"}}],
    "experiment.model.data_samples": 1000,
    "resources": {"cpu": 2, "gpu": 0.25},
}
LONG_FLOW: Tree = {"eta": 1000.0}
LONG_FLOWS: Tree = {"model.eta": {"float": [100.0, 10000.0], "log": True}}
# What people look for next.
OFF: Tree = {
    "experiment.seed": 1,
    "experiment.evaluation.samples": 2000,
    "experiment.evaluation.batch_size": 250,
    "constraints": [{"metric": "seconds", "max": 3600}],
    "budget.hours": 8,
    "budget.gpu_hours": 24,
    "confirm": {"trials": 3, "seeds": 5},
    "resources.gpu": 0.25,
    "resources.concurrent": 2,
    "resources.time_limit": 3600,
}
OFF_IN_TRAINING: Tree = {"experiment.training.ema": 0.999, "experiment.training.precision": "float32"}
HEADER = """\
A study of {model} on {data}, begun by `gpm-tune init`.

`gpm-tune run {file} --dry-run` shows what it would do; without --dry-run, it does it.
A line such as `#hours: 8` is a key that is switched off: take its # away to switch it on.
Inference-only keys change how a trained model is sampled or measured, and not its training: trials
that differ only in them share one training.
With `gpm-tune schema -o study.schema.json`, and with
`# yaml-language-server: $schema=study.schema.json` as the first line here, editors complete and
check this file.
"""
NEEDS_GPU = """
Its trials are meant for GPUs: where there are some, switch resources.gpu on.
"""


class Starter(NamedTuple):
    """The keys of a study that runs as it is, and those that are switched off: path -> value."""

    tree: Tree
    off: Tree
    lacks_gpu: bool  # for which it is meant


def starter(
    name: str, model: str, data: str, *, root: Path | None = None, generator: bool = False, gpu: bool = False
) -> Starter:
    """A study of a model on a data set.

    generator: for a model that may be without. gpu: whether trials of larger samples occupy a GPU.
    Raises UserError where there is no such model or data set, or where one does not fit the other.
    """
    samples = _data(data, root)
    tree = Document.load(_pattern(model, samples.shape, generator)).data
    tree["name"] = name
    tree["experiment"]["data"] = samples.model_dump(mode="json", exclude_none=True)
    tree = _fit(tree, model, samples.shape)
    if model == "score_gan":
        teacher = starter(name, "edm", data, root=root).tree["experiment"]
        tree["experiment"]["model"]["teacher"] = {"experiment": teacher}
    tree["objectives"] = [_experiment(tree, model, data).default_objective.model_dump()]
    off = dict(OFF)
    lacks_gpu = not gpu and "gpu" in tree["resources"]
    if lacks_gpu:
        off["resources.gpu"] = tree["resources"].pop("gpu")
    if "root" in type(samples).model_fields:
        off["experiment.data.root"] = "/data"
    if tree["experiment"]["training"]["steps"]:
        off |= OFF_IN_TRAINING
    load_study(Document(name, space.put(tree, {}), {}))
    off = {path: off[path] for path in off if space.get(tree, path) is space.MISSING}
    return Starter(tree, off, lacks_gpu)


def write_starter(
    file: Path, model: str, data: str, *, root: Path | None, generator: bool, gpu: bool, force: bool
) -> Starter:
    """Write a study of a model on a data set, named after the file, with a comment on every key.

    Raises UserError as `starter` does, and where the file is there and not to be overwritten.
    """
    if file.exists() and not force:
        raise UserError(f"{file}: it is there already; name another file, or overwrite it with --force")
    begun = starter(file.stem, model, data, root=root, generator=generator, gpu=gpu)
    header = HEADER.format(model=model, data=data, file=file)
    if begun.lacks_gpu:
        header += NEEDS_GPU
    try:
        file.write_text(CommentedStudy(begun.tree, begun.off).text(header), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}") from None
    return begun


def _data(name: str, root: Path | None) -> Any:
    """A data set's configuration. Raises UserError where there is no such one, or it lacks something."""
    classes = _classes(DataConfig)
    if name not in classes:
        raise UserError(f"--data {name}: unknown data set; {nearest(name, classes)}")
    config, given = classes[name], {"name": name}
    if root is not None:
        if "root" not in config.model_fields:
            raise UserError(f"--root {root}: data set '{name}' is not in a folder; leave --root out")
        given["root"] = str(root)
    elif "root" in config.model_fields and config.model_fields["root"].is_required():
        raise UserError(f"data set '{name}' needs a folder: name it with --root FOLDER")
    try:
        return config.model_validate(given)
    except ValidationError as error:
        details = error.errors()[0]
        key = ".".join(map(str, ("data", *details["loc"])))
        raise UserError(
            f"data set '{name}' cannot begin with its defaults: {key}: {details['msg']}"
        ) from None


def _pattern(model: str, shape: Shape, generator: bool) -> Path:
    """The shipped study of a model for samples of a shape."""
    classes: dict[str, Any] = _classes(ModelConfig)
    if model not in classes:
        raise UserError(f"--model {model}: unknown model; {nearest(model, classes)}")
    if generator and not any(row.generator for row in classes[model].taxonomy):
        raise UserError(f"--generator: model '{model}' has no generator; leave it out")
    if model == "kernel_flow":
        name = "mmd_generator_gaussians" if generator else "kernel_flow_gaussians"
    elif not _is_image(shape):
        name = f"{model}_gaussians"
    elif model == "discr_flow" and _is_small(shape):
        name = "quickstart"
    else:
        name = model if shape[1] <= MNIST_SIDE else f"{model}_celeba"
    path = shipped_studies() / f"{name}.yaml"
    if not path.is_file():
        raise UserError(
            f"model '{model}' comes from a plug-in, and gpm-tune has no study of it to begin with; "
            "see whether its package has one"
        )
    return path


def _fit(pattern: Tree, model: str, shape: Shape) -> Tree:
    """The pattern with networks, steps and metrics that suit the samples."""
    changes: Tree = {}
    if _is_image(shape):
        grey_and_small = shape[0] == 1 and _is_small(shape)
        changes["experiment.evaluation.features"] = "small" if grey_and_small else "inception"
        if model == "kernel_flow":
            changes |= KERNEL_FLOW_OF_IMAGES
        if _is_small(shape):
            changes |= SMALL_IMAGES.get(model, {})
    tree = space.put(pattern, changes)
    if _is_image(shape) and model == "kernel_flow":
        del tree["experiment"]["evaluation"]["samples"]
        if "eta" in tree["experiment"]["model"]:
            tree["experiment"]["model"] |= LONG_FLOW
            tree["search"] |= LONG_FLOWS
    if _is_small(shape):
        tree["resources"] = dict(LAPTOP)
        tree["budget"]["trials"] = min(tree["budget"]["trials"], SMALL_TRIALS)
        if model != "discr_flow" or not _is_image(shape):
            _shrink(tree["experiment"])
    return tree


def _shrink(tree: Tree) -> None:
    """Make networks small, wherever they stand."""
    tree |= SMALL_NETWORKS.get(tree.get("name", ""), {})
    for inner in tree.values():
        if isinstance(inner, dict):
            _shrink(inner)


def _experiment(tree: Tree, model: str, data: str) -> Experiment:
    try:
        return Experiment.model_validate(tree["experiment"])
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"model '{model}' does not fit data set '{data}': {reason}") from None


def _classes(union: Any) -> dict[str, type[Config]]:
    return {name_of(config): config for config in members(union)}


def _is_image(shape: Shape) -> bool:
    return len(shape) == 3


def _is_small(shape: Shape) -> bool:
    """Points, and images for which a CPU is enough."""
    return not _is_image(shape) or shape[1] <= SMALL_SIDE
