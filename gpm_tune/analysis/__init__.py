"""Results as frames and figures: trials and training runs -> pandas -> csv, png, svg, html."""
