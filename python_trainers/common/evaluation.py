"""Testing a trained network, without training anything."""

from typing import Any

from accelerate import Accelerator

from python_trainers.common.metrics import top_accuracies
from python_trainers.common.options import StudentOptions
from python_trainers.common.resolve import Given, load_trained, network_of_run, resolve_dataset, resolve_network


def evaluate(
    args: StudentOptions,
    *,
    dataset: Any = None,
    student: Given | None = None,
    accelerator: Accelerator | None = None,
) -> dict[str, float]:
    """``top1`` and ``top5`` of the network in ``args.evaluate`` on the test images, as shares in [0, 1].

    A run says itself which network it holds; a file of bare weights is of ``args.student_model`` or ``student``.
    """
    args.check()
    accelerator = accelerator or Accelerator()
    data, _ = resolve_dataset(args, seed=args.seed, dataset=dataset, workers=args.workers)
    name = args.trained_model if student else network_of_run(args.evaluate) or args.trained_model
    network, _ = load_trained(args.evaluate, resolve_network(name, student, data), data)
    figures = top_accuracies(network.to(accelerator.device), data.test, accelerator, args.eval_batch_size)
    text = ", ".join(f"{name} {100 * value:.2f} %" for name, value in figures.items())
    accelerator.print(f"{args.evaluate} on {len(data.test)} test images of {data.name}: {text}")
    return figures
