"""Checkpoints on the Hugging Face hub, offline mode honoured (`HF_HUB_OFFLINE=1`: only what is in the local cache)."""

from __future__ import annotations

from pathlib import Path

from kineflow.contracts import KineflowError


class HubError(KineflowError):
    """A hub name that leads to no checkpoint."""


def download(name: str, revision: str | None) -> Path:
    """The local folder of the model `user/model`, fetched if need be; raises HubError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, ignore_patterns=["train_state/*"]))
    except LocalEntryNotFoundError as error:
        raise HubError(
            f"'{name}' is neither a folder nor in the local hub cache, and the hub cannot be reached: {error}"
        ) from error
    except (RepositoryNotFoundError, HfHubHTTPError, HFValidationError) as error:
        raise HubError(f"'{name}' is neither a folder nor a model on the hub: {error}") from error


def upload(folder: Path, name: str, *, private: bool) -> str:
    """Upload `folder` as the model `user/model`; returns its address. Needs a login (`hf auth login`)."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(name, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=name, folder_path=folder))
