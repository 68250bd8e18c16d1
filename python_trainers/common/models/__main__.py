"""``python -m python_trainers.common.models``: networks, their parameters and the maps of their stages."""

import argparse

import torch

from python_trainers.common.models import NETWORKS, ImageShape, Network, build_network, small


def parameters(network: Network) -> int:
    """Number of weights, running statistics not counted."""
    return sum(weight.numel() for weight in network.parameters())


def image_shape(name: str) -> ImageShape:
    """The images of the table: digits for the small networks, else CIFAR's."""
    return (1, 8, 8) if name in small.NETWORKS else (3, 32, 32)


def row(name: str, network: Network) -> str:
    """The line of one network, which is on the meta device."""
    shape = image_shape(name)
    maps = network.stages(torch.empty(2, *shape, device="meta"))
    stages = ", ".join("x".join(map(str, stage.shape[1:])) for stage in maps)
    image = "x".join(map(str, shape))
    return f"| `{name}` | {image} | {parameters(network):,} | {network.num_features} | {stages} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m python_trainers.common.models", description=__doc__)
    parser.add_argument("--classes", type=int, default=100)
    args = parser.parse_args()
    print("| name | images | parameters | features | maps of the stages |")
    print("| --- | --- | --- | --- | --- |")
    for name in NETWORKS:
        with torch.device("meta"):
            network = build_network(name, image_shape(name), args.classes)
        print(row(name, network))


if __name__ == "__main__":
    main()
