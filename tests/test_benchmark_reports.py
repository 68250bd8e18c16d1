"""What is said of the numbers that benchmarks measure: tables, targets, pages; and the commands."""

import json
import sys

import pytest
import torch
from benchmark_runs import LOSSES, document, made_up_packages, uncompiled  # noqa: F401

import kdkernels as kd
from benchmarks import __main__ as benchmarks
from benchmarks import gpu_check, harness, headline, machine, overhead, report, row_losses, tables, targets
from benchmarks.families import losses
from benchmarks.harness import Effort

RESULT = {
    "loss": "a",
    "axes": "rows x width, entries",
    "shape": [2, 3, 40],
    "dtype": "float32",
    "contenders": {
        "kdkernels": {"microseconds": 5.0, "spread": 0.1, "over": 1.0, "peak_bytes": 1e6, "gradient_error": 1e-7},
        "eager": {
            "microseconds": 10.0,
            "spread": 0.1,
            "over": 2.0,
            "over_spread": 0.3,
            "peak_bytes": 3e6,
            "gradient_error": 2e-7,
        },
        "compile": {"microseconds": 7.5, "spread": 0.1, "over": 1.5},
    },
    "floor": "product",
    "share_of_floor": {"copy": 0.1, "product": 0.5},
}


def test_a_row_of_a_table():
    memory = {"kdkernels": {"resident_bytes": 1e6}, "eager": {"resident_bytes": 3e6}}
    other = RESULT | {"contenders": RESULT["contenders"] | {"copy": {"over": 0.1}}, "floor": "copy"}
    remembered = {name: value for name, value in RESULT.items() if "floor" not in name} | {"contenders": memory}
    header, _, *rows = tables.table([RESULT, other, remembered]).splitlines()
    assert "package" not in header and "under torch.compile" not in header and "rows x width, entries" in header
    timed = "5 ± 10 % | 2.0x ± 30 % ? | 1.5x | {} | 1 (3) | 1.0e-07 (2.0e-07)"
    assert rows[0] == f"| `a` | 2 x 3, 40 | float32 | {timed.format('50 % of torch.mm')} |"
    assert rows[1] == f"| `a` | 2 x 3, 40 | float32 | {timed.format('10 % of a copy')} |"
    assert len({row.count("|") for row in (header, *rows)}) == 1 and "| 1 (3) |" in rows[2]


def test_the_fastest_package_and_fresh_memory_have_columns_where_there_are_any():
    rivals = {"slow": {"over": 4.0}, "fast": {"over": 3.0, "over_spread": 0.01, "gradient_error": 2e-7}}
    floors = {"copy": {"over": 0.1}, "copy, fresh": {"over": 0.2, "over_spread": 0.5}}
    result = RESULT | {"contenders": RESULT["contenders"] | rivals | floors, "packages": ["slow", "fast"], "floor": "copy"}
    header, _, row = tables.table([result]).splitlines()
    cells = dict(zip(header.split(" | "), row.split(" | ")))
    assert cells["over the fastest package"] == "3.0x ± 1 % (fast, error 2.0e-07)"
    assert cells["of a copy into fresh memory"] == "20 % ?"


def run_of(contenders, threads=1, dtype="float32", **facts):
    result = RESULT | {"loss": "softened_kl", "axes": "rows x classes", "shape": [1024, 1000], "dtype": dtype}
    results = [result | {"contenders": contenders}]
    return {"machine": {"threads": threads, **facts}, "rates": {dtype: {}}, "results": results}


def test_targets_beside_what_was_reached():
    ours = {"over": 1.0}
    one = run_of({"kdkernels": ours, "eager": {"over": 9.9, "over_spread": 0.02}, "copy": {"over": 0.4}})
    two = run_of({"kdkernels": ours, "eager": {"over": 10.0}, "copy": {"over": 0.39}}, threads=2, memory_kept=True)
    half = run_of({"kdkernels": ours, "kdkernels, float32": {"over": 1.1, "over_spread": 0.3}}, dtype="bfloat16")
    text = targets.table([one, two, half])
    assert "| loss | shape | target | 1 thread, float32 | 2 threads, float32, memory kept | 1 thread, bfloat16 |" in text
    why = targets.ARITHMETIC
    assert f"| at least 10x over eager | **9.90x ± 2 %** | 10.00x |  | {why} |" in text
    assert f"| at most 2.5x a copy | 2.50x | **2.56x** |  | {why} |" in text
    assert "| no slower than float32 |  |  | 1.10x ± 30 % ? |  |" in text
    assert "Reached: 3 of 5;" in text and "`?`: a spread above 25 %." in text
    assert "torch.compile" not in text  # was not measured
    both = targets.table([one, run_of(one["results"][0]["contenders"], kind="cuda", device="H")])
    assert both.startswith(targets.table([one])) and both.endswith("No target is at these shapes.")


def test_targets_of_a_gpu():
    steps = [{"loss": "softened_kl", "shape": [1024, 1000], "forward": 2, "backward": 1}]
    graphs = {"kdkernels": {"over": 1.0}, "kdkernels, graph": {"over": 0.5}, "launches, graph": {"over": 0.4}}
    found = run_of(graphs | {"liger": {"over": 3.0}, "other": {"over": 5.0}}, kind="cuda", device="H")
    (result,) = gpu_check.with_kernels(found, steps)["results"]
    result |= {"share_of_floor": {"copy": 0.8}, "packages": ["liger", "other"]}
    result["contenders"]["copy"] = {"over": 0.8}
    measures = targets.KERNELS, targets.LAUNCHES, targets.OF_COPY, targets.PACKAGE
    values = [measure.of(result)[0] for measure in measures]
    assert values == [3, pytest.approx(1.25), pytest.approx(80), 3.0]
    cells = [targets.cell(targets.Target((), (), *case), result) for case in zip(measures, (3, 1.2, 80, 4))]
    assert cells == ["3", "**1.25x**", "80 %", "**3.00x**"]


def test_targets_are_of_shapes_that_are_measured():
    for kind, found in targets.TARGETS.items():
        for target in found:
            assert all(target.shape in LOSSES[loss].shapes[kind] for loss in target.losses), target


def run_of_headline(**spreads):
    """A run of every row; a spread of 5 % wherever no other is given as CONTENDER=SPREAD."""
    spread = {"kdkernels": 0.05, "eager": 0.05, "compile": 0.05} | spreads
    contenders = {
        "kdkernels": {"microseconds": 5.0, "spread": spread["kdkernels"], "over": 1.0, "peak_bytes": 1e6},
        "eager": {"over": 2.0, "over_spread": spread["eager"], "peak_bytes": 3e6},
        "compile": {"over": 1.5, "over_spread": spread["compile"]},
    }
    found = [
        {"loss": loss, "axes": LOSSES[loss].axes, "shape": list(shape), "dtype": "float32", "contenders": contenders}
        for loss, shape in headline.ROWS.items()
    ]
    facts = {"device": "A CPU", "threads": 2, "instruction_set": "avx2", "versions": {"torch": "2.15.0"}}
    return {"machine": facts, "results": found}


def test_the_table_of_the_readme():
    text = headline.table([run_of_headline()])
    facts, _, header, _, *rows = text.splitlines()
    assert facts == "A CPU, CPU threads: 2, avx2; float32, torch 2.15.0."
    assert header == "| loss | shape | kdkernels, us | over eager | over torch.compile | peak memory, MB (eager) |"
    assert rows[0] == "| `softened_kl` | 256 x 1000 | 5 ± 5 % | 2.0x ± 5 % | 1.5x ± 5 % | 1 (3) |" and len(rows) == 8
    assert all(shape in LOSSES[loss].shapes["cpu"] for loss, shape in headline.ROWS.items())


@pytest.mark.parametrize("contender", ["kdkernels", "eager", "compile"])
def test_the_readme_shows_no_noisy_row(contender):
    headline.table([run_of_headline(**{contender: 0.15})])
    with pytest.raises(ValueError, match=r"softened_kl \(256, 1000\) has a spread of 16 %, at most 15 % is shown"):
        headline.table([run_of_headline(**{contender: 0.16})])


def test_the_readme_asks_for_a_row_that_was_not_measured():
    document = run_of_headline()
    del document["results"][1]
    with pytest.raises(ValueError, match=r"kd_loss \(256, 1000\) was not measured; run python -m benchmarks --headline"):
        headline.table([document])


def test_a_report_has_everything(document):
    text = tables.summary(document) + tables.details(document)
    shapes = "16 x 10", "12 x 12 x 6", "16384 x 16384 x 256"
    assert all(expected in text for expected in (*shapes, "`softened_kl`", "kdkernels, compile", "within the cache"))
    assert "- hypothesis, `softened_kl`: needs a GPU" in text and "10.0 GB/s" in text


def test_plots_are_drawn(document, tmp_path):
    plots = pytest.importorskip("benchmarks.plots", exc_type=ImportError)
    for draw_plot in (plots.roofline, plots.scaling):
        draw_plot(document, tmp_path / "plot.png")
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_roofline_has_one_colour_per_family_and_no_toy_shape(monkeypatch, tmp_path):
    plots = pytest.importorskip("benchmarks.plots", exc_type=ImportError)
    figures = []
    monkeypatch.setattr(plots.plt, "close", figures.append)
    sides = {name: {"microseconds": 5.0} for name in plots.STYLES}

    def result(loss, family, moved):
        work = {"operations": {"a": 10.0 * moved}, "bytes": {"b": moved}}
        return {"loss": loss, "family": family, "dtype": "float32", "work": work, "contenders": sides}

    plots.roofline(
        {
            "machine": {"device": "A CPU", "threads": 2},
            "rates": {"float32": {"bytes_per_second": 1e10, "operations_per_second": 1e12}},
            "results": [result("a", "f", 2e4), result("b", "f", 3e4), result("c", "g", 4e4), result("toy", "toys", 224)],
        },
        tmp_path / "plot.png",
    )
    axes = figures[0].axes[0]
    colours = [line.get_color() for line in axes.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert colours == ["C0"] * 4 + ["C1"] * 2  # two sides of each loss
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["f", "g", "copy speed, matrix rate", "eager PyTorch (hollow)"]


def test_a_page_has_its_sections_made_anew(document, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    for name in ("run.json", "other.json"):
        (tmp_path / name).write_text(json.dumps(document))
    sections = ("speed", "run.json"), ("targets", "other.json run.json"), ("speed", "other.json")
    old = [f"{report.MARK.format(*found, 'page.md')}\nold\n<!-- end of {found[0]} -->" for found in sections]
    new = [report.section(*found, "page.md") for found in sections]
    page = "before\n{}\nbetween\n{}\nbetween\n{}\nafter\n"
    assert report.rewritten(page.format(*old), {"run.json"}) == page.format(*new[:2], old[2])
    assert tables.summary(document) in new[0] and targets.table([document] * 2) in new[1]


@pytest.mark.parametrize("page", ["README.md", "docs/benchmarks.md"])
def test_pages_are_what_the_numbers_give(page):
    if not (report.ROOT / page).exists():
        pytest.skip(f"{page} is not beside the tests")
    sections = list(report.SECTION.finditer((report.ROOT / page).read_text()))
    assert sections
    for mark in sections:
        assert mark["page"] == page and mark[0] == report.section(mark["kind"], mark["results"], page)


# The commands


def test_the_commands(uncompiled, tmp_path, monkeypatch, capsys):
    pytest.importorskip("benchmarks.plots", exc_type=ImportError)
    for loss in losses("softened_kl").values():
        monkeypatch.setitem(loss.shapes, "quick", {(16, 10): "tiny"})
    monkeypatch.setattr(Effort, "of", lambda device, quick: Effort(0.01, 0.01))
    monkeypatch.setattr(machine, "rates", lambda *_: {"bytes_per_second": 1e10, "operations_per_second": 1e12})
    path = tmp_path / "made" / "run.json"
    monkeypatch.setattr(sys, "argv", ["benchmarks", "softened_kl", "--quick", "--json", str(path)])
    benchmarks.main()
    printed = capsys.readouterr().out
    assert printed.count("| `softened_kl` | 16 x 10 |") == printed.count("| `kd_loss` | 16 x 10 |") == 1

    page = tmp_path / "page.md"
    mark = report.MARK.format("speed", path, page)
    page.write_text(f"{mark}\n\n<!-- end of speed -->\n")
    monkeypatch.setattr(sys, "argv", ["report", str(path), "--plots", str(tmp_path), "--page", str(page)])
    report.main()
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")
    assert page.read_text() == f"{mark}\n{printed.strip()}\n<!-- end of speed -->\n"
    page.write_text("no section\n")
    with pytest.raises(SystemExit):
        report.main()


def test_the_headline_measures_its_rows_alone(monkeypatch, capsys):
    seen = []

    def attempt(loss, shape, dtype, device, effort):
        seen.append((loss.name, shape, dtype))
        return {**harness.heading(loss, shape, dtype), "contenders": {}}

    monkeypatch.setattr(harness, "attempt", attempt)
    monkeypatch.setattr(machine, "rates", lambda *_: {"bytes_per_second": 1e10, "operations_per_second": 1e12})
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--headline"])
    benchmarks.main()
    expected = [(loss, shape, torch.float32) for loss, shape in headline.ROWS.items()]
    assert sorted(seen, key=str) == sorted(expected, key=str)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--headline", "--quick"])
    with pytest.raises(SystemExit):
        benchmarks.main()
    assert "--headline takes no family" in capsys.readouterr().err


def test_numbers_are_written_after_each_family(uncompiled, tmp_path, monkeypatch):
    def measured(family, *_):
        if family == "b":
            raise KeyboardInterrupt
        return [{"loss": family}]

    monkeypatch.setattr(benchmarks, "measure", measured)
    monkeypatch.setattr(machine, "rates", lambda *_: {})
    with pytest.raises(KeyboardInterrupt):
        benchmarks.run({torch.float32: "ab"}, "cpu", quick=True, path=tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text())["results"] == [{"loss": "a"}]


def test_a_gpu_compiles_the_smallest_and_the_largest_shape_alone(monkeypatch):
    seen = []
    monkeypatch.setattr(harness, "attempt", lambda *given: seen.append(given) or {"contenders": {}})
    for device, compiled in (("cpu", [True] * 4), ("cuda", [True, False, False, False, False, True])):
        seen.clear()
        benchmarks.measure("softened_kl", device, torch.float32, False, Effort(0.01, 0.01))
        assert [effort.compiled for loss, *_, effort in seen if loss is LOSSES["softened_kl"]] == compiled


def test_stages_of_a_call(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    stages = overhead.stages()
    generator = torch.Generator().manual_seed(0)
    student, teacher, target = row_losses.draw(overhead.ROWS, overhead.CLASSES, torch.float32, "cpu", generator)
    loss = kd.softened_kl(student.requires_grad_(), teacher, temperature=overhead.T)
    (gradient,) = torch.autograd.grad(loss, student)
    both = kd.kd_loss(student, teacher, target, temperature=overhead.T)
    expected = {
        **dict.fromkeys(("op", "forward, no gradient", "forward"), loss),
        **dict.fromkeys(("forward + backward", "forward + backward, compiled"), gradient),
        "kd_loss, forward + backward": torch.autograd.grad(both, student)[0],
        "nothing, forward + backward": torch.zeros_like(gradient),
        **dict.fromkeys(("sum, forward + backward", "sum, forward + backward, compiled"), torch.ones_like(gradient)),
    }
    assert stages.keys() == expected.keys()
    for name, stage in stages.items():
        assert torch.equal(stage()[0], expected[name]), name


def test_a_step_of_the_gpu_check_ends_in_time(capsys):
    found = gpu_check.step("sleep", [sys.executable, "-c", "import time; time.sleep(60)"], seconds=0.2)
    assert not found["passed"] and found["summary"] == "stopped after 0 s"
    found = gpu_check.step("print", [sys.executable, "-c", "print('a\\nb')"], seconds=60)
    assert found["passed"] and found["summary"] == "b"


def test_a_gpu_check_keeps_its_numbers_and_says_what_failed(document, tmp_path, monkeypatch, capsys):
    few = {"passed": True, "summary": "", "found": [{"loss": "softened_kl", "shape": [16, 10], "forward": 1, "backward": 1}]}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU (80 GB)")
    monkeypatch.setattr(kd, "build_info", lambda: {"why_not": {}})
    monkeypatch.setattr(gpu_check, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu_check, "launches", lambda: few)
    monkeypatch.setattr(gpu_check, "step", lambda name, *_: {"passed": name != "memcheck", "summary": ""})
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: name)
    monkeypatch.setattr(benchmarks, "run", lambda *_, **__: document)
    assert gpu_check.main() == 1
    found = json.loads((tmp_path / "a-gpu-80-gb.json").read_text())
    assert found["results"][0]["kernels"] == 2 and found["steps"].keys() == {"tests", "launches", "memcheck", "racecheck"}
    printed = capsys.readouterr().out
    assert tables.summary(document) in printed and targets.table([document]) in printed
    monkeypatch.setattr(gpu_check, "step", lambda name, *_: {"passed": True, "summary": ""})
    assert gpu_check.main() == 0
    document["results"][0]["absent"]["kdkernels"] = "out of memory"
    assert gpu_check.main() == 1
