"""Weights of pretrained encoders: random ones, a local file, or a name on the hub; safetensors only, since a pickle runs code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from kineflow.contracts import KineflowError
from kineflow.pinned_wheel import is_offline

RANDOM = "random"
_PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".tar")


class WeightsError(KineflowError):
    """Weights that are not there, are not in safetensors, or are of another network."""


def weights_file(weights: str, filenames: Sequence[str], what: str) -> Path | None:
    """Where the weights of `what` lie; None for "random".

    `weights` is "random", the path of a .safetensors file, or a hub name "user/model" (or "user/model@revision") that has one
    of `filenames`. With `HF_HUB_OFFLINE=1` only what is in the local hub cache counts.

    Raises:
        WeightsError: nothing there; names the command that gets it.
    """
    if weights == RANDOM:
        return None
    path = Path(weights).expanduser()
    if path.suffix in _PICKLED:
        raise WeightsError(
            f"{what}: {weights} is a pickle, which can run any code when it is opened; take the .safetensors file of the same "
            'release, or convert it where you trust it: python -c "import sys, torch, safetensors.torch as s; '
            f's.save_file(torch.load(sys.argv[1], weights_only=True), sys.argv[2])" {path} {path.with_suffix(".safetensors")}'
        )
    if path.is_file():
        return path
    name, _, revision = weights.partition("@")
    if path.suffix == ".safetensors" or path.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise WeightsError(
            f"{what}: no file {weights}; weights are '{RANDOM}', the path of a .safetensors file or a hub name 'user/model'"
        )
    return _from_hub(name, revision or None, filenames, what)


def load_weights(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy `state` into `module`, every tensor by its name.

    Raises:
        WeightsError: tensors that are missing, left over or of another shape; names some.
    """
    own = module.state_dict()
    wrong = [
        f"{name} {tuple(own[name].shape)}, not {tuple(v.shape)}"
        for name, v in state.items()
        if name in own and own[name].shape != v.shape
    ]
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    for problem, names in (("lacks", missing), ("has unknown", unknown), ("has other shapes of", wrong)):
        if names:
            raise WeightsError(f"{source} {problem} {names[:3]} ({len(names)} in all): these are the weights of another network")
    module.load_state_dict(dict(state))


def _from_hub(name: str, revision: str | None, filenames: Sequence[str], what: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    reason = ""
    for filename in filenames:
        try:
            return Path(hf_hub_download(name, filename, revision=revision, local_files_only=is_offline()))
        except LocalEntryNotFoundError:  # also an EntryNotFoundError, but of the cache
            reason = "is not in the local hub cache, and HF_HUB_OFFLINE is set"
            if not is_offline():
                reason = "is not in the local hub cache, and the hub cannot be reached"
                break  # each try waits for the network
        except EntryNotFoundError:
            reason = f"has none of {list(filenames)} on the hub (only pickles? take another release)"
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            reason = f"cannot be had from the hub ({str(error).splitlines()[0]})"
            break
    at = f" --revision {revision}" if revision else ""
    raise WeightsError(
        f"{what}: '{name}' {reason}; get it where there is a network: hf download {name} {filenames[0]}{at}; "
        f"or name a .safetensors file, or '{RANDOM}' for untrained weights"
    )
