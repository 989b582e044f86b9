"""The card of an artifact: a README.md with the Hub's metadata header, written from the manifest alone. Knows no model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fewtune.tasks import kind_of
from fewtune.tasks.metrics import named, with_interval
from fewtune.tasks.task import Task

Manifest = Mapping[str, Any]


def write(manifest: Manifest, *, sizes: Mapping[str, int]) -> str:
    """The card as Markdown; `sizes` maps file names to bytes. The same manifest gives the same card."""
    return "\n".join([*_header(manifest), "", *_body(manifest, sizes), ""])


def _header(manifest: Manifest) -> list[str]:
    names = [one["backbone"] for one in manifest["routes"]] if "routes" in manifest else [manifest["backbone"]["name"]]
    use = "text-generation" if kind_of(Task.from_dict(manifest["task"])).offered == "none" else "text-classification"
    return [
        "---",
        "library_name: fewtune",
        f"base_model: {json.dumps(names[0] if len(names) == 1 else names)}",
        f"pipeline_tag: {use}",
        "tags:",
        "- fewtune",
        "- few-shot",
        f"- {use}",
        "---",
    ]


def _body(manifest: Manifest, sizes: Mapping[str, int]) -> list[str]:
    task = manifest["task"]
    rows = _side_by_side(manifest, sizes) if "routes" in manifest else _alone(manifest, sizes)
    return [
        f"# {task['name']}",
        "",
        *([task["description"], ""] if task.get("description") else []),
        kind_of(Task.from_dict(task)).described(Task.from_dict(task)),
        "",
        *rows,
        "## Use",
        "",
        "```python",
        "import fewtune as ft",
        "",
        'model = ft.load("FOLDER")',
        f"answers = model.predict([{_asked(task)}])",
        "```",
    ]


def _alone(manifest: Manifest, sizes: Mapping[str, int]) -> list[str]:
    """Of a model on one PLM: how it was made, what it holds, and how it asks."""
    backbone, about = manifest["backbone"], manifest["about"]
    return [
        "| | |",
        "|---|---|",
        f"| backbone | `{backbone['name']}` (weights {backbone['fingerprint'][:12]}, tokenizer {backbone['tokenizer_fingerprint'][:12]}) |",
        f"| method | {_cell(about.get('method', ''))} |",
        f"| labelled rows | {about.get('rows', '')} |",
        *_further(about.get("recipe", {}).get("start")),
        *_estimate(about),
        *_taught(about.get("pet")),
        *_early(manifest.get("exits")),
        *_smaller(about.get("compressed")),
        *_pruned(about.get("pruned")),
        *(_found(name, found) for name, found in about.get("search", {}).items()),
        _trained(manifest),
        f"| bytes | {sum(sizes.values()):,}; a hundred such tasks beside one backbone {_beside(manifest, sizes)} |",
        _read(manifest),
        "",
        "This folder holds only what was trained; the backbone is fetched by name and checked by fingerprint.",
        "",
        *_demonstrations(manifest),
        *_templates(manifest),
    ]


def _side_by_side(manifest: Manifest, sizes: Mapping[str, int]) -> list[str]:
    """Of several models: which they are, how much each is heard, and where the card of each lies."""
    about, routes, weights_M = manifest["about"], manifest["routes"], manifest["mix"]["weights_M"]
    links = [f"[{one['folder']}]({one['folder']}/README.md)" for one in routes]
    said = [
        f"`{one['backbone']}`: {_cell(one['method'])}; weight {own / sum(weights_M):.2f}"
        for one, own in zip(routes, weights_M, strict=True)
    ]
    return [
        "| | |",
        "|---|---|",
        *(f"| {link} | {each} |" for link, each in zip(links, said, strict=True)),
        f"| labelled rows | {about.get('rows', '')} |",
        *_estimate(about),
        *_taught(about.get("pet")),
        _trained(manifest),
        f"| bytes | {sum(sizes.values()):,} |",
        _read(manifest),
        "",
        f"{len(routes)} models answer side by side, each on its own backbone, and their answers become one. Each lies in a folder of "
        "its own, which is a model by itself.",
        "",
    ]


def _trained(manifest: Manifest) -> str:
    trained, all_of_it = manifest["trained_parameters"], manifest["backbone_parameters"]
    return f"| trained parameters | {trained:,} ({trained / all_of_it:.3%} of {all_of_it:,}) |"


def _read(manifest: Manifest) -> str:
    return f"| reads | {', '.join(manifest['task']['fields'])}; at most {manifest['max_length']} tokens |"


def _asked(task: Mapping[str, Any]) -> str:
    """What stands for a row in the example of use."""
    columns = kind_of(Task.from_dict(task)).written.candidates
    if not columns:
        return '"…"'
    own = {columns[0]: '["…", "…"]'} if len(columns) == 1 else dict.fromkeys(columns, '"…"')
    return "{" + ", ".join(f"{json.dumps(name)}: {cell}" for name, cell in ({name: '"…"' for name in task["fields"]} | own).items()) + "}"


def _further(start: Mapping[str, Any] | None) -> list[str]:
    """Which saved model it goes on from."""
    return [] if start is None else [f"| goes on from | the model {start['fingerprint'][:12]} |"]


def _estimate(about: Mapping[str, Any]) -> list[str]:
    """What was estimated without a test set, if anything was."""
    if "estimate" not in about:
        return []
    found = about["estimate"]
    value, interval = with_interval(found)
    text = f"{value} ({interval}), cross-validated on {found['rows']} labelled rows"
    return [f"| {named(found.get('metric', 'accuracy'))}, estimated | {text} |"]


def _taught(pet: Mapping[str, Any] | None) -> list[str]:
    """What became of the unlabelled rows: who labelled them, how far they lie from the labelled ones, and what an audit said."""
    if pet is None:
        return []
    kept = pet.get("kept", "rows" in pet)
    learned = f"{pet['rows']:,}, labelled by {len(pet['members'])} members" if kept else "not learned from"
    apart = f"; shift {pet['shift']:.2f}" if "shift" in pet else ""
    lines = [f"| unlabelled rows | {learned}{apart} |"]
    lines += [f"| why not | {_cell(pet['reason'])} |"] if "reason" in pet else []
    lines += [
        f"| member | {_cell(one['name'])}: weight {one['weight']:.2f}, temperature {one['temperature']:.2f} |"
        for one in (pet.get("members", ()) if kept else ())
    ]
    audit = pet.get("audit")
    if audit and audit["rows"]:
        value, interval = with_interval(audit["accuracy"])
        lines.append(f"| teacher, audited | right on {value} ({interval}) of {audit['rows']} labelled rows |")
    return lines


def _early(exits: Mapping[str, Any] | None) -> list[str]:
    """Which layers have exits, what was promised of them, and what the rows that tested it showed."""
    if exits is None:
        return []
    about = exits["about"]
    lines = [f"| early exits | after layers {', '.join(map(str, exits['layers']))}; {_cell(about['method'])} |"]
    if exits["threshold"] is None:
        return [*lines, f"| promised | nothing: {_cell(about['reason'])} The exits are off |"]
    value, interval = with_interval(about["agreement"])
    measured = f"there {value} ({interval}) agreed, {about['mean_layer']:.1f} of {about['depth']} layers in the mean"
    return [*lines, f"| promised | {_cell(about['promised'])}, tested on {about['rows']['tested']} rows: {measured} |"]


def _smaller(compressed: Mapping[str, Any] | None) -> list[str]:
    """By which ways a larger model was made smaller, and how it stood to that one on rows held out."""
    if compressed is None:
        return []
    lines = [f"| compressed | {_cell(', '.join(compressed['by']))}; from the model {compressed['from'][:12]} |"]
    found = compressed.get("measured")
    if found is not None:
        drop = f"{found['drop']['value']:+.1f} points lost ({found['drop']['low']:+.1f} – {found['drop']['high']:+.1f})"
        lines.append(f"| beside it | {found['size']:.2f} of the bytes, {drop} on {found['rows']} rows |")
    return lines


def _pruned(pruned: Mapping[str, Any] | None) -> list[str]:
    """How many of all the PLM's weights are 0, and how it was chosen which."""
    if pruned is None:
        return []
    return [f"| pruned | {pruned['gone']:,} of {pruned['weights']:,} weights are gone ({pruned['share']:.1%}), by {pruned['by']} |"]


def _found(name: str, found: Mapping[str, Any]) -> str:
    """How far apart the prompts are among which a search chose."""
    spread = f"losses {found['loss']['low']:.2f} to {found['loss']['high']:.2f}, averaged {found['loss']['averaged']:.2f}"
    used = f"{found['kept']} of {found['tried']} tried" if found["taken"] else f"none used of {found['tried']} tried"
    return f"| {name}, found | {used} on {found['rows']} labelled rows; {spread}, which estimate nothing |"


def _beside(manifest: Manifest, sizes: Mapping[str, int]) -> str:
    """What a hundred tasks take, with the backbone in float32, and what as many copies of it would."""
    backbone = 4 * manifest["backbone_parameters"]
    return f"{backbone + 100 * sum(sizes.values()):,}, a hundred copies of it {100 * backbone:,}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _demonstrations(manifest: Manifest) -> list[str]:
    """That labelled examples lie in the folder, which whoever passes it on must know."""
    shown = manifest.get("demonstrations")
    if shown is None:
        return []
    draws = shown["spec"]["draws"]
    return [
        f"**It also holds {len(shown['examples'])} labelled examples, with their texts** (in `manifest.json`): some of them stand in each "
        f"prompt as demonstrations, and answers are the mean over {draws} draws.",
        "",
    ]


def _templates(manifest: Manifest) -> list[str]:
    shown = [line for template in manifest["templates"] for line in ("```text", template, "```", "")]
    return ["## Template" if len(manifest["templates"]) == 1 else "## Templates", "", *shown]
