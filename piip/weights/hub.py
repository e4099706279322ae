"""Models on a hub that speaks Hugging Face's protocol: `hub:org/name`, perhaps with `@revision`."""

from __future__ import annotations

from pathlib import Path

from piip.errors import MissingFile, PiipError, first_line

PREFIX = "hub:"
# What a pack holds, see `piip.pack`; nothing else is fetched.
FILES = ("config.yaml", "model.safetensors", "metrics.json", "README.md")


def is_on_hub(name: str | Path) -> bool:
    return str(name).startswith(PREFIX)


def fetch(name: str | Path) -> Path:
    """The folder of a model, fetched or from the cache. Raises MissingFile with the hub's reason."""
    from huggingface_hub import snapshot_download

    repository, _, revision = str(name).removeprefix(PREFIX).partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(FILES)))
    except Exception as error:  # of the hub's, of its HTTP library's and of the system's classes
        raise MissingFile(f"cannot fetch {name}: {first_line(error)}") from error


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Uploads a pack as one commit, and makes the repository where there is none. Returns its address.

    Raises PiipError with the hub's reason; `hf auth login` or HF_TOKEN gives the right to write.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=list(FILES))
    except Exception as error:
        raise PiipError(f"cannot push to {repository}: {first_line(error)}; {folder} is complete") from error
    return str(address)
