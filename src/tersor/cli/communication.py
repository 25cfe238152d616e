"""Commands about what workers of a training tell each other."""

from __future__ import annotations

from typing import Annotated

import typer

from tersor.cli.common import JsonOption, ModelArgument, app, show

_DEFAULTS = ("topk:0.01", "topk:0.05", "randk:0.01", "sign", "quant:4", "lowrank:4")
_NOTES = (
    "seconds are what a worker computes for the exchange here; a step gets shorter on links slower than 'pays below'",
    "all rules send the same; with noisy gradients and 1 % or less take ef21_sgdm, and give econtrol a smaller rate the less is sent",
)


@app.command("comm-bench")
def comm_bench(
    model: ModelArgument,
    compressor: Annotated[list[str] | None, typer.Option(help="Such as topk:0.01; may be repeated.", show_default=False)] = None,
    mode: Annotated[str, typer.Option(help="Rule: csgd, ef, ef21, ef21_sgdm or econtrol.")] = "econtrol",
    workers: Annotated[int, typer.Option(help="Workers of the training.")] = 4,
    as_json: JsonOption = False,
) -> None:
    """Bytes that a worker sends a step when gradients of MODEL are compressed, and the time that takes; needs no other worker."""
    from tersor.distributed import ErrorFeedbackState, rehearse
    from tersor.models import load

    states = {name: ErrorFeedbackState(mode, name) for name in compressor or _DEFAULTS}
    shapes = {name: tuple(parameter.shape) for name, parameter in load(model).module.named_parameters()}
    rows = [{"compressor": name, **rehearse(state, shapes, workers).to_dict()} for name, state in states.items()]
    lines = [f"{'compressor':<12}{'MB sent a step':>16}{'of dense':>10}{'seconds':>9}{'pays below':>16}"]
    for row in rows:
        link = f"{row['pays_below_bits_a_second'] / 1e9:,.3g} Gbit/s"
        size, share = f"{row['sent'] / 1e6:,.4g}", f"{row['sent'] / row['dense']:.2%}"
        lines.append(f"{row['compressor']:<12}{size:>16}{share:>10}{row['seconds']:>9.3g}{link:>16}")
    text = "\n".join([*lines, f"plain averaging sends {rows[0]['dense'] / 1e6:,.4g} MB", *_NOTES])
    show(text, as_json, {"model": model, "mode": mode, "workers": workers, "rows": rows})
