"""Figure 6: the loss of a Score GAN's score between two generator updates; and quality against K."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpm_tune.analysis import figures, score_loss
from gpm_tune.analysis.retraining import find_origin
from gpm_tune.cli import common, script
from gpm_tune.cli.output import written
from gpm_tune.errors import UserError
from gpm_tune.training.machine import choose_device


def main(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN|EXPERIMENT.yaml]",
            help="A Score GAN: STUDY (its best trial), STUDY/TRIAL, a training run or its folder, an MLflow "
            "run id, or a file.",
        ),
    ] = None,
    output: common.FigureOption = Path("score_loss"),
    score_steps: Annotated[int, typer.Option("--score-steps", min=2, metavar="K", help="K.")] = 64,
    early: Annotated[int, typer.Option(min=1, help="Generator updates before the first panel.")] = 50,
    late: Annotated[int, typer.Option(min=1, help="Generator updates before the second panel.")] = 3200,
    repeats: Annotated[
        int, typer.Option(min=2, help="Restarts from the same state, over which losses are averaged.")
    ] = 64,
    study: Annotated[
        list[str] | None,
        typer.Option("--study", help="Draw quality against K instead, of the runs of these studies."),
    ] = None,
    metric: Annotated[str | None, typer.Option(help="With --study (default: the data's first).")] = None,
    seed: common.SeedOption = 0,
    overrides: common.SetOption = None,
    device: common.DeviceOption = None,
    home: common.HomeOption = None,
    tracking_uri: common.TrackingOption = None,
) -> None:
    """Figure 6: how fast the score of the generated distribution follows the generator (appendix C.4).

    The Score GAN is trained with K score steps per generator update, up to --early and to --late generator
    updates: K × as many training steps. The K score steps that follow are then made, with the generator at
    rest, --repeats times from the same state with other random numbers: a single step's loss is noisy. The
    band is the standard error of the mean. Learning rates are the experiment's; the paper's are equal.

        python analysis/score_loss.py score_gan.yaml --set experiment.training.optimizer.lr=2e-4 -o figure6

    The states are kept in HOME/cache/score_loss: a second call trains nothing, one after Ctrl-C continues.

    With --study: the best value of each run against its K, and mean ± standard deviation over the seeds of
    a K. At equal training steps, which count score steps, a K has steps / K generator updates.

        gpm-tune run score_gan_k.yaml && python analysis/score_loss.py --study score_gan_k -o quality_by_k
    """
    output = figures.check_output(output)
    if (run is None) == (not study):
        raise UserError("give either a Score GAN, for its loss, or --study NAME, for quality against K")
    place = common.home_at(home, tracking_uri)
    if run is None:
        table = score_loss.best_by_run(place, study or [], metric)
        figure = score_loss.draw_quality(table)
    else:
        origin = find_origin(place, run, overrides or [])
        experiment = score_loss.with_score_steps(origin, score_steps, max(early, late))
        table = score_loss.follow(
            experiment, [early, late], place, choose_device(device), repeats=repeats, seed=seed
        )
        table = table.assign(run=origin.name, seed=seed)
        figure = score_loss.draw_losses(table, origin.name)
    written(figures.write(figure, table, output))


if __name__ == "__main__":
    script(main)
