"""The forks of forks.py have imported what they are to have imported."""

import importlib.util
import sys

from forks import FORKS, IMPORTED


def report(found):
    found.put([name for name in IMPORTED if name in sys.modules])


def test_everything_is_imported_before_the_fork():
    found = FORKS.SimpleQueue()
    process = FORKS.Process(target=report, args=(found,))
    process.start()
    missing = [] if importlib.util.find_spec("accelerate") else ["python_trainers.kd"]
    assert found.get() == [name for name in IMPORTED if name not in missing]
    process.join()
