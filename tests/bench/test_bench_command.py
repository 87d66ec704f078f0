"""`gradkern bench`: what it times, prints and writes, and its messages for wrong arguments."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

import gradkern
from gradkern.bench.clip import GradientCopies, Times, interleaved, norm_errors, time_clipping
from gradkern.cli.main import main

LAYOUT = [((7, 5), torch.float32), ((33,), torch.bfloat16), ((), torch.float64)]


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def models(tmp_path, monkeypatch):
    (tmp_path / "bench_models.py").write_text(
        "import torch\n"
        "def build():\n"
        "    with torch.device('meta'):\n"
        "        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4).bfloat16())\n"
        "    model[0].bias.requires_grad_(False)\n"
        "    return model\n"
        "def frozen():\n"
        "    return build().requires_grad_(False)\n"
        "def lazy():\n"
        "    return torch.nn.LazyLinear(3)\n"
        "def float8():\n"
        "    return torch.nn.Linear(2, 2).to(torch.float8_e4m3fn)\n"
        "def sized(width):\n"
        "    return build()\n"
        "def number():\n"
        "    return 3\n"
        "constant = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("bench_models", None)


@pytest.mark.parametrize("clipping", [False, True])
def test_copies_clip_always_or_never_and_keep_their_size(clipping):
    copies = GradientCopies(LAYOUT, clipping)
    assert copies.bytes == 35 * 4 + 33 * 2 + 8 and copies.count == 16
    assert [g.dtype for g in copies.grads(3)] == [dtype for _, dtype in LAYOUT]
    before = [g.clone() for g in copies.grads(0)]
    for call in copies.contenders().values():
        call(0)
    changed = [not torch.equal(a, b) for a, b in zip(before, copies.grads(0))]
    assert changed == [clipping] * 3
    for a, b in zip(before, copies.grads(0)):
        assert 0.25 < float(b.norm() / a.norm()) < 0.75 if clipping else torch.equal(a, b)
    largest = float(gradkern.get_total_norm(copies.grads(0)))
    assert (largest > next(copies.limits)) is clipping  # the next call finds something to clip


def test_every_contender_runs_once_a_round_on_turning_copies():
    calls = []
    times = interleaved({n: (lambda i, n=n: calls.append((n, i))) for n in "abc"}, copies=4, seconds=1e-9)
    assert {name: len(t.seconds) for name, t in times.items()} == {"a": 5, "b": 5, "c": 5}
    names = [name for name, _ in calls]
    assert names[:3] == ["a", "b", "c"]  # unmeasured
    assert [names[i : i + 3] for i in range(3, 12, 3)] == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]
    assert [i for _, i in calls] == [k % 4 for k in range(18)]


def test_median_and_quartiles():
    times = Times((5.0, 1.0, 2.0, 4.0, 3.0))
    assert times.median == 3.0 and times.quartiles == [1.5, 3.0, 4.5]


def test_a_result_has_the_contenders_of_its_caller():
    seen = []
    result = time_clipping(
        "x", LAYOUT, True, seconds=1e-9, more=lambda c: {"mine": lambda i: seen.append((c.count, i))}
    )
    record = result.as_dict()
    assert set(record["seconds"]) == {"gradkern", "measure", "torch", "torch_single", "mine"}
    assert record["rounds"] == 5 and len(seen) == 6 and record["clipping"] is True


def test_errors_are_those_of_the_norm():
    ones = [torch.ones(5_000_000, dtype=torch.bfloat16)]
    errors = norm_errors(ones)
    assert errors["gradkern"] < 2**-24
    torch_norm = float(torch.nn.utils.get_total_norm(ones))
    assert errors["torch"] == abs(torch_norm - math.sqrt(5e6)) / math.sqrt(5e6)
    assert norm_errors([torch.zeros(3)]) == {"gradkern": 0.0, "torch": 0.0}


def test_a_model_of_the_users(models, capsys):
    arguments = ["--model", "bench_models:build", "--device", "cpu", "--seconds", "1e-6", "--threads", "1"]
    assert main(["bench", *arguments, "--json", "out.json"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1].split()[-2:] == ["foreach=False", "torch/gradkern"]
    assert "torch " + torch.__version__ in out[0] and out[0].endswith("CPU threads 1")
    assert [line.split()[:2] for line in out[2:4]] == [
        ["bench_models:build", "no"],
        ["bench_models:build", "yes"],
    ]
    record = json.loads((models / "out.json").read_text())
    # The frozen bias is not among them; dtypes are the parameters' own.
    assert [r["bytes"] for r in record["results"]] == [8 * 16 * 4 + (16 * 4 + 4) * 2] * 2
    assert all(seconds > 0 for r in record["results"] for seconds in r["seconds"].values())


def test_a_dtype_for_all(models):
    arguments = [
        "--model",
        "bench_models:build",
        "--dtype",
        "float64",
        "--seconds",
        "1e-6",
        "--device",
        "cpu",
    ]
    assert main(["bench", *arguments, "--json", "out.json"]) == 0
    assert json.loads((models / "out.json").read_text())["results"][0]["bytes"] == (128 + 68) * 8


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bench_models", "expected MODULE:FUNCTION, got 'bench_models'"),
        ("no_such_module:build", "no_such_module:build: No module named 'no_such_module'"),
        ("bench_models:bild", "bench_models:bild: bench_models has no function 'bild'"),
        ("bench_models:constant", "bench_models:constant: bench_models has no function 'constant'"),
        (
            "bench_models:number",
            "bench_models:number: expected an nn.Module to be returned, got int",
        ),
        (
            "bench_models:lazy",
            "bench_models:lazy: expected parameters with a shape, 'weight' has none before the first forward",
        ),
        (
            "bench_models:float8",
            "bench_models:float8: expected parameters of float32, bfloat16, float16, float64, got "
            "torch.float8_e4m3fn; --dtype sets one",
        ),
        (
            "bench_models:sized",
            "bench_models:sized() raised TypeError: sized() missing 1 required positional argument: 'width'",
        ),
        ("bench_models:frozen", "bench_models:frozen: no parameter of the model requires a gradient"),
    ],
)
def test_a_wrong_model_is_named(models, capsys, name, message):
    assert main(["bench", "--model", name]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"gradkern bench: {message}\n" and captured.out == ""


def test_a_path_that_cannot_be_written_is_found_out_first(models, capsys):
    assert (
        main(["bench", "--model", "bench_models:build", "--device", "cpu", "--json", "no/such/x.json"]) == 2
    )
    captured = capsys.readouterr()
    assert "no/such/x.json" in captured.err and captured.out == ""


def test_without_a_command_the_commands_are_listed(capsys):
    assert main([]) == 2
    assert "compare clipping with torch on this machine" in capsys.readouterr().out


def test_a_device_that_is_not_there(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "--device", "cuda"]) == 2
    assert capsys.readouterr().err == "gradkern bench: --device cuda: torch finds no CUDA device here\n"


@pytest.mark.parametrize("arguments", [["--seconds", "0"], ["--threads", "0"], ["--dtype", "int8"]])
def test_wrong_numbers(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *arguments])
    assert stopped.value.code == 2
    assert f"argument {arguments[0]}" in capsys.readouterr().err


def test_disabled_is_said(models, run_with_torch):
    arguments = ["bench", "--model", "bench_models:build", "--seconds", "1e-6", "--device", "cpu"]
    code = f"import sys; from gradkern.cli.main import main; sys.exit(main({arguments}))"
    done = run_with_torch(code, path=Path.cwd(), GRADKERN_DISABLE="1")
    assert done.returncode == 0, done.stderr
    assert "GRADKERN_DISABLE is set: this is torch" in done.stdout
