"""Commands on models: compress, measure, export, run, repair."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tersor.cli.common import JsonOption, ModelArgument, OutputOption, app, show
from tersor.errors import InvalidArgument

if TYPE_CHECKING:
    from tersor.models.stack import Resized


@app.command()
def compress(
    model: ModelArgument,
    output: OutputOption,
    recipe: Annotated[Path | None, typer.Option(help="A YAML recipe; the other flags change its values.")] = None,
    method: Annotated[str | None, typer.Option(help="One method everywhere; see 'tersor methods'.")] = None,
    bits: Annotated[int | None, typer.Option(help="Bits a weight, for methods that quantise.")] = None,
    group_size: Annotated[int | None, typer.Option(help="Weights that share a scale; divides the layer's inputs. -1: whole rows.")] = None,
    sparsity: Annotated[float | None, typer.Option(help="Fraction of weights to remove, for methods that prune.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Any option of the method: keep=0.5, act_order=true, base_options={bits: 2}; once for each.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Size of the tensor file, never exceeded: 60MB, 45MiB, 3.2bpw.")] = None,
    ratio: Annotated[float | None, typer.Option(help="Size as a fraction of the 16-bit model.")] = None,
    search: Annotated[str | None, typer.Option(help="evopress, sparse, knapsack, greedy, random or uniform.")] = None,
    calibration: Annotated[str | None, typer.Option(help="Text to fit on: a file, a name, or auto (the model writes it).")] = None,
    correction: Annotated[
        float | None, typer.Option(help="Share of what the blocks before have lost that a layer makes up for, 0 to 1.")
    ] = None,
    tune: Annotated[int | None, typer.Option(help="Steps of training the result towards MODEL, in its format and size.")] = None,
    evaluation: Annotated[str | None, typer.Option(help="Text for the reported numbers; never the calibration text.")] = None,
    target: Annotated[str | None, typer.Option(help="Format to export to later: gguf, compressed-tensors, safetensors.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of sampling and search.")] = None,
    on: Annotated[str | None, typer.Option(help="ray, or ray://host:port, to spread the work.")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Throw away the state of an earlier run in the folder.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Fit MODEL into a budget. Shows progress, can be killed and resumed, ends with a table of size and quality."""
    from tersor.compress import compress as run
    from tersor.pipeline.defaults import job_recipe, method_options
    from tersor.pipeline.progress import bars

    job = job_recipe(
        recipe, method=method, bits=bits, group_size=group_size, sparsity=sparsity, size=size, ratio=ratio, search=search,
        calibration=calibration, correction=correction, tune=tune, evaluation=evaluation, target=target, seed=seed,
        options=method_options(option or []),
    )  # fmt: skip
    with bars() as progress:
        small = run(model, job, output=output, on=on, restart=restart, progress=progress)
    report = small.report
    following = f"written to {output}; next: tersor export {output} --format gguf -o {output}.gguf"
    show(f"{report.table()}\n\n{following}", as_json, report.to_dict())


@app.command("eval")
def measure(
    model: ModelArgument,
    reference: Annotated[str | None, typer.Option(help="The original, for divergence and agreement.")] = None,
    text: Annotated[str | None, typer.Option(help="A file or a known name; default: the documentation that ships with Python.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the text to use.")] = 8192,
    tasks: Annotated[
        str | None, typer.Option(help="Comma-separated task names, such as arc_easy,piqa; kick is five families against --reference.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Questions of each task to ask.")] = None,
    backend: Annotated[Literal["tersor", "lm-eval"], typer.Option(help="lm-eval must be installed.")] = "tersor",
    speed: Annotated[bool, typer.Option("--speed", help="Also measure tokens a second, load time and memory.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure MODEL: perplexity, divergence from a reference, bytes, tasks."""
    from tersor.evaluation import evaluate as run
    from tersor.evaluation import run_tasks
    from tersor.evaluation.kick import run_kick
    from tersor.models import load
    from tersor.pipeline.progress import bars

    loaded = load(model)
    original = load(reference) if reference else None
    if tasks:
        names = [name.strip() for name in tasks.split(",")]
        results: list[Any] = []
        if "kick" in names:
            with bars() as progress:
                results.append(run_kick(loaded, original, limit=limit, text=text, tokens=tokens, progress=progress))
        if others := [name for name in names if name != "kick"]:
            results += run_tasks(loaded, others, reference=original, limit=limit, backend=backend)
        show("\n".join(map(str, results)), as_json, [result.to_dict() for result in results])
        return
    result = run(model, text, original, max_tokens=tokens, speed=speed)
    show(result, as_json, result.to_dict())


@app.command()
def export(
    model: ModelArgument,
    output: OutputOption,
    format: Annotated[str, typer.Option(help="gguf, compressed-tensors or safetensors.")] = "gguf",
    gguf_type: Annotated[str | None, typer.Option(help="For gguf: quantise dense layers to this type, such as Q4_K.")] = None,
    verify: Annotated[bool, typer.Option(help="Load the result in its own runtime and compare logits.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Write MODEL in a format that other tools load, and check that they do."""
    from tersor.models import load

    options = {} if gguf_type is None else {"gguf_type": gguf_type}
    report = load(model).export(output, format=format, verify=verify, **options)
    show(report, as_json, report.to_dict())


@app.command()
def info(model: ModelArgument, as_json: JsonOption = False) -> None:
    """What each layer of MODEL is stored as, its bytes and bits a weight."""
    from tersor.models import load
    from tersor.models.summary import summarize

    summary = summarize(load(model))
    show(summary, as_json, summary.to_dict())


@app.command()
def generate(
    model: ModelArgument,
    prompt: Annotated[str, typer.Argument(help="Text to continue.")],
    tokens: Annotated[int, typer.Option(help="Tokens to write at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    size: Annotated[str | None, typer.Option(help="For a stack: the largest size that fits this budget, such as 50MB.")] = None,
    resize: Annotated[
        list[str] | None, typer.Option(help="For a stack: 30MB@16 changes to 30MB before token 16, counted from 0. Repeatable.")
    ] = None,
    kv: Annotated[str | None, typer.Option(help="Compress keys and values: gear, gear-l, gear-kcvt, kivi, kcvt or plain.")] = None,
    kv_bits: Annotated[int, typer.Option(help="Bits of a key or value with --kv.")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Continue PROMPT with MODEL; a stack can change its size on the way."""
    from tersor.models import load

    options: dict[str, Any] = {"max_new_tokens": tokens, "temperature": temperature, "seed": seed}
    if kv is not None:
        if size is not None or resize:
            raise InvalidArgument("--kv does not go with --size or --resize; give one of them")
        _generate_with_cache(load(model), prompt, options, kv, kv_bits, as_json)
        return
    if size is None and not resize:
        text = load(model).generate(prompt, **options)
        show(text, as_json, {"prompt": prompt, "text": text})
        return
    from tersor.models.stack import load_stack, parse_resizes

    plan, done = parse_resizes(resize or []), []
    stacked = load_stack(model, size)

    def resized(token: int, change: Resized) -> None:
        print(f"token {token}: now {change}", file=sys.stderr)
        done.append({"token": token, **vars(change)})

    text = stacked.generate(prompt, **options, resize=plan, on_resize=resized)
    show(text, as_json, {"prompt": prompt, "text": text, "nbytes": stacked.nbytes, "resized": done})


def _generate_with_cache(model: Any, prompt: str, options: dict[str, Any], kind: str, bits: int, as_json: bool) -> None:
    from tersor.kvcache import make_cache
    from tersor.models.generation import continue_text

    cache = make_cache(kind, model.config, bits)
    text = continue_text(model, prompt, **options, cache=cache)
    made = {"cache_bytes": cache.nbytes(), "compression_ratio": cache.compression_ratio()}
    if not as_json:
        share = 100 / cache.compression_ratio()
        print(f"keys and values: {cache.nbytes():,} bytes, {share:.0f} % of what they take in 16 bits", file=sys.stderr)
    show(text, as_json, {"prompt": prompt, "text": text, **made})


@app.command()
def stack(
    model: ModelArgument,
    output: OutputOption,
    blocks: Annotated[int, typer.Option(help="One-bit residuals a layer: the largest size takes a little more bits a weight.")] = 8,
    calibration: Annotated[str, typer.Option(help="Text to fit on: a file, a name, or auto (the model writes it).")] = "auto",
    tokens: Annotated[int, typer.Option(help="Tokens of that text to use.")] = 8192,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Write MODEL as one folder that loads at any size and changes size while it runs."""
    from tersor.pipeline.progress import bars
    from tersor.pipeline.stacking import stack as run

    with bars() as progress:
        made = run(model, output, blocks=blocks, calibration=calibration, tokens=tokens, seed=seed, progress=progress)
    sizes = made.sizes
    text = (
        f"written to {output}: {len(sizes):,} sizes from {sizes[0]:,} to {sizes[-1]:,} bytes; "
        f"next: tersor generate {output} 'PROMPT' --size {(sizes[0] + sizes[-1]) // 2_000_000 or 1}MB"
    )
    show(text, as_json, {"output": str(output), "sizes": len(sizes), "smallest": sizes[0], "largest": sizes[-1]})


@app.command()
def tune(
    model: ModelArgument,
    output: OutputOption,
    reference: Annotated[str, typer.Option(help="The original that MODEL was made from.", show_default=False)],
    text: Annotated[str, typer.Option(help="A file or a known name to train on; never report numbers on it.", show_default=False)],
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 100,
    mode: Annotated[Literal["pv", "p", "straight_through"], typer.Option(help="p leaves the codes alone.")] = "pv",
    batch: Annotated[int, typer.Option(help="Windows a step.")] = 2,
    context: Annotated[int, typer.Option(help="Tokens of a window.")] = 256,
    pilot: Annotated[
        int | None, typer.Option(min=0, help="Steps of each of three tunings that choose the rates; a fifth of --steps. 0: none.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order of the windows.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a compressed MODEL towards its original without changing its format or size. Can be killed and resumed."""
    from tersor.finetuning import PVConfig
    from tersor.pipeline.progress import bars
    from tersor.pipeline.tuning import tune as run

    config = PVConfig(mode=mode, steps=steps, batch=batch, seed=seed)
    with bars() as progress:
        tuned = run(model, reference, text, output, config=config, context=context, pilot=pilot, progress=progress)
    show(f"{tuned}; written to {output}", as_json, {"output": str(output), **tuned.to_dict()})


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where to write; RUN/report.html if not given.")] = None,
) -> None:
    """One self-contained HTML page about a run: size and quality, bits of each layer, search progress."""
    from tersor.evaluation.report import write_report

    target = output or run / "report.html"
    write_report(run, target)
    print(f"written to {target}")
