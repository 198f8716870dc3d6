"""`make gpu-check` on a machine without a GPU: its stages at toy sizes, its clock, its table and what it
packs.

`make gpu-check-dry` also runs what takes too long here: the stages marked_tests and commands.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
HERE = ROOT / "benchmarks" / "gpu"
MODULES = {path.stem for path in HERE.glob("*.py")}


@pytest.fixture
def load(monkeypatch):
    """load("scan") imports a file of benchmarks/gpu as it imports the others there: by its bare name."""
    monkeypatch.syspath_prepend(str(HERE))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield load
    for name in MODULES:
        sys.modules.pop(name, None)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("stage", "cases"),
    [
        ("machine", {"copy", "product"}),
        ("ssd", {"N=4 cpu", "N=4 reference", "N=4 mamba_ssm", "selective scan"}),
        (
            "gradients",
            {
                "selective_scan cpu float32",
                "ssd cpu bfloat16",
                "residual_norm reference bfloat16",
                "a model in fp32",
            },
        ),
        ("scan", {"B=2 L=64 cpu", "B=1 L=32 reference", "B=2 L=64 mamba_ssm, its layout"}),
        (
            "elementwise",
            {"causal_conv1d cpu", "causal_conv1d peer", "residual_norm cpu", "residual_norm peer"},
        ),
        ("step", {"ours micro-batch 4", "peer micro-batch 8", "losses"}),
        ("generation", {"toy ours", "toy peer"}),
    ],
)
def test_a_stage_runs_dry(load, monkeypatch, tmp_path, stage, cases):
    monkeypatch.setattr(sys, "argv", [stage, "--dry", "--folder", str(tmp_path)])
    load("stage").main(stage, load(stage).run)
    found = rows(tmp_path)
    assert cases <= {row["case"] for row in found if "metric" in row}
    assert not [row for row in found if "failed" in row.get("note", "")]
    for row in found:
        if row.get("metric") == "error":
            # fp32: roundings of 6e-8; bf16: of outputs to 8 bits, and of whole layers
            assert row["value"] < (1e-5 if row["case"].endswith(("float32", "fp32")) else 5e-2), row
        if row["case"] == "losses":
            assert row["value"] < 1e-6


@pytest.fixture
def check(load, monkeypatch, tmp_path):
    """check("one,two", "--seconds", "9"): a run of stages that the test writes to tmp_path/stages."""
    module = load("check")
    stages = tmp_path / "stages"
    stages.mkdir()
    monkeypatch.setattr(module, "HERE", stages)
    monkeypatch.setattr(module, "STAGES", {name: module.Share(1, False) for name in ("one", "two", "three")})
    monkeypatch.setattr(module, "LAST", 0.0)
    monkeypatch.setattr(module, "LEAST", 0.5)
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["check", "--dry", "--folder", str(tmp_path / "out"), *arguments])
        return module.main()

    return run


STAGE = "import sys; print('NAME: said', *sys.argv[1:], flush=True)\n"


def test_a_stage_that_fails_or_hangs_does_not_stop_the_next(check, tmp_path, capfd):
    stages = tmp_path / "stages"
    (stages / "one.py").write_text(STAGE.replace("NAME", "one") + "print('not shown'); raise SystemExit(3)\n")
    # with a child, which must not outlive it
    (stages / "two.py").write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid)); time.sleep(60)\n"
    )
    (stages / "three.py").write_text(STAGE.replace("NAME", "three"))
    assert check("--seconds", "6") == 1
    notes = {row["case"]: row["note"] for row in rows(tmp_path / "out")}
    assert "exit code 3" in notes["one"]
    assert "its time was over" in notes["two"]
    assert notes["three"].startswith("took")
    said = capfd.readouterr().out
    assert "one: said --folder" in said and "three: said" in said and "not shown" not in said
    assert "not shown" in (tmp_path / "out" / "log.txt").read_text()
    assert said.index("three: said") < said.index("| figure | predicted |")
    assert not Path(f"/proc/{(tmp_path / 'child').read_text()}/cwd").exists()


def test_what_a_stage_leaves_behind_is_ended_too(check, tmp_path):
    left = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    (tmp_path / "stages" / "one.py").write_text(left)
    assert check("--seconds", "2", "--only", "one") == 0
    assert rows(tmp_path / "out")[0]["note"].startswith("took")


def test_an_interruption_ends_what_runs(check, load, monkeypatch):
    started = []

    def interrupted(self, stage, share):
        started.append(self._start([sys.executable, "-c", "import time; time.sleep(60)"]))
        raise KeyboardInterrupt

    monkeypatch.setattr(load("check").Check, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check()
    assert started[0].wait(timeout=10) == -signal.SIGKILL


def test_no_time_is_a_skipped_stage_and_an_unknown_one_is_refused(check, tmp_path, capfd):
    (tmp_path / "stages" / "one.py").write_text(STAGE)
    assert check("--seconds", "0.1", "--only", "one") == 1
    assert [row["note"] for row in rows(tmp_path / "out")] == ["skipped: no time left"]
    with pytest.raises(SystemExit):
        check("--only", "four")
    assert "there is no stage four; there are one, two, three" in capfd.readouterr().err


def test_a_machine_without_a_gpu_is_told_so(load, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["check"])
    with pytest.raises(SystemExit, match="2"):
        load("check").main()
    assert (
        "torch sees no CUDA device here (see mambabyte doctor); --dry needs none" in capsys.readouterr().err
    )


def test_tests_are_counted_although_time_runs_out(load, monkeypatch, tmp_path, capsys):
    marked, module = load("marked_tests"), load("stage")
    said = (
        "[gw3] [  5%] PASSED tests/a.py::test_b[c d]\n[gw0] [ 10%] FAILED tests/a.py::test_e\n"
        "tests/a.py::test_f[1] SKIPPED (no FAILED device)  [ 15%]\nFAILED tests/a.py::test_e - why\n"
        "ERROR tests/g.py\n"
    )
    monkeypatch.setattr(marked, "output", lambda *_: (_ for _ in ()).throw(marked.OutOfTime(9, said)))
    monkeypatch.setattr(sys, "argv", ["marked_tests", "--dry", "--folder", str(tmp_path)])
    stage = module.Stage("marked_tests")
    with stage.case("tests marked gpu"):
        marked.run_tests(stage)
    found = rows(tmp_path)
    assert {row["metric"]: row["value"] for row in found if "metric" in row} == {
        "passed": 1, "failed": 1, "skipped": 1, "error": 1,
    }  # fmt: skip
    notes = [row["note"] for row in found if "note" in row]
    assert "tests/a.py::test_e" in notes[0] and "tests/g.py" in notes[1] and "not done after 9 s" in notes[2]


def test_the_table_says_not_run_until_there_is_a_figure(load, tmp_path):
    table = load("table")
    empty = table.table({})
    assert empty.count("| not run |") == len(table.ROWS)
    figures = {
        ("scan", table.THEIRS, "both"): 9.0,
        ("scan", f"{table.SIZE} cuda", "both"): 4.5,
        ("scan", f"{table.SIZE} triton", "both"): 8.0,
        ("gradients", "selective_scan triton float32", "error"): 3e-6,
        ("gradients", "selective_scan triton float32", "same_bits"): 0.0,
        ("gradients", "selective_scan reference float32", "error"): 1.0,
        ("marked_tests", "tests marked gpu", "passed"): 12,
        ("marked_tests", "tests marked gpu", "failed"): 1,
    }
    lines = [f"| {row.what} | {row.predicted} | {row.reach} | " for row in table.ROWS]
    measured = {
        row.what: line.removeprefix(start).removesuffix(" |")
        for row, start, line in zip(table.ROWS, lines, table.table(figures).splitlines()[2:], strict=True)
    }
    assert measured["scan, both: mamba_ssm in its layout / ours"] == "2.00x"
    assert measured["scan, triton, both"] == "8.00 ms"
    assert measured["error against float64, fp32"] == "3.0e-06 (selective_scan triton float32)"
    assert measured["the same bits twice"] == "not selective_scan triton float32"
    assert measured["tests marked gpu"] == "12 passed, 1 failed"
    assert measured["353M step, ours"] == "not run"


def test_the_page_has_every_row_of_the_table(load):
    page = (ROOT / "docs" / "benchmarks" / "gpu.md").read_text()
    found = [line.split(" | ")[:-1] for line in page.splitlines() if line.startswith("| ")]
    wanted = [f"| {row.what} | {row.predicted} | {row.reach}".split(" | ") for row in load("table").ROWS]
    assert found[1 : len(wanted) + 1] == wanted
    names = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    assert names == set(load("check").STAGES)
    assert names | {"check", "stage", "table", "peers", "build_peers", "smallest_scan"} == MODULES


def test_every_stage_gets_a_share_of_nine_minutes(load):
    check = load("check")
    assert sum(share.seconds for share in check.STAGES.values()) == check.SECONDS <= 540 - check.LAST


SOURCE = r"""
#define DISPATCH(ITYPE, NAME, ...)                \
    if (ITYPE == at::ScalarType::Half) {          \
        using input_t = at::Half;                 \
        __VA_ARGS__();                            \
    } else if (ITYPE == at::ScalarType::Float) {  \
        using input_t = float;                    \
        __VA_ARGS__();                            \
    } else if (ITYPE == at::ScalarType::ComplexFloat) {  \
        using input_t = c10::complex<float>;      \
        __VA_ARGS__();                            \
    } else { AT_ERROR(#NAME); }
BOOL_SWITCH(params.is_variable_B, kIsVariableB, [&] {
BOOL_SWITCH(params.z_ptr != nullptr , kHasZ, [&] {
    kernel_fwd_launch<128, 3, input_t, weight_t>(params, stream);
    kernel_fwd_launch<128, 4, input_t, weight_t>(params, stream);
template void kernel_fwd<at::Half, float>(Params &params, cudaStream_t stream);
template void kernel_fwd<at::BFloat16, float>(Params &params, cudaStream_t stream);
template void kernel_fwd<float, complex_t>(Params &params, cudaStream_t stream);
"""


def test_peers_keep_only_what_is_measured(load, tmp_path):
    (tmp_path / "kernel.cu").write_text(SOURCE)
    (tmp_path / "kernel_fp16.cu").write_text(SOURCE)
    with pytest.raises(SystemExit, match="too new for this script"):
        load("build_peers").trim(tmp_path)
    (tmp_path / "kernel.cu").write_text(SOURCE)
    (tmp_path / "static_switch.h").write_text("#define BOOL_SWITCH\n")
    assert load("build_peers").trim(tmp_path) == [tmp_path / "kernel.cu"]
    text = (tmp_path / "kernel.cu").read_text()
    assert "Half" not in text and "omplex" not in text
    assert text.count("__VA_ARGS__") == 1 and "if (ITYPE == at::ScalarType::Float)" in text
    assert "ALWAYS(params.is_variable_B," in text and "BOOL_SWITCH(params.z_ptr" in text
    assert "launch<128, 4," in text and "launch<128, 3," not in text
    assert text.count("template void") == 1
    assert "#define ALWAYS" in (tmp_path / "static_switch.h").read_text()


def test_a_missing_archive_names_the_script_that_packs_it(load, tmp_path):
    with pytest.raises(SystemExit, match=r"run scripts/pack_gpu_check\.sh"):
        load("build_peers").main(tmp_path, tmp_path / "built", "mamba_ssm")


def test_the_script_that_packs_parses_and_its_folder_is_ignored():
    script = ROOT / "scripts" / "pack_gpu_check.sh"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    assert {"/gpu-check-packed/", "/gpu-check-results/"} <= set((ROOT / ".gitignore").read_text().split())
