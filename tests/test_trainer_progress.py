"""What a run shows: a line before training, a bar that moves with the steps in a terminal, else a line per epoch."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm
from trainer_process import interrupt
from trainer_runs import epochs_written, torch_settings  # noqa: F401

from python_trainers import kd
from python_trainers.common import progress

pytestmark = pytest.mark.trainers
# Two steps an epoch.
OPTIONS = ["--kl-weight", "0", "--train-images", "50", "--epoch-of", "images", "--batch-size", "25", "--epochs", "2"]
BAR = r"\d+%\|[^|]*\| ([\d.]+)/100 \[\d\d:\d\d<[\d:?]+, +[^ ]+ images/s, (?:loss=([\d.]+))?(?:, test_accuracy=([\d.]+))?"


@contextmanager
def terminal(monkeypatch, width: int) -> Iterator[list[bytes]]:
    """stderr is a terminal of so many columns, in which every step is shown; gives what was written, at the end."""
    monkeypatch.setattr(progress, "REFRESH", -1.0)
    monkeypatch.setattr(progress, "tqdm", Eager)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if width else 0, width, 0, 0))
    shown: list[bytes] = []
    reader = Thread(target=lambda: shown.extend(iter(lambda: read(ours), b"")))
    reader.start()
    try:
        with open(theirs, "w") as stderr, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stderr)
            yield shown
    finally:
        reader.join()
        os.close(ours)


class Eager(tqdm):
    def __init__(self, **options):
        super().__init__(**options, mininterval=0, miniters=1)


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other side is closed
        return b""


def test_bar_moves_with_the_steps(tmp_path, monkeypatch):
    with terminal(monkeypatch, width=400) as shown:
        assert kd.main([*OPTIONS, "--out", str(tmp_path)]) == 0
    text = b"".join(shown).decode()
    steps = [(float(images), loss, accuracy) for images, loss, accuracy in re.findall(BAR, text) if loss]
    assert [step for step, _, _ in steps if step > 0] == sorted(step for step, _, _ in steps)
    assert {step for step, _, _ in steps if step > 0} == {25, 50, 75, 100}
    assert steps[0][2] == "" and steps[-1][2] != ""  # the accuracy of an epoch stays while the next is trained
    assert {bool(accuracy) for step, _, accuracy in steps if step == 75} == {True}
    assert "\n" not in text.strip() and "epoch 1 of 2" not in text


def test_terminal_that_does_not_know_its_size_has_a_bar(tmp_path, monkeypatch):
    with terminal(monkeypatch, width=0) as shown:
        assert kd.main([*OPTIONS, "--out", str(tmp_path)]) == 0
    assert "100%|" in b"".join(shown).decode()


def test_a_line_before_training_and_one_per_epoch(tmp_path, capsys):
    assert kd.main([*OPTIONS, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0] == (
        f"{tmp_path}: small_convnet, 1,898 weights in training, 50 images, 2 steps per epoch, 2 epochs, on cpu"
    )
    line = r"{}: epoch {} of 2, loss [\d.]+, test_accuracy [\d.]+; [\d,]+ images/s, \d\d:\d\d left"
    lines = shown.err.splitlines()
    assert len(lines) == 2
    for number, shown in enumerate(lines, 1):
        assert re.fullmatch(line.format(re.escape(str(tmp_path)), number), shown)


def test_accumulated_steps_are_counted_once(tmp_path, monkeypatch, capsys):
    with terminal(monkeypatch, width=400) as shown:
        assert kd.main([*OPTIONS, "--grad-accum-steps", "5", "--out", str(tmp_path)]) == 0
    assert "50 images, 2 steps per epoch" in capsys.readouterr().out
    images = {float(images) for images, _, _ in re.findall(BAR, b"".join(shown).decode())}
    assert images >= set(range(5, 101, 5)) and max(images) == 100


def test_continued_bar_begins_where_the_run_stopped(tmp_path, monkeypatch):
    options = [*OPTIONS, "--out", str(tmp_path)]
    options[options.index("25")] = "10"  # five steps an epoch: the run dies before the third
    _, stderr = interrupt("kd", options, tmp_path, tmp_path / "log")
    assert epochs_written(tmp_path) == 1, stderr
    with terminal(monkeypatch, width=400) as shown:
        assert kd.main(options) == 0
    images = {float(images) for images, _, _ in re.findall(BAR, b"".join(shown).decode())}
    assert min(images) >= 50 and max(images) == 100


def test_images_of_a_loader_are_counted_in_its_own_batches(tmp_path, monkeypatch, capsys):
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(50, 1, 8, 8, generator=generator), torch.arange(50) % 10)
    loader = DataLoader(data, batch_size=25, shuffle=True)
    with terminal(monkeypatch, width=400) as shown:
        summary = kd.train(kd.Args(kl_weight=0.0, epochs=2, out=tmp_path), dataset=(loader, loader))
    assert summary["configuration"]["batch_size"] == 25
    assert "50 images, 2 steps per epoch" in capsys.readouterr().out
    images = {float(images) for images, loss, _ in re.findall(BAR, b"".join(shown).decode()) if loss}
    assert images == {25, 50, 75, 100}
