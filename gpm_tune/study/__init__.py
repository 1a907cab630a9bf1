"""Studies: YAML to Optuna (what to try), Ray Tune (where it runs) and MLflow (what came out)."""
