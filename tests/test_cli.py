"""The command line from outside: exit codes, one-sentence errors, JSON alone on stdout."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tersor", *map(str, arguments)], capture_output=True, text=True)


def refused(code: int, *arguments: object) -> str:
    """What the command says while it refuses: one sentence on stderr, nothing on stdout, the right exit code."""
    done = run(*arguments)
    lines = [line for line in done.stderr.strip().splitlines() if line.startswith("tersor: ")]
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert len(lines) == 1
    return lines[0]


@pytest.fixture
def model_folder(stories_path, tmp_path) -> Path:
    """A copy of the small model that a test may damage."""
    return Path(shutil.copytree(stories_path, tmp_path / "model"))


def test_help_and_version_need_no_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tersor", "--help"], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "compress" in done.stdout
    assert " torch\n" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [("frobnicate",), ("compress",), ("compress", "m", "-o", "x", "--bits", "three")], ids=["command", "missing", "type"]
)
def test_unusable_arguments_exit_with_2(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "say how small"),
        (["--method", "gtpq"], "unknown method 'gtpq'"),
        (["--method", "gptq", "--bits", "0"], "bits"),
        (["--method", "gptq", "--bits", "3", "--group-size", "48"], "48"),
        (["--method", "wanda", "--sparsity", "1.5"], "sparsity"),
        (["--method", "wanda", "--bits", "3"], "takes no option 'bits'"),
        (["--method", "whitened_svd", "--option", "rank=1000"], "rank"),
        (["--method", "rtn", "--bits", "3", "--option", "bits=4"], "given twice"),
        (["--size", "10KB"], "smallest reachable size"),
        (["--size", "60"], "smallest reachable size"),
        (["--size", "many"], "many"),
        (["--size", "60MB", "--ratio", "0.5"], "not both"),
        (["--ratio", "7"], "ratio"),
        (["--size", "140KB", "--search", "magic"], "search.method"),
        (["--size", "140KB", "--target", "onnx"], "target"),
        (["--size", "140KB", "--on", "spark"], "spark"),
        (["--recipe", "none.yaml"], "none.yaml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_flags_are_one_sentence(stories_path, tmp_path, flags, said):
    assert said in refused(2, "compress", stories_path, "-o", tmp_path / "out", *flags)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_missing_model_is_named(tmp_path):
    assert "no-such-model" in refused(2, "compress", tmp_path / "no-such-model", "--size", "1MB", "-o", tmp_path / "out")


def test_a_truncated_model_is_named(model_folder, tmp_path):
    weights = model_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "model.safetensors" in refused(1, "info", model_folder)


def test_a_lying_gguf_is_refused_before_any_allocation(tmp_path):
    lying = tmp_path / "lying.gguf"
    lying.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60))
    assert "lying.gguf" in refused(1, "info", lying)


def test_nan_weights_are_named(model_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(model_folder / "model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    tensors[name] = tensors[name].clone()
    tensors[name][0, 0] = torch.nan
    save_file(tensors, model_folder / "model.safetensors", metadata={"format": "pt"})
    done = run("compress", model_folder, "--method", "rtn", "--bits", "3", "-o", tmp_path / "out")
    assert done.returncode in (1, 2)
    assert "model.layers.2.mlp.up_proj" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_foreign_output_folder_is_left_alone(stories_path, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    assert "not empty" in refused(2, "compress", stories_path, "--method", "rtn", "--bits", "3", "-o", tmp_path)
    assert [child.name for child in tmp_path.iterdir()] == ["photo.jpg"]


def test_the_evaluation_text_may_not_be_the_calibration_text(stories_path, tmp_path):
    flags = ["--method", "gptq", "--bits", "3", "--calibration", "tinystories", "--evaluation", "tinystories"]
    assert "same" in refused(2, "compress", stories_path, "-o", tmp_path / "out", *flags)


def test_json_is_alone_on_stdout_and_the_folder_works(stories_path, tmp_path):
    done = run(
        "compress", stories_path, "--method", "rtn", "--bits", "4", "--option", "clip=mse", "--calibration", "tinystories",
        "-o", tmp_path / "out", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"][-1]["nbytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    info = json.loads(run("info", tmp_path / "out", "--json").stdout)
    assert {row["kind"] for row in info["layers"]} == {"quantized", "dense"}
    assert run("report", tmp_path / "out").returncode == 0
    assert "<html" in (tmp_path / "out" / "report.html").read_text()
    text = json.loads(run("generate", tmp_path / "out", "Once upon a time", "--tokens", "8", "--json").stdout)["text"]
    assert text.strip()


def test_methods_and_papers_list_themselves():
    names = {row["name"] for row in json.loads(run("methods", "--json").stdout)}
    assert {"rtn", "gptq", "awq", "sparsegpt", "wanda", "magnitude", "svd", "whitened_svd"} <= names
    papers = json.loads(run("papers", "--json").stdout)
    assert len(papers) == 40
    assert next(row for row in papers if row["key"] == "evopress")["implemented"]


def test_an_unknown_paper_is_refused():
    assert "unknown paper" in refused(2, "reproduce", "cold-fusion")


def test_a_stack_changes_its_size_while_it_writes(stories_path, data_dir, tmp_path):
    folder = tmp_path / "stacked"
    made = run("stack", stories_path, "-o", folder, "--blocks", 3, "--calibration", "tinystories", "--tokens", 1024, "--json")
    assert made.returncode == 0, made.stderr
    sizes = json.loads(made.stdout)
    small = (sizes["smallest"] + sizes["largest"]) // 2
    done = run("generate", folder, "Once upon a time", "--tokens", 8, "--size", sizes["largest"], "--resize", f"{small}@4", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (change,) = found["resized"]
    assert (change["token"], change["loaded"], change["nbytes"]) == (4, 0, found["nbytes"])
    assert sizes["largest"] - change["dropped"] == change["nbytes"] <= small
    assert "token 4: " in done.stderr
    assert "write SIZE@TOKEN" in refused(2, "generate", folder, "Once", "--resize", "1MB")
    assert "holds no residual stack" in refused(2, "generate", stories_path, "Once", "--size", "1MB")
    data = bytearray((folder / "blocks.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "blocks.bin").write_bytes(data)
    assert "was changed after it was written" in refused(1, "generate", folder, "Once")


def test_tuning_lowers_the_divergence_and_keeps_the_bytes(stories_path, data_dir, tmp_path):
    small, tuned = tmp_path / "small", tmp_path / "tuned"
    options = ("--bits", 2, "--group-size", 4, "--evaluation", "python-docs")
    assert run("compress", stories_path, "--method", "rtn", *options, "-o", small).returncode == 0
    made = run("tune", small, "--reference", stories_path, "--text", "tinystories", "--steps", 8, "--context", 64, "-o", tuned, "--json")
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    assert min(loss for _, loss in told["held_out"]) < told["held_out"][0][1]
    sizes = [json.loads(run("info", folder, "--json").stdout)["nbytes"] for folder in (small, tuned)]
    assert sizes[0] == sizes[1]
    assert not list(tmp_path.glob(".*tuning*"))
    assert "no layer of the model can be tuned" in refused(
        2, "tune", stories_path, "--reference", stories_path, "--text", "tinystories", "-o", tmp_path / "none"
    )
