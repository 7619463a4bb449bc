"""Trained models as folders that others open: ``config.json``, safetensors and a model card.

The files have the names of the Hugging Face Hub (``model.safetensors``, ``config.json``,
``README.md``). Nothing is pickled, so a folder of a stranger can be opened.
"""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxvae.runs import folders, weights
from jaxvae.runs.loading import Trained, load
from jaxvae.uses import cards
from jaxvae.uses.artefacts import Artefact

CONFIG, CARD, RESULT = "config.json", "README.md", "result.json"
NEEDED = (CONFIG, weights.FILE, RESULT)  # to open a model
WORDS = ("classes", "vocabulary")  # of the data, which are no paths


def save_pretrained(
    model: Trained,
    folder: str | Path,
    artefacts: Sequence[Artefact] = (),
    license: str | None = None,
) -> Path:
    """Writes a trained model to a folder that ``from_pretrained`` opens.

    It gets ``config.json`` with the SHA-256 of weights and artefacts, ``model.safetensors``, a
    model card with the numbers and the pictures of the run, and the artefacts. The configuration
    comes last, so a folder that has one is whole. Absolute paths of this machine become names.
    ``license`` is what the card states. Raises ValueError for a model of no run folder, and for a
    folder that is not empty.

    >>> import jaxvae
    >>> from jaxvae.uses import pretrained
    >>> model = jaxvae.load("runs/digits-digits-0")  # doctest: +SKIP
    >>> pretrained.save_pretrained(model, "vae-digits")  # doctest: +SKIP
    """
    record, folder = record_of(model), Path(folder)
    check_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = portable(record.json()) | {
        "library_name": "jaxvae",
        "jax": jax.__version__,
        "date": datetime.date.today().isoformat(),
        "step": model.step,
        "weights": weights.write(folder, model.params),
        "artefacts": [
            {"file": file, "sha256": weights.digest(content)} | about
            for file, content, about in artefacts
        ],
    }
    for file, content, _ in artefacts:
        (folder / file).write_bytes(content)
    if model.result is not None:
        folders.write_json(folder / RESULT, model.result)
    pictures = _copied(model, folder)
    text = cards.card(folder.resolve().name, model, config, pictures, license)
    (folder / CARD).write_text(text)
    folders.write_json(folder / CONFIG, dict(sorted(config.items())))
    return folder


def record_of(model: Any) -> folders.Record:
    """The record of the run that a model is of. Raises ValueError if it is of none."""
    if not isinstance(model, Trained):
        raise ValueError(
            f"save_pretrained takes a trained model, such as jaxvae.load gives, and it was given a "
            f"{type(model).__name__}: a configuration cannot name functions of your own, so "
            "write them as programs of jax.export (jaxvae.uses.artefacts)"
        )
    if model.workdir is None:
        raise ValueError("this model is of no run folder, whose configuration is needed")
    return folders.read(model.workdir)


def check_free(folder: Path) -> None:
    """Raises ValueError if a folder holds anything but hidden files, such as Git's."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder")
    if folder.exists() and any(not each.name.startswith(".") for each in folder.iterdir()):
        raise ValueError(f"{folder} is not empty; name another folder")


def portable(value: Any) -> Any:
    """JSON in which the absolute paths of this machine are the names of what they lead to.

    The folder of prepared sets is left out.
    """
    if isinstance(value, dict):
        kept = {n: each if n in WORDS else portable(each) for n, each in value.items()}
        return kept | ({"data_dir": None} if "data_dir" in value else {})
    if isinstance(value, list | tuple):
        return [portable(each) for each in value]
    is_path = isinstance(value, str) and Path(value).is_absolute()
    return Path(value).name if is_path else value


def _copied(model: Trained, folder: Path) -> list[str]:
    """Copies the pictures of a run that a card shows, and returns their names."""
    assert model.workdir is not None
    there = [model.workdir / "figures" / f"{name}.png" for name in cards.PICTURES]
    files = [file for file in there if file.exists()]
    if files:
        (folder / "figures").mkdir(exist_ok=True)
    for file in files:
        shutil.copyfile(file, folder / "figures" / file.name)
    return [f"figures/{file.name}" for file in files]


def from_pretrained(
    name: str | Path,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Trained:
    """Opens a model from a folder, or by its name on the Hugging Face Hub.

    What was fetched once is opened without a network too.

    Args:
      name: a folder that ``save_pretrained`` has written, or a name such as ``user/vae-digits``.
      revision: branch, tag or commit on the hub; None is its main branch.
      cache_dir: folder in which fetched files are kept; None is the hub's usual one.
      force_download: whether to fetch files that are there already.
      local_files_only: whether to open only what is there already.
      token: token of the hub, for private models.

    Raises ValueError if there is no such model, or if its weights are damaged.

    >>> from jaxvae.uses import pretrained
    >>> model = pretrained.from_pretrained("vae-digits")  # doctest: +SKIP
    >>> images = model.sample(jax.random.key(0), 16)  # doctest: +SKIP
    """
    folder = Path(name)
    if not folder.exists():
        folder = _fetched(
            str(name),
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
    for needed in (CONFIG, weights.FILE):
        if not (folder / needed).exists():
            raise ValueError(f"{name} has no {needed}, which jaxvae export writes")
    return load(folder)


def _fetched(name: str, **given: Any) -> Path:
    """The folder of a model of the hub, which is fetched unless it is there."""
    hub = _hub(f"there is no folder {name}, and the hub")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(NEEDED), **given))
    except Exception as error:  # of the hub's library, or of the one it speaks HTTP by
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"there is no folder {name}, and the hub says: {first}") from error


def check_name(name: str) -> None:
    """Raises ValueError if a name cannot be one of the hub, or if its library is not there."""
    _hub("push_to_hub")
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except ValueError as error:
        raise ValueError(f"{name!r} is no name on the hub, such as user/vae-digits") from error


def _hub(what: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError(f"{what} needs huggingface_hub: pip install 'jaxvae[export]'") from None
    return huggingface_hub


def push_to_hub(
    folder: str | Path,
    name: str,
    private: bool = False,
    branch: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
) -> str:
    """Uploads a folder that ``save_pretrained`` has written, and returns the address of the commit.

    Args:
      folder: the folder.
      name: the model's name on the hub, such as ``user/vae-digits``; it is made if it is not there.
      private: whether a new model is private.
      branch: branch to write to; None is the main branch.
      create_pr: whether to ask for the change by a pull request.
      token: token of the hub; None is the one that ``hf auth login`` has kept.

    Raises ValueError for a folder of another kind, and if the hub refuses.
    """
    for needed in (CONFIG, weights.FILE):
        if not (Path(folder) / needed).exists():
            raise ValueError(f"{folder} has no {needed}: write it by save_pretrained first")
    check_name(name)
    api = _hub("push_to_hub").HfApi(token=token)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        if branch is not None:
            api.create_branch(name, branch=branch, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            revision=branch,
            create_pr=create_pr,
            commit_message="Upload a model of jaxvae",
        )
    except Exception as error:  # of the hub's library, or of the one it speaks HTTP by
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"the hub did not take {name}: {first}") from error
    return str(commit.pr_url or commit.commit_url)
