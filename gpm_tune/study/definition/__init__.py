"""What a study is: the YAML file's schema, its search space, samplers and schedulers."""
