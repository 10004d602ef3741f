"""From a model to maps: its layers, hooks on them, and a run on a probe."""
