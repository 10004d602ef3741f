"""Loads a checkpoint where the package cannot be imported: `python without.py CHECKPOINT` prints the outputs."""

import sys

import torch
from network import images, network

if __name__ == "__main__":
    sys.modules["lightning_anomaly"] = None  # type: ignore[assignment]
    checkpoint = torch.load(sys.argv[1], weights_only=True)
    model = network()
    model.load_state_dict({name.removeprefix("net."): value for name, value in checkpoint["state_dict"].items()})
    model.eval()
    with torch.no_grad():
        print("outputs", *model(images(4).tensors[0]).flatten().tolist())
