"""When to stop by the network's output: by how much surer it is of training images than of validation images."""
