"""Furlanello et al. 2018, tables 1 to 3. Accuracies are 100 minus the test error printed there."""

from python_trainers.common.presets import Preset

# Section 4: the recipe of Zagoruyko and Komodakis 2016, dropout of the Wide-ResNets included, whose rate there is
# 0.3. The batch of the DenseNets is not given.
RECIPE = {
    "epochs": 200,
    "batch_size": 128,
    "learning_rate": 0.1,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 5e-4,
    "schedule": "milestones",
    "milestones": (60, 120, 160),
    "decay": 0.2,
    "warmup_epochs": 0,
}
NETS = {name: f"wrn_{name.replace('-', '_')}" for name in ("28-1", "28-2", "28-5", "28-10")} | {
    name: f"densenet_{name.replace('-', '_')}" for name in ("112-33", "90-60", "80-80", "80-120")
}

# Network, error of generation 0, error of generation 1.
TABLE_1 = (
    ("28-1", 6.69, 6.64),
    ("28-2", 5.06, 4.86),
    ("28-5", 4.13, 4.03),
    ("28-10", 3.77, 3.86),
    ("112-33", 3.84, 3.61),
    ("90-60", 3.81, 3.50),
    ("80-80", 3.48, 3.49),
    ("80-120", 3.37, 3.54),
)
# Network, error of generation 0; then by column: loss, generations, error.
TABLE_2 = (
    ("112-33", 18.25, {"ban": 16.95, "ban+l": 17.68, "cwtm": 17.84, "dkpp": 17.84}, (17.61, 17.22, 16.59)),
    ("90-60", 17.69, {"ban": 16.69, "ban+l": 16.93, "cwtm": 17.42, "dkpp": 17.43}, (16.62, 16.44, 16.72)),
    ("80-80", 17.16, {"ban": 16.36, "ban+l": 16.50, "cwtm": 17.16, "dkpp": 16.84}, (16.26, 16.30, 15.50)),
    ("80-120", 16.87, {"ban": 16.00, "ban+l": 16.41, "cwtm": 17.12, "dkpp": 16.34}, (16.13, 16.13)),
)
# Wide ResNet, its error, that of its generation 1, that of the DenseNet-90-60 it teaches.
TABLE_3 = (
    ("28-1", 30.05, 29.43, 24.93),
    ("28-2", 25.32, 24.38, 18.49),
    ("28-5", 20.88, 20.93, 17.52),
    ("28-10", 19.08, 18.25, 16.79),
)


def _network(name: str) -> str:
    return NETS[name] + ("_drop30" if NETS[name].startswith("wrn") else "")


def _preset(
    dataset: str,
    net: str,
    table: int,
    error: float,
    of_teacher: float,
    loss: str = "ban",
    generations: int = 1,
    student: str | None = None,
) -> Preset:
    return Preset(
        options={
            "dataset": dataset,
            "model": _network(net),
            "student_model": student and _network(student),
            "loss": loss,
            "generations": generations,
            **RECIPE,
        },
        accuracy=round(100 - error, 2),
        source=f"Furlanello et al. 2018, table {table}; generation 0: {100 - of_teacher:.2f} %",
    )


PRESETS = {
    **{f"cifar10-{NETS[net]}": _preset("cifar10", net, 1, error, first) for net, first, error in TABLE_1},
    **{
        f"cifar100-{NETS[net]}-{loss}": _preset("cifar100", net, 2, error, first, loss)
        for net, first, errors, _ in TABLE_2
        for loss, error in errors.items()
    },
    # Generation 1 of this part of the table is the same experiment as its column BAN, with another seed: up to 0.7
    # apart. The figure beside a run is that of the column.
    **{
        f"cifar100-{NETS[net]}-generation-{number}": _preset(
            "cifar100", net, 2, error, first, generations=number
        )
        for net, first, _, errors in TABLE_2
        for number, error in enumerate(errors, start=1)
    },
    **{
        f"cifar100-{NETS[net]}": _preset("cifar100", net, 3, error, first) for net, first, error, _ in TABLE_3
    },
    **{
        f"cifar100-{NETS[net]}-to-densenet_90_60": _preset(
            "cifar100", net, 3, error, first, student="90-60"
        )
        for net, first, _, error in TABLE_3
    },
}
