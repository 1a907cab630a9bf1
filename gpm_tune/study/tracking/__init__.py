"""What is told to MLflow, and where results come from."""
