"""The commands `backbones list`, `pull` and `show`: arguments → one call each. Holds no logic, and loads nothing heavy before."""

from __future__ import annotations

import typer

from fewtune.cli.flags import AsJson
from fewtune.cli.terminal import print_json, print_lines, say

app = typer.Typer(no_args_is_help=True, help="The catalogue of PLMs that need no hub.")


@app.command("list")
def list_backbones() -> None:
    """The names that `--backbone` takes without a hub."""
    from fewtune.backbone import catalogue

    for entry, folder in catalogue.describe():
        typer.echo(f"{entry.name:14} {entry.title}; {entry.licence}; {folder or 'not pulled yet'}")


@app.command("pull")
def pull_backbone(name: str, as_json: AsJson = False) -> None:
    """Fetch a PLM of the catalogue, check its hash and convert it once; prints the model folder."""
    from fewtune.backbone import catalogue

    path = catalogue.pull(name, say=say)
    if as_json:
        print_json({"name": name, "path": str(path)})
    else:
        typer.echo(path)


@app.command("show")
def show_backbone(name: str) -> None:
    """What is known of a PLM: family, size, sites, fingerprint. Loads it."""
    from fewtune.plm import load

    loaded = load(name, say=say)
    print_lines(
        {
            "name": loaded.name,
            "family": loaded.model.config.model_type,
            "reads": "from left to right" if loaded.causal else "both ways, and writes" if loaded.seq2seq else "both ways",
            "LM head": "yes" if loaded.has_lm_head else "no",
            "parameters": f"{loaded.parameters:,}",
            "blocks": f"{loaded.depth} of width {loaded.width}",
            "longest input": f"{loaded.max_length} tokens",
            "sites": ", ".join(loaded.family.sites),
            "weights": loaded.fingerprint,
            "tokenizer": loaded.tokenizer_fingerprint,
        }
    )
