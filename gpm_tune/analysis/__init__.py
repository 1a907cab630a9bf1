"""Results as frames and figures: MLflow -> pandas -> csv, png, svg, html."""
