"""Where a study's files are: the home on this machine, and what a cluster's nodes share."""
