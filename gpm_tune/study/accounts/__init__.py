"""What a study has done and spent, in Optuna's storage, the source of truth."""
