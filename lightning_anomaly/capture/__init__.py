"""From a model to maps: which layers, hooks on and off, what is kept, and a model run on a probe."""
