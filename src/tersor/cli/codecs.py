"""Commands on data: encode, decode, and training the codecs that learn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tersor.cli.common import JsonOption, OutputOption, app, show


@app.command()
def encode(
    file: Annotated[Path, typer.Argument(help="Any file.", show_default=False)],
    output: OutputOption,
    codec: Annotated[str, typer.Option(help="auto (the smallest), raw, deflate, bz2, xz, bytes, text, programs, a trained one.")] = "auto",
    model: Annotated[str | None, typer.Option(help="A language model, or the folder of a trained codec; needed again to decode.")] = None,
    block: Annotated[int, typer.Option(help="Bytes in memory at once.")] = 1 << 24,
    verify: Annotated[bool, typer.Option(help="Decode everything again before it is written.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Compress FILE by whatever codec suits its content; losslessly, unless a trained codec is named, whose default is trained once."""
    from tersor.coding.files import encode_file
    from tersor.pipeline.progress import bars, counted

    with bars() as progress:
        training = counted(progress, f"training {codec}, once")
        result = encode_file(file, output, codec=codec, model=model, block=block, verify=verify, progress=training)
    show(result, as_json, result.to_dict())


@app.command()
def decode(
    file: Annotated[Path, typer.Argument(help="A .tersor file.", show_default=False)],
    output: OutputOption,
    model: Annotated[str | None, typer.Option(help="The language model or trained codec that wrote it, if one did.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Try even where floats may round differently; the result is checked.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Give back what 'tersor encode' compressed, checked against its checksum."""
    from tersor.coding.files import decode_file

    result = decode_file(file, output, model=model, force=force)
    show(result, as_json, result.to_dict())


@app.command("train-codec")
def train_codec(
    name: Annotated[str, typer.Argument(help="A codec that is trained; an unknown name lists them.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--out", help="Folder of the codec, and of its state until then.", show_default=False)],
    data: Annotated[Path | None, typer.Option(help="What to train on; without it, data of TERSOR_DATA or of a package.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; the default takes some minutes of one core.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and batches.")] = 0,
    option: Annotated[list[str] | None, typer.Option(help="A setting of the codec, such as bits=4. Repeatable.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train the codec NAME on your data. Shows progress, can be killed and resumed."""
    from tersor.coding.training import settings
    from tersor.coding.training import train_codec as run
    from tersor.pipeline.progress import bars, counted

    with bars() as progress:
        done = run(name, output, data=data, steps=steps, seed=seed, options=settings(option or []), progress=counted(progress, name))
    show(done, as_json, done.to_dict())
