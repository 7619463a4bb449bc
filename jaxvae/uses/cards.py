"""The model card of an exported model: README.md in Markdown, as the Hugging Face Hub shows it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxvae import datasets
from jaxvae.families import FAMILIES
from jaxvae.runs import folders, reports
from jaxvae.runs.loading import Trained
from jaxvae.runs.weights import FILE
from jaxvae.settings import to_json

# Figures of a run that a card shows, if the run has drawn them.
PICTURES = ("samples", "reconstructions", "interpolations", "classes", "completions")

CARD = """\
---
{header}
---

# {name}

{kind} It was trained on {dataset} by jaxvae {version}, and it has {numbers:,} parameters.

## Use

```python
import jax
from jaxvae.uses.pretrained import from_pretrained

model = from_pretrained({quoted})  # a folder, or the model's name on the hub
{example}
```
{programs}
## Data

{data}

## Training

{steps} steps. These settings differ from the defaults of the family `{family}`, and `config.json`
has all of them.

{settings}

## Evaluation

{evaluation}
{pictures}
## Limits

The model describes examples of its data set and no others. What it draws is a record of nothing,
and a high density does not prove that an example is of the set. Estimates of log p(x) are lower
bounds, which rise with the number of samples.
{license}"""

WITHOUT = """
Without jaxvae, JAX runs these programs on {platforms}, for {batch}
(`pip install {packages}`):

```python
{imports}

{name} = jax.export.deserialize(bytearray(open({file}, "rb").read()))
out = {name}.call({arguments})
```

{table}

Several arrays are a dictionary with these names. Examples go in as the data set holds them, and
come out as the preprocessing below leaves them.
"""


def card(
    name: str,
    model: Trained,
    config: dict[str, Any],
    pictures: Sequence[str],
    license: str | None = None,
) -> str:
    """The text of a model card.

    Args:
      name: the name of the model.
      model: the model.
      config: the content of its config.json.
      pictures: files of pictures beside the card.
      license: the licence of the model, as the hub spells it; None says that none is stated.
    """
    header = {"library_name": "jaxvae", "tags": ["jaxvae", "jax", "variational-autoencoder"]}
    header |= {"license": license} if license else {}
    return CARD.format(
        header="\n".join(f"{key}: {json.dumps(value)}" for key, value in header.items()),
        name=name,
        kind=_kind(config["family"]),
        dataset=config["data"]["name"],
        version=config["version"],
        numbers=sum(int(np.size(leaf)) for leaf in jax.tree.leaves(model.params)),
        quoted=json.dumps(name),
        example=_example(model),
        programs=_programs(config["artefacts"]),
        data=_data(model),
        steps=f"{model.step:,}",
        family=config["family"],
        settings=_settings(config),
        evaluation=_evaluation(name, model, config),
        pictures=_pictures(pictures),
        license="" if license else "\nNo licence is stated.\n",
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _kind(family: str) -> str:
    return (FAMILIES[family].Config.__doc__ or "").split("\n\n")[0].replace("\n", " ").strip()


def _example(model: Trained) -> str:
    conditional = model.built.condition is not None
    given = ", condition=conditions" if conditional else ""
    if model.model.draw is None:
        return f"codes = model.encode(x{given})"
    return f"x = model.sample(jax.random.key(0), 16{given})"


def _programs(artefacts: Sequence[dict[str, Any]]) -> str:
    """How to run the programs of ``jax.export`` and the graphs of ONNX."""
    if not artefacts:
        return ""
    rows = [
        [f"`{each['file']}`", _arrays(each["inputs"]), _arrays(each["outputs"])]
        for each in artefacts
    ]
    files = table(("file", "inputs", "outputs"), rows)
    of_jax = [each for each in artefacts if "platforms" in each]
    if not of_jax:
        return f"\n{files}\n"
    first = of_jax[0]
    inputs, imports, packages = list(first["inputs"]), "import jax", "jax flatbuffers"
    if first["weights"] != "inside":
        inputs, packages = ["weights", *inputs], f"{packages} safetensors"
        imports += "\nfrom safetensors.numpy import load_file\n\n"
        imports += f'weights = load_file("{FILE}")'
    free = any("[b" in str(each) for each in first["inputs"].values())
    return WITHOUT.format(
        platforms=", ".join(first["platforms"]),
        batch="batches of any size b" if free else "batches of one size",
        packages=packages,
        imports=imports,
        name=first["file"].partition(".")[0],
        file=json.dumps(first["file"]),
        arguments=", ".join(inputs),
        table=files,
    )


def _arrays(described: Any) -> str:
    if isinstance(described, str):
        return f"`{described}`"
    return ", ".join(f"{name} {_arrays(each)}" for name, each in described.items())


def _data(model: Trained) -> str:
    data = model.data
    shape = "x".join(map(str, data.shape)) or "one number"
    lines = [f"{data.size:,} training examples of shape {shape} and type {data.dtype}."]
    if data.pixels in datasets.PREPROCESSING:
        lines.append(f"Preprocessing: {datasets.describe(data.pixels, data.levels)}.")
    if data.classes:
        shown = ", ".join(data.classes[:20]) + (", ..." if len(data.classes) > 20 else "")
        lines.append(f"Classes: {shown}.")
    return "\n".join(lines)


def _settings(config: dict[str, Any]) -> str:
    usual = folders.flattened(to_json(FAMILIES[config["family"]].Config()))
    now = folders.flattened(config["config"])
    rows = [
        [f"`{name}`", f"`{json.dumps(value)}`"]
        for name, value in now.items()
        if name not in usual or value != usual[name]
    ]
    return table(("setting", "value"), rows) if rows else "None."


def _evaluation(name: str, model: Trained, config: dict[str, Any]) -> str:
    """The numbers of the step that was exported, with the command that gives them."""
    parts, settings = [], config["config"]
    result = model.result
    if result is not None and result["steps"] == model.step:
        named = {"elbo": result["test_elbo"], "log_likelihood": result["test_log_likelihood"]}
        parts.append(
            _numbers(result | named, f"After training, of the split {settings['test_split']}")
        )
    file = model.workdir / "evaluation.json" if model.workdir is not None else None
    if file is not None and file.exists():
        numbers = folders.read_json(file)
        if numbers["checkpoint"] == model.step:
            split = f"{numbers['dataset']}, split {numbers['split']}"
            parts.append(_numbers(numbers, f"Later, of {split}"))
    again = f"`jaxvae evaluate {name} --split {settings['test_split']}` gives such numbers again."
    return "\n\n".join([*parts, again]) if parts else "It was not evaluated at this step."


def _numbers(numbers: dict[str, Any], title: str) -> str:
    rows = [[name.strip(), value] for name, value in reports.result_rows(numbers)]
    return f"{title}:\n\n{table(('number', 'value'), rows)}"


def _pictures(files: Sequence[str]) -> str:
    shown = [f"![{file.rpartition('/')[2].partition('.')[0]}]({file})" for file in files]
    return "\n## Pictures\n\n" + "\n\n".join(shown) + "\n" if shown else ""
