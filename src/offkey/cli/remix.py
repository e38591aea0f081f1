"""`offkey remix`: a data set whose training clips are recombined foregrounds and backgrounds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from offkey.cli.output import Bars, complain, print_json, report_failures
from offkey.cli.separate import ChannelOption

if TYPE_CHECKING:
    from offkey.data.loader import Failure


def remix(
    source: Annotated[Path, typer.Argument(help="A folder of normal recordings, or a DCASE root.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the new data set (new, or an unfinished earlier one).")],
    model: Annotated[Path, typer.Option("--model", help="Folder of a separator (see offkey fit-separator).")],
    copies: Annotated[int, typer.Option(help="Remixes of every training clip.", min=1)] = 1,
    snr: Annotated[tuple[float, float], typer.Option(help="Lowest and highest foreground over background, dB.")] = (
        -5.0,
        15.0,
    ),
    across_domains: Annotated[
        float,
        typer.Option(help="Share of clips mixed with a foreground of the other domain, 0 to 1.", min=0.0, max=1.0),
    ] = 0.0,
    originals: Annotated[bool, typer.Option("--originals", help="Put the training clips themselves beside.")] = False,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.", min=0)] = 0,
    channel: ChannelOption = "mean",
    subfolders: Annotated[
        Literal["machines", "settings"],
        typer.Option(help="What the sub-folders of a plain folder are: machines or settings."),
    ] = "machines",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Write the foreground of every normal training clip in backgrounds of other clips, as a data set to fit on.

    Only the training part is written: evaluate on the test clips of SOURCE, which stay as they are.
    """
    if snr[0] > snr[1]:
        complain(f"--snr {snr[0]:g} {snr[1]:g}: the lowest comes first")
        return 2
    from offkey.audio.cache import ArrayCache, default_cache_dir
    from offkey.audio.io import AudioConfig
    from offkey.data.source import open_source
    from offkey.separation.remix import RemixConfig, write_remixes
    from offkey.separation.separator import Separator
    from offkey.separation.stems import STEMS_BYTES, Stems
    from offkey.systems.settings import validate

    audio = validate(AudioConfig, {"channel": channel}, "offkey remix --channel")
    told = {"min_snr_db": snr[0], "max_snr_db": snr[1], "mixup": across_domains}
    config = validate(RemixConfig, told, "offkey remix")
    opened = open_source(source, subfolders=subfolders)
    stems = Stems(Separator.load(model), audio, ArrayCache(default_cache_dir() / "stems", STEMS_BYTES))
    failures: list[Failure] = []
    with Bars() as bars:
        made = write_remixes(
            opened,
            out,
            config,
            stems,
            copies=copies,
            seed=seed,
            originals=originals,
            progress=bars,
            failures=failures,
        )
    code = report_failures(failures)
    if as_json:
        print_json({"out": str(out), "written": made.written, "originals": made.originals, "left_out": made.left_out})
        return code
    typer.echo(f"{made.written} remixed clips{f' and {made.originals} originals' if originals else ''}: {out}")
    if made.left_out:
        typer.echo(f"{made.left_out} were left out: next to nothing of a machine or a background was found")
    typer.echo(f"next: offkey fit {out} --system discriminative --out MODEL; offkey evaluate MODEL {source}")
    return code
