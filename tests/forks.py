"""Processes that begin with everything imported: forks of an interpreter that has imported it and has never computed, so that
they start in milliseconds and no thread of OpenMP is lost in the fork."""

import multiprocessing
from collections.abc import Callable

import torch

# What takes long; the other trainers import nothing but these. No module of the tests: Python 3.13 and earlier do not look for
# them in the folder of the tests, and say nothing about a module that they do not find. test_forks.py does.
IMPORTED = ["torch.distributed.tensor", "kdkernels", "python_trainers.kd"]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(IMPORTED)


def two(worker: Callable, *arguments: object) -> None:
    """`worker(rank, *arguments)` in two processes; an error in one of them is one here."""
    torch.multiprocessing.start_processes(worker, arguments, nprocs=2, start_method="forkserver")
