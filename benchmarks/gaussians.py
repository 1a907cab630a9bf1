"""Quality of the four models on the paper's 2-D Gaussians, with the paper's hyperparameters.

    python -m benchmarks.gaussians --seeds 0 1 2 --out benchmarks/results/gaussians.csv

Trains the base experiments of search_spaces/*_gaussians.yaml, and measures 10,000 samples of each against
as many fresh points of the data, with the last weights and with an exponential average of them (decay
0.999). Rows are written as soon as they are known; those that the file has already are not measured again.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from gpm_tune.documents import Document
from gpm_tune.metrics import Points, Quality, Real
from gpm_tune.study.definition.specification import find_file, include_teacher, load_experiment
from gpm_tune.training import Experiment, Trainer
from gpm_tune.training.loop import Asker, train_teacher
from gpm_tune.training.run import Runs
from gpm_tune.training.trainer import draw

MODELS = ("gan", "edm", "score_gan", "discr_flow", "mmd_generator", "kernel_flow")
SAMPLES = 10_000


def load(model: str, seed: int, steps: int | None, precision: str) -> Experiment:
    """The base experiment of a model's study, with another seed, and fewer steps if asked for."""
    document = Document.load(find_file(Path(f"{model}_gaussians.yaml")))
    document.set(f"experiment.seed={seed}")
    if model != "kernel_flow":
        document.set("experiment.training.ema=0.999")
        document.set(f"experiment.training.precision={precision}")
    if model == "score_gan":
        include_teacher(document)
        document.set(f"experiment.model.teacher.experiment.training.precision={precision}")
    if steps is not None:
        document.set(f"experiment.training.steps={steps}")
    return load_experiment(document)


def measure(experiment: Experiment, cache: Path) -> list[dict[str, object]]:
    """Train, and measure the last weights and their average on points of the test set."""
    (cache / "runs").mkdir(parents=True, exist_ok=True)
    asker = Asker("benchmarks", f"benchmark of {experiment.model.name}")
    teacher = train_teacher(experiment, Runs(str(cache / "runs"), cache), asker, "cpu")
    data = experiment.data.load(experiment.seed)
    means, std = experiment.modes
    metrics = Quality(experiment.metrics, Real(data.test[:SAMPLES], Points("cpu"), means=means, std=std))
    trainer = Trainer(experiment, cache=cache, teacher=teacher)
    started = time.perf_counter()
    while not trainer.done:
        trainer.run_interval()
    seconds = time.perf_counter() - started
    rows = []
    for weights, trained in (("last", trainer.model), ("average", trainer.evaluated_model)):
        samples = draw(trained, SAMPLES, torch.Generator().manual_seed(experiment.seed))
        nfe = max(samples)
        rows.append({"weights": weights, "nfe": nfe, **metrics(samples[nfe]), "seconds": seconds})
    return rows


def main() -> None:
    """Measure what is asked for, and print the medians over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, help="training steps, instead of the paper's")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "gpm-tune-benchmark")
    parser.add_argument("--out", type=Path, default=Path("gaussians.csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table = pd.read_csv(arguments.out) if arguments.out.exists() else pd.DataFrame()
    if len(table) and "precision" not in table:
        table["precision"] = "float32"  # there was no other
    for seed in arguments.seeds:
        for model in arguments.models:
            experiment = load(model, seed, arguments.steps, arguments.precision)
            training = experiment.training
            key = {"model": model, "steps": training.steps, "precision": training.precision, "seed": seed}
            if len(table) and (table[list(key)] == pd.Series(key)).all(axis=1).any():
                continue
            rows = [key | row for row in measure(experiment, arguments.cache)]
            table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
            table.to_csv(arguments.out, index=False)
            print(pd.DataFrame(rows).to_string(index=False), flush=True)
    if len(table):
        print(
            table.groupby(["model", "weights", "steps", "precision"])
            .median()
            .drop(columns="seed")
            .to_string()
        )


if __name__ == "__main__":
    main()
