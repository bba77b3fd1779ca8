"""The benchmark runner: what it reads, what it writes, and what it survives."""

from __future__ import annotations

import asyncio
import csv
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onnxcert.bench import Instance, Options, Outcome, State, Summary, read_instances
from onnxcert.bench.instances import networks
from onnxcert.bench.journal import Journal
from onnxcert.bench.runner import run_benchmark
from onnxcert.bench.summary import results_csv
from onnxcert.bench.worker import Limits, run_limited
from onnxcert.checker import check
from onnxcert.cli.bench import progress_bar
from onnxcert.errors import InputError, UsageError
from onnxcert.frontend.vnnlib import read_query
from onnxcert.frontend.witness import parse_witness
from tests.cli import samples
from tests.cli.samples import ENVIRONMENT, command, run

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """A folder ``tiny`` with two easy instances and a hard one, and no list yet."""
    folder = tmp_path / "tiny"
    (folder / "onnx").mkdir(parents=True)
    samples.small_model(folder / "onnx" / "small.onnx")
    samples.hard_model(folder / "onnx" / "hard.onnx")
    samples.spec_1(samples.SAT, folder / "sat.vnnlib")
    samples.spec_1(samples.UNSAT, folder / "unsat.vnnlib")
    samples.hard_spec(folder / "hard.vnnlib")
    return folder


def write_list(folder: Path, *rows: str) -> Path:
    path = folder / "instances.csv"
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


EASY = ("onnx/small.onnx,sat.vnnlib,100", "onnx/small.onnx,unsat.vnnlib,100")
HEADER = "benchmark,onnx,vnnlib,timeout,expected,note"


def results(folder: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO((folder / "results.csv").read_text())))


def journal(folder: Path) -> list[dict[str, Any]]:
    """The finished instances."""
    path = folder / "journal.jsonl"
    lines = path.read_text().splitlines()[1:] if path.exists() else []
    return [json.loads(line) for line in lines]


def wait_for(condition: Callable[[], object]) -> None:
    """Until it is true; a failure after two minutes says that it never will be."""
    for _ in range(2400):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("waited in vain")


# --- the list ---------------------------------------------------------------------------------


def test_headerless_list(benchmark: Path) -> None:
    path = write_list(benchmark, *EASY, "", "onnx/hard.onnx,hard.vnnlib,1.5")
    first, _, last = read_instances(path)
    assert (first.number, first.category, first.timeout, first.expected) == (0, "tiny", 100, "")
    assert first.stem == "small_sat"
    assert (last.number, last.timeout) == (2, 1.5)
    expected = [str(benchmark / "onnx" / "small.onnx"), str(benchmark / "sat.vnnlib")]
    assert first.arguments == expected


def test_list_with_header(benchmark: Path) -> None:
    path = write_list(
        benchmark, HEADER, "b,onnx/small.onnx,sat.vnnlib,9,unsat,", *2 * ["b,o,v,1,,"]
    )
    first, second, third = read_instances(path)
    assert (first.category, first.expected, first.timeout) == ("b", "unsat", 9.0)
    assert (second.stem, third.stem, second.expected) == ("o_v_1", "o_v_2", "")


def test_a_folder_for_the_version_names_no_benchmark(benchmark: Path) -> None:
    (benchmark / "2.0").mkdir()
    (instance,) = read_instances(write_list(benchmark / "2.0", "a.onnx,b.vnnlib,1"))
    assert instance.category == "tiny"


def test_compressed_files_are_found_and_named_without_the_suffix(benchmark: Path) -> None:
    plain = benchmark / "sat.vnnlib"
    plain.with_name("sat.vnnlib.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    path = write_list(benchmark, EASY[0], "onnx/small.onnx,sat.vnnlib.gz,1")
    for instance in read_instances(path):
        assert instance.arguments[1] == f"{plain}.gz"
        assert instance.vnnlib_path == str(plain)
        assert instance.stem.startswith("small_sat_")


def test_networks_become_options(benchmark: Path) -> None:
    column = "[('f', 'onnx/small.onnx'), ('g', 'onnx/hard.onnx')]"
    (instance,) = read_instances(write_list(benchmark, f'"{column}",x.vnnlib,1'))
    f, g = benchmark / "onnx" / "small.onnx", benchmark / "onnx" / "hard.onnx"
    spec = str(benchmark / "x.vnnlib")
    assert instance.arguments == ["verify", spec, f"--network=f={f}", f"--network=g={g}"]
    assert instance.stem == "f_g_x"
    assert networks(instance.onnx_path) == [("f", str(f)), ("g", str(g))]


def test_models_in_several_folders_are_told_apart(benchmark: Path) -> None:
    rows = [
        f"onnx/{kind}/net_0.onnx,vnnlib/{kind}/p_1.vnnlib,20" for kind in ("medical", "ruarobot")
    ]
    stems = [instance.stem for instance in read_instances(write_list(benchmark, *rows))]
    assert stems == ["medical_net_0_p_1", "ruarobot_net_0_p_1"]


@pytest.mark.parametrize(
    ("rows", "place", "cause"),
    [
        ((), "", "the list has no instances"),
        ((HEADER,), "", "the list has no instances"),
        (("a,b,1", "a,b"), ":2", "the row has 2 columns instead of 3"),
        (("[('f', 'a'), ('g', 'b')],c,1",), ":1", "the row has 6 columns instead of 3"),
        (("a,b,soon",), ":1", "could not convert string to float: 'soon'"),
        (("a,b,0",), ":1", "the time limit must be a positive number of seconds"),
        (("a,b,nan",), ":1", "the time limit must be a positive number of seconds"),
        ((",b,1",), ":1", "a model and a specification are needed"),
        (("\"[('f',)]\",b,1",), ":1", "not a list of (name, path) pairs: [('f',)]"),
        ((HEADER, "../x,a,b,1,,"), ":2", "'../x' cannot name a benchmark"),
        (("a\0,b,1",), ":1", "the row has a NUL byte"),
    ],
)
def test_lists_that_make_no_sense(
    benchmark: Path, rows: tuple[str, ...], place: str, cause: str
) -> None:
    path = write_list(benchmark, *rows)
    with pytest.raises(InputError) as caught:
        read_instances(path)
    assert caught.value.cause.startswith(cause)
    assert caught.value.place == f"{path}{place}"


def test_lists_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_instances(tmp_path)
    (tmp_path / "list").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="no CSV file"):
        read_instances(tmp_path / "list")


@pytest.mark.benchmarks
def test_the_competition_list_is_read(instances: Path) -> None:
    rows = read_instances(instances)
    assert len(rows) == 182
    assert len({(row.category, row.stem) for row in rows}) == 182
    paths = [argument.rpartition("=")[2] for row in rows for argument in row.arguments]
    assert all(Path(path).is_file() for path in paths if path.startswith("/"))


# --- the journal ------------------------------------------------------------------------------


def outcome(number: int, result: str = "unsat", *, expected: str = "") -> Outcome:
    fixed = ("cat", f"stem{number}", "m.onnx", "s.vnnlib")
    certified = result == "sat"
    return Outcome(
        number, *fixed, expected, result, result, 1.5 + number, 60.0, 0, certified=certified
    )


def test_journal_returns_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first = Journal(path, {"timeout": 5}, resume=False)
    first.append(outcome(3))
    first.append(outcome(1, "error"))
    first.close()
    second = Journal(path, {"timeout": 5}, resume=True)
    assert second.outcomes == {3: outcome(3), 1: outcome(1, "error")}
    second.close()


@pytest.mark.parametrize("torn", [b'{"number": 4, "cat', b"\xff", b"{}"])
def test_a_torn_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "journal"
    first = Journal(path, {}, resume=True)
    first.append(outcome(3))
    first.close()
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    second = Journal(path, {}, resume=True)
    assert list(second.outcomes) == [3]
    second.append(outcome(4))
    second.close()
    assert path.read_bytes().startswith(whole + b'{"number": 4, ')
    third = Journal(path, {}, resume=True)
    assert list(third.outcomes) == [3, 4]
    third.close()


@pytest.mark.parametrize("line", [b"rubbish", b"[1]", b'{"number": 1}', b"\xff"])
def test_damage_elsewhere_is_reported(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "journal"
    Journal(path, {}, resume=False).close()
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(InputError, match="the journal is damaged"):
        Journal(path, {}, resume=True)


def test_journals_of_other_runs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first = Journal(path, {"timeout": 5}, resume=False)
    with pytest.raises(UsageError, match="another run is using this folder"):
        Journal(path, {"timeout": 5}, resume=True)
    first.close()
    with pytest.raises(UsageError, match="the folder holds an earlier run"):
        Journal(path, {"timeout": 5}, resume=False)
    with pytest.raises(UsageError, match="the earlier run had timeout = 5, this one has 6"):
        Journal(path, {"timeout": 6}, resume=True)


# --- what it amounts to -----------------------------------------------------------------------


def instance(number: int, category: str = "cat") -> Instance:
    return Instance(
        number, category, "m.onnx", "s.vnnlib", 60.0, "", Path("/x2026"), f"stem{number}"
    )


def test_summary_counts_and_finds_contradictions() -> None:
    outcomes = {
        0: outcome(0, "sat", expected="sat"),
        1: outcome(1, "unsat", expected="sat"),
        2: outcome(2, "timeout", expected="sat"),
    }
    summary = Summary.of([instance(n) for n in range(3)] + [instance(3, "other")], outcomes)
    counts = summary.benchmarks["cat"]
    assert (counts.instances, counts.solved, counts.certified, counts.wrong) == (3, 2, 1, 1)
    assert counts.median_seconds == 2.0
    assert counts.counts == {"sat": 1, "unsat": 1, "unknown": 0, "timeout": 1, "error": 0}
    assert summary.benchmarks["other"].median_seconds is None
    assert summary.wrong == (outcomes[1],)


def test_results_have_the_columns_of_the_competition() -> None:
    text = results_csv([instance(0), instance(1), instance(2)], {2: outcome(2), 0: outcome(0)})
    assert text == (
        "cat,/x2026/m.onnx,/x2026/s.vnnlib,0,unsat,1.5\n"
        "cat,/x2026/m.onnx,/x2026/s.vnnlib,0,unsat,3.5\n"
    )


def test_progress_bar() -> None:
    outcomes = {n: outcome(n, "sat" if n else "error") for n in range(3)}
    state = State(outcomes, 12, 30.0, 2)
    assert progress_bar(state) == "[######------------------] 3/12  error 1  sat 2  0:30, 2:15 left"


# --- runs -------------------------------------------------------------------------------------


def test_a_run_writes_everything(benchmark: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = run("bench", write_list(benchmark, *EASY), "--out", out)
    assert (ended.returncode, ended.stdout) == (0, "")
    lines = ended.stderr.splitlines()
    assert lines[0].startswith("[1/2] tiny/small_sat: sat in ")
    assert lines[1].startswith("[2/2] tiny/small_unsat: unsat in ")
    assert lines[2].split()[:2] == ["benchmark", "instances"]
    assert lines[3].split()[:7] == ["tiny", "2", "1", "1", "0", "0", "0"]
    (sat, unsat) = results(out)
    model = str(benchmark / "onnx" / "small.onnx")
    assert sat[:5] == ["tiny", model, str(benchmark / "sat.vnnlib"), "0", "sat"]
    assert unsat[4] == "unsat"
    assert 0 < float(unsat[5]) < 100
    witness = gzip.decompress((out / "tiny" / "small_sat.counterexample.gz").read_bytes()).decode()
    query = read_query(benchmark / "sat.vnnlib")
    assert witness.startswith("((X_0 ")
    assert query.holds(parse_witness(query, witness))
    assert sorted(path.name for path in (out / "tiny").iterdir()) == [
        "small_sat.counterexample.gz",
        "small_sat.json",
        "small_unsat.json",
    ]
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["total"]["solved"], summary["wrong"]) == (2, [])
    assert summary["total"]["certified"] == 1  # a witness needs no certificate but on request
    assert [entry["certified"] for entry in journal(out)] == [False, True]
    assert journal(out)[1]["proof"]["leaves"] >= 1


def test_certificates_are_kept_on_request(benchmark: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows = (*EASY, "onnx/hard.onnx,hard.vnnlib,1")
    ended = run("bench", write_list(benchmark, *rows), "--out", out, "--certificates")
    assert ended.returncode == 0
    kept = sorted((out / "tiny").glob("*.onnxcert"))
    assert [path.stem for path in kept] == ["small_sat", "small_unsat"]
    assert [entry["certified"] for entry in journal(out)] == [True, True, False]
    model = benchmark / "onnx" / "small.onnx"
    for path, word in zip(kept, ("SAT", "UNSAT"), strict=True):
        spec = benchmark / f"{word.lower()}.vnnlib"
        assert str(check(path, model, spec)).startswith(f"VERIFIED {word} (")


def test_uncertified_answers_are_counted_apart(benchmark: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    path = write_list(benchmark, EASY[1])
    ended = run("bench", path, "--out", out, "--uncertified", "--semantics=real")
    assert ended.returncode == 0
    record = json.loads((out / "tiny" / "small_unsat.json").read_text())
    assert (record["settings"]["semantics"], record["settings"]["certified"]) == ("real", False)
    total = json.loads((out / "summary.json").read_text())["total"]
    assert (total["solved"], total["certified"]) == (1, 0)


def test_limits_errors_and_several_at_a_time(benchmark: Path, tmp_path: Path) -> None:
    path = write_list(
        benchmark,
        "onnx/hard.onnx,hard.vnnlib,100",
        "onnx/missing.onnx,sat.vnnlib,100",
        "\"[('f', 'onnx/small.onnx'), ('g', 'onnx/small.onnx')]\",sat.vnnlib,100",
        EASY[1],
    )
    out = tmp_path / "out"
    ended = run("bench", path, "--out", out, "--timeout", "3", "--jobs", "2", "-q")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert [row[4] for row in results(out)] == ["timeout", "error", "error", "unsat"]
    messages = {entry["number"]: entry["message"] for entry in journal(out)}
    assert messages[0] == "the time limit was reached"
    missing = benchmark / "onnx" / "missing.onnx"
    assert messages[1].startswith("the model cannot be read: No such file or directory")
    assert str(missing) in messages[1]
    assert messages[2].startswith("the query declares no networks, but has 2 models")
    assert messages[3] == ""


def test_a_wrong_verdict_is_shouted(benchmark: Path, tmp_path: Path) -> None:
    path = write_list(
        benchmark,
        HEADER,
        "b,onnx/small.onnx,unsat.vnnlib,100,sat,",
        "b,onnx/small.onnx,sat.vnnlib,100,sat,",
    )
    out = tmp_path / "out"
    ended = run("bench", path, "--out", out, "-q")
    assert ended.returncode == 1
    assert ended.stderr.startswith("warning: WRONG VERDICT: b/small_unsat: unsat in ")
    assert ended.stderr.endswith(" s, but the list says sat\n")
    summary = json.loads((out / "summary.json").read_text())
    assert [entry["number"] for entry in summary["wrong"]] == [0]


def test_options_reach_the_processes(benchmark: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    path = write_list(benchmark, EASY[1])
    ended = run("bench", path, "--out", out, "--seed=3", "--set=splitting=neuron", "--device=cpu")
    assert ended.returncode == 0
    record = json.loads((out / "tiny" / "small_unsat.json").read_text())
    assert (record["settings"]["seed"], record["settings"]["splitting"]) == (3, "neuron")
    assert record["settings"]["timeout"] == 100.0


def test_wrong_settings_are_found_before_the_run(benchmark: Path, tmp_path: Path) -> None:
    ended = run("bench", write_list(benchmark, *EASY), "--out", tmp_path / "out", "--set=magic=1")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: there is no option 'magic'\n")
    assert not (tmp_path / "out").exists()


def test_an_earlier_run_is_not_overwritten(benchmark: Path, tmp_path: Path) -> None:
    path, out = write_list(benchmark, EASY[1]), tmp_path / "out"
    assert run("bench", path, "--out", out).returncode == 0
    before = results(out)
    ended = run("bench", path, "--out", out)
    assert ended.returncode == 2
    assert ended.stderr == (
        f"error: the folder holds an earlier run\n  --> {out}/journal.jsonl\n"
        "  help: continue it with --resume, or choose another folder\n"
    )
    assert run("bench", path, "--out", out, "--resume").returncode == 0
    assert results(out) == before


def test_an_output_that_is_a_file(benchmark: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    ended = run("bench", write_list(benchmark, *EASY), "--out", file)
    assert ended.returncode == 2
    assert ended.stderr == f"error: the folder cannot be made: File exists\n  --> {file}\n"


def test_a_process_that_does_not_end_is_killed() -> None:
    code = "import time; print('unsat', flush=True); time.sleep(1000)"
    ended = asyncio.run(run_limited(["-c", code], Limits(0.3, 0.2, 0)))
    assert ended.was_killed
    assert ended.exit_code == -signal.SIGKILL


@linux_only
def test_memory_is_limited() -> None:
    code = "bytearray(500_000_000); print('enough')"
    for limit, output in ((0, "enough\n"), (200_000_000, ""), (2_000_000_000, "enough\n")):
        ended = asyncio.run(run_limited(["-c", code], Limits(60, 1, limit)))
        assert ended.stdout == output
        assert ("MemoryError" in ended.stderr) == (output == "")


def children(pid: int) -> list[int]:
    """Process numbers of the direct children."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(word) for word in text.split()]


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def start(path: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    arguments = command("bench", path, "--out", out, *options)
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


@linux_only
def test_a_killed_worker_is_an_error_and_the_run_goes_on(benchmark: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(write_list(benchmark, "onnx/hard.onnx,hard.vnnlib,1000", EASY[1]), out)
    wait_for(lambda: children(process.pid))
    (worker,) = children(process.pid)
    os.kill(worker, signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert [row[4] for row in results(out)] == ["error", "unsat"]
    assert "tiny/hard_hard: error in " in err
    assert "(ended by signal 9 (Killed))" in err


@linux_only
def test_a_killed_run_leaves_no_orphans_and_is_continued(benchmark: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    path = write_list(benchmark, EASY[0], "onnx/hard.onnx,hard.vnnlib,6", EASY[1])
    process = start(path, out)
    wait_for(lambda: len(journal(out)) == 1 and children(process.pid))
    (worker,) = children(process.pid)
    process.kill()
    process.communicate()
    wait_for(lambda: not is_running(worker))
    with (out / "journal.jsonl").open("a") as stream:
        stream.write('{"number": 1, "torn')
    ended = run("bench", path, "--out", out, "--resume")
    assert ended.returncode == 0
    assert ended.stderr.startswith("[2/3] tiny/hard_hard: timeout in ")
    assert [row[4] for row in results(out)] == ["sat", "timeout", "unsat"]
    assert [entry["number"] for entry in journal(out)] == [0, 1, 2]


@linux_only
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_valid(
    benchmark: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    path = write_list(benchmark, EASY[0], "onnx/hard.onnx,hard.vnnlib,1000")
    process = start(path, out)
    wait_for(lambda: len(journal(out)) == 1 and children(process.pid))
    (worker,) = children(process.pid)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.endswith("warning: interrupted\n")
    assert not is_running(worker)
    assert [row[4] for row in results(out)] == ["sat"]
    assert json.loads((out / "summary.json").read_text())["total"]["instances"] == 2


def test_from_python(benchmark: Path, tmp_path: Path) -> None:
    seen: list[State] = []
    path = write_list(benchmark, *EASY)
    summary = run_benchmark(path, tmp_path / "out", Options(jobs=2), report=seen.append)
    assert summary.total.solved == 2
    news = [state.latest.number for state in seen if state.latest is not None]
    assert sorted(news) == [0, 1]
