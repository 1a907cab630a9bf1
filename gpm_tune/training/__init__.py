"""Training: from an experiment to a trained model, its metrics and checkpoints."""

from gpm_tune.training.experiment import Experiment, Objective
from gpm_tune.training.trainer import Evaluation, Trainer

__all__ = ["Evaluation", "Experiment", "Objective", "Trainer"]
