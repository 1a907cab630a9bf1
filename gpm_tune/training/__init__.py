"""Training: from an experiment to a trained model, its metrics and checkpoints."""

from gpm_tune.training.experiment import Experiment
from gpm_tune.training.objectives import Constraint, Objective
from gpm_tune.training.trainer import Evaluation, Trainer

__all__ = ["Constraint", "Evaluation", "Experiment", "Objective", "Trainer"]
