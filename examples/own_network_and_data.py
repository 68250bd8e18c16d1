"""Your own network learns from one of timm's, on your own data: `python examples/own_network_and_data.py`.

Needs `pip install './kdkernels[trainers]' timm`; downloads nothing and takes seconds on a CPU.
"""

import torch
from sklearn.datasets import load_digits
from timm import create_model
from torch import nn
from torch.utils.data import Dataset
from torchvision.transforms import v2

from python_trainers import kd, sskd


class Digits(Dataset):
    """Any map-style Dataset of (image [channels, height, width], label); its transform may be random."""

    def __init__(self, numbers: slice, transform=None):
        digits = load_digits()
        self.images = torch.from_numpy(digits.images[numbers]).float().unsqueeze(1) / 8 - 1
        self.labels, self.transform = digits.target[numbers], transform or nn.Identity()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, number):
        return self.transform(self.images[number]), self.labels[number]


def my_network():
    """Any module from images to logits; methods that compare features find the input of its last layer."""
    layers = nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 32), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(32, 10))


def main(out: str = "out/own", epochs: int = 8) -> dict[str, float]:
    torch.manual_seed(0)
    data = Digits(slice(1200), v2.RandomCrop(8, padding=1, fill=-1)), Digits(slice(1200, None))
    teacher, student = create_model("test_resnet", in_chans=1, num_classes=10), my_network()
    recipe = {"epochs": epochs, "learning_rate": 0.05, "workers": 0}
    taught = kd.train(kd.Args(kl_weight=0, out=f"{out}/teacher", **recipe), dataset=data, student=teacher)
    args = sskd.Args(head_epochs=4, out=f"{out}/student", **recipe)
    summary = sskd.train(args, dataset=data, student=student, teacher=teacher)
    return {name: run["figures"]["test_accuracy"] for name, run in (("teacher", taught), ("student", summary))}


if __name__ == "__main__":
    print(main())
