"""Jobs of a comparison: a method and some of its options, written ``METHOD:OPTION=VALUE,OPTION=VALUE``."""

import importlib
from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import Any, get_type_hints

from python_trainers import kd
from python_trainers.cli import methods
from python_trainers.common.checks import select, unknown
from python_trainers.common.errors import TrainerError, require
from python_trainers.common.options import DataOptions, MachineOptions, RunOptions, StudentOptions
from python_trainers.common.presets import Preset, published
from python_trainers.common.recipe import TrainingOptions
from python_trainers.common.teacher import OWN_RECIPE, Pretraining, TeacherOptions
from python_trainers.common.typed import describe, read_value

BASELINE = "baseline"
CROSS_ENTROPY = {"tf_kd": {"mode": "baseline"}, "kd": {"kl_weight": 0.0}}  # the same by options of a method
RECIPE = {field.name for field in fields(TrainingOptions)}
FIXED = {field.name for group in (DataOptions, MachineOptions, RunOptions) for field in fields(group)}
COMMON = RECIPE | FIXED  # options of the comparison
# Options that a job does not have: networks are the pair's, the rest is of a single run.
NOT_OF_A_JOB = FIXED | {"model", "teacher_model", "student_model", "teacher", "evaluate", "export", "log_with"}


@dataclass(frozen=True)
class Job:
    """One row of the table: a method with options, on a pair of networks."""

    text: str  # as it was typed
    pair: str  # TEACHER/STUDENT
    method: ModuleType | None  # None: the baseline, whose options are those of kd without a teacher
    args: StudentOptions  # but for seed, folder and teacher

    def having(self, **options: Any) -> "Job":
        """The same with other options, as the learning rate."""
        return replace(self, args=replace(self.args, **options))

    def pretraining(self) -> Pretraining | None:
        """What has to be trained from labels first; of the baseline that is all."""
        if self.method is None:
            return Pretraining(self.pair.partition("/")[2], self.args.epochs, few=True)
        return self.args.pretraining()

    def published(self) -> Preset | None:
        """The published setting whose figure may stand beside this job's."""
        if self.method is not None:
            return published(self.method.PRESETS, self.args)
        shared = select(self.args, *COMMON)
        for name, alone in CROSS_ENTROPY.items():
            method = importlib.import_module(f"python_trainers.{name}")
            same = replace(method.Args(**{**shared, **alone}), student_model=self.pair.partition("/")[2])
            if found := published(method.PRESETS, same):
                return found
        return None


def build_job(text: str, pair: str, common: Any, teacher_epochs: int) -> Job:
    """The job that ``text`` describes on the networks of ``pair``, with the recipe and data of ``common``."""
    name, _, options = text.partition(":")
    shared = select(common, *COMMON)
    if name == BASELINE:
        require(not options, f"job {text!r}: {BASELINE} has no options of its own")
        args = kd.Args(**shared, kl_weight=0.0).on_pair(*pair.split("/"), teacher_epochs)
        return Job(text, pair, None, args)
    try:
        if name not in methods():
            raise unknown("method", name, [BASELINE, *methods()])
        method = importlib.import_module(f"python_trainers.{name}")
        args = method.Args(**shared).on_pair(*pair.split("/"), teacher_epochs)
        if isinstance(args, TeacherOptions):  # the pair's teacher is the same for all, whatever the job's own rate
            args = replace(args, **{f"teacher_{field}": shared[field] for field in OWN_RECIPE})
        for part in filter(None, options.split(",")):
            args = with_option(args, part)
        args.check()
    except TrainerError as error:
        raise TrainerError(f"job {text!r}: {error}") from error
    return Job(text, pair, method, args)


def with_option(args: StudentOptions, part: str) -> StudentOptions:
    """``args`` after one ``OPTION=VALUE``; a switch is written ``OPTION`` or ``no-OPTION``."""
    name, equals, value = part.partition("=")
    hints = {
        field.replace("_", "-"): hint
        for field, hint in get_type_hints(type(args)).items()
        if field not in NOT_OF_A_JOB
    }
    switches = {prefix + key: key for key, hint in hints.items() if hint is bool for prefix in ("", "no-")}
    if name in switches:
        key = switches[name]
        require(not equals, f"option {key} is a switch: write {key} or no-{key}, got {part!r}")
        return replace(args, **{key.replace("-", "_"): name == key})
    if name not in hints:
        raise unknown("option", name, sorted(hints))
    require(bool(equals), f"option {name} needs a value, {name}=VALUE: it takes {describe(hints[name])}")
    try:
        return replace(args, **{name.replace("-", "_"): read_value(value, hints[name])})
    except ValueError as error:
        raise TrainerError(
            f"option {name} does not take {value!r}, it takes {describe(hints[name])}"
        ) from error
