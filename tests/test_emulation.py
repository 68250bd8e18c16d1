"""The emulation catches what it is there to catch: each kernel of csrc/emulated/planted.cpp has one bug, which shows, and
a correct twin, which passes under every order of threads."""

import functools

import emulated
import kernel_resources
import numpy as np
import pytest

COUNT = 60  # not a multiple of the warp, a multiple of 4
VALUES = np.random.default_rng(0).normal(size=COUNT).astype(np.float32)
REVERSED = np.concatenate([np.zeros(64 - COUNT, np.float32), VALUES[::-1]])[:COUNT]
TRUTH = {
    "missing_barrier": np.full(COUNT, VALUES.max() - VALUES.min()),
    "global_write": 2 * VALUES,
    "static_shared_write": REVERSED,
    "dynamic_shared_write": REVERSED,
    "uninitialised_shared": np.full(COUNT, VALUES[0] + VALUES[32]),
    "divergent_barrier": VALUES[np.arange(COUNT) ^ 1],
    "divergent_shuffle": VALUES[np.arange(COUNT) ^ 1],
    "returned_thread": np.repeat([VALUES[31], 0], [32, COUNT - 32]),
    "large_shared": VALUES,
    "misaligned_load": VALUES,
    "missing_wait": VALUES,
    "missing_cluster_barrier": np.full(COUNT, functools.reduce(np.add, VALUES[:4])),
    "ended_block": np.full(COUNT, functools.reduce(np.add, VALUES[:4])),
}
SEEDS = range(20)


def run(name, bug, seed):
    emulated.module().set_seed(seed)
    return emulated.module().planted(name, bug, VALUES)


@pytest.mark.parametrize("name", TRUTH)
def test_correct_twin_passes_in_every_order(name):
    for seed in SEEDS:
        np.testing.assert_array_equal(run(name, False, seed), TRUTH[name], err_msg=f"seed {seed}")


@pytest.mark.parametrize("name", ["missing_barrier", "uninitialised_shared", "returned_thread", "missing_wait", "missing_cluster_barrier"])
def test_bug_gives_a_wrong_result(name):
    wrong = [not np.array_equal(run(name, True, seed), TRUTH[name]) for seed in SEEDS]
    assert sum(wrong) >= len(SEEDS) / 2


@pytest.mark.parametrize(
    "name, message",
    [
        ("global_write", r"wrote behind the result"),
        ("static_shared_write", r"wrote behind the static shared memory of block 0"),
        ("dynamic_shared_write", r"wrote behind the dynamic shared memory of block 0"),
        (
            "divergent_barrier",
            r"divergent threads in block 0: threads 0-15 wait at sync_threads \(planted\.cpp:\d+\), "
            r"thread 16 wait at sync_threads \(planted\.cpp:\d+\)",
        ),
        (
            "divergent_shuffle",
            r"deadlock in block 0: threads 0-31 wait at sync_threads \(planted\.cpp:\d+\), "
            r"threads 32-59 wait at shuffle \(planted\.cpp:\d+\), threads 60-63 wait at sync_threads",
        ),
        ("large_shared", r"a block has 48 KiB of static shared memory, asked for 49156"),
        ("ended_block", r"read_cluster at planted\.cpp:\d+ reads the shared memory of block \d, which has ended: block \d, thread"),
        ("misaligned_load", r"load16 at planted\.cpp:\d+ needs a multiple of 16, got one of remainder 4: block 0,"),
    ],
)
def test_bug_is_an_error(name, message):
    with pytest.raises(RuntimeError, match=message):
        run(name, True, seed=0)
    np.testing.assert_array_equal(run(name, False, seed=0), TRUTH[name])  # the engine is fit for the next launch


def test_the_device_of_a_call_ends_with_it():
    features, positive = np.eye(2, dtype=np.float32), np.arange(2)
    emulated.module().similarity_rank(features, features, positive, True, sm=75)  # a GPU without clusters
    np.testing.assert_array_equal(run("ended_block", False, seed=0), TRUTH["ended_block"])


REFUSED = {
    "no_opt_in": "small needs 256 bytes of static and 49152 of dynamic shared memory, a block has 49152 without a larger opt-in",
    "shared_of_the_device": r"small needs 256 bytes of static and 232193 of dynamic shared memory, a block has 232448$",
    "shared_of_a_smaller_device": r"small needs 256 bytes of static and 101376 of dynamic shared memory, a block has 101376$",
    "threads_of_a_block": "a block has 1 to 1024 threads, got 1056",
    "threads_of_the_bound": "small is compiled for blocks of 128 threads at most, got 160",
    "registers": "large takes 96 registers per thread: 672 threads need more than a block may have",
    "blocks": "a grid has 1 to 2147483647 blocks, got 2147483648",
    "large_cluster": "a cluster has 1 to 8 blocks, got 16",
    "part_of_a_cluster": "a grid has whole clusters, got 12 blocks in clusters of 8",
    "clusters_of_an_older_device": "a GPU of compute capability 8.9 has no clusters",
}


@pytest.mark.parametrize("name", REFUSED)
def test_launches_that_a_gpu_refuses_are_refused(name):
    module = emulated.module()
    before = module.launch_count()
    with pytest.raises(RuntimeError, match=REFUSED[name]):
        module.planted_launch(name, True, VALUES)
    assert (module.launch_count(), module.last_error()) == (before, 0)
    np.testing.assert_array_equal(module.planted_launch(name, False, VALUES), VALUES)


def test_a_launch_does_not_take_the_shared_memory_of_another():
    with pytest.raises(RuntimeError, match="256 bytes of static and 204800 of dynamic shared memory, a block has 102656 without a larger"):
        emulated.module().planted_race(True)
    emulated.module().planted_race(False)


def test_a_refused_launch_leaves_no_error_behind():
    with pytest.raises(RuntimeError, match="another library found: a grid has"):
        emulated.module().planted_error(True)
    emulated.module().planted_error(False)


SANITIZED = """
import sys
sys.path.insert(0, "tests")
from test_emulation import run, TRUTH
for name in TRUTH:
    for seed in range(3):
        assert (run(name, False, seed) == TRUTH[name]).all(), name
print("twins pass", flush=True)
run(sys.argv[1], True, 1)
"""


@pytest.mark.parametrize("name", ["global_write", "static_shared_write", "dynamic_shared_write"])
def test_sanitizer_reports_the_line(name):
    process = emulated.run_sanitized(["-c", SANITIZED, name])
    assert process.stdout == "twins pass\n"
    assert process.returncode != 0
    assert "AddressSanitizer: use-after-poison" in process.stderr and "WRITE of size 4" in process.stderr
    assert f"in {name}<true>" in process.stderr and "planted.cpp:" in process.stderr


def test_the_emulated_gpu_knows_every_kernel_of_the_table():
    """The names of both agree. If they do not: python tests/kernel_resources.py"""
    known = {name.partition("<")[0] for _, name, *_ in kernel_resources.in_module(emulated.build(emulated.VARIANT))}
    assert known == set(kernel_resources.kept())


def test_orders_are_repeatable():
    def results():
        return [run("missing_barrier", True, seed).tobytes() for seed in SEEDS]

    first = results()
    assert first == results() and len(set(first)) > 2


def test_launches_are_counted():
    before = emulated.module().launch_count()
    run("global_write", False, seed=0)
    assert emulated.module().launch_count() == before + 1
    emulated.module().planted("global_write", False, VALUES[:0])  # no block: nothing is launched
    assert emulated.module().launch_count() == before + 1
