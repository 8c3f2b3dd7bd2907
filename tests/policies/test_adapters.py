"""Adapters per embodiment: nothing at first, only they are trained, each swaps in and out exactly, small files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kineflow.contracts import KineflowError
from kineflow.policies.adapters import EmbodimentAdapters, LinearAdapter
from kineflow.policies.checkpoint import load_policy
from kineflow.policies.heads.dit import DiT
from kineflow.policies.heads.flag_dit import FlagDiT
from kineflow.policies.heads.mlp import MLP
from kineflow.policies.heads.unet import UNet
from kineflow.policies.objectives import FlowMatching

H, A, N, D = 8, 2, 1, 4
HEADS = [
    MLP(width=128, depth=2),
    DiT(width=64, depth=2, attention_heads=2),
    FlagDiT(width=64, depth=2, attention_heads=2),
    UNet((16, 32), signal_width=32),
]


def inputs(batch: int = 64, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, t = torch.randn(batch, H, A, generator=generator), torch.rand(batch, generator=generator)
    return x, t, torch.randn(batch, N, D, generator=generator)


def head(config: MLP | DiT | FlagDiT | UNet) -> nn.Module:
    """As if trained: nothing is zero."""
    torch.manual_seed(0)
    built = config.build(H, A, (N, D))
    for parameter in built.parameters():
        if parameter.abs().max() == 0:
            nn.init.normal_(parameter, std=0.2)
    return built


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def task_loss(net: nn.Module, offset: float, seed: int) -> torch.Tensor:
    """Flow matching of chunks that a small matrix makes of the condition, moved by `offset`."""
    condition = inputs(seed=seed)[2]
    actions = (condition @ torch.linspace(-1, 1, D * H * A).view(D, H * A)).view(-1, H, A) / 2 + offset
    generator = torch.Generator().manual_seed(seed)
    return FlowMatching().loss(net, actions, condition, generator, torch.ones(64, H)).mean()  # type: ignore[arg-type]


def fit(net: nn.Module, parameters: list[nn.Parameter], offset: float, steps: int) -> None:
    optimiser = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0)
    for step in range(steps):
        optimiser.zero_grad()
        task_loss(net, offset, step).backward()
        optimiser.step()


def validation(net: nn.Module, offset: float) -> float:
    with torch.no_grad():
        return sum(task_loss(net, offset, 1000 + i).item() for i in range(4)) / 4


def test_one_layer_by_hand() -> None:
    """y = (1 + a) W x + b^ + b + s W_up relu(W_down x)."""
    torch.manual_seed(0)
    linear, adapter, x = nn.Linear(3, 5).double(), LinearAdapter(nn.Linear(3, 5).double(), rank=2), torch.randn(7, 3).double()
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    low_rank = adapter.strength * (adapter.up @ torch.relu(adapter.down @ x.T)).T
    expected = (1 + adapter.gain) * (x @ linear.weight.T) + adapter.bias + linear.bias + low_rank
    torch.testing.assert_close(adapter(linear, x, linear(x)), expected, rtol=1e-12, atol=1e-12)
    bare = nn.Linear(3, 5, bias=False).double()
    without = (1 + adapter.gain) * (x @ bare.weight.T) + adapter.bias + low_rank
    torch.testing.assert_close(adapter(bare, x, bare(x)), without, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("config", HEADS, ids=lambda c: type(c).__name__)
def test_a_new_set_changes_nothing(config: MLP | DiT | FlagDiT | UNet) -> None:
    net = head(config)
    expected, before = net(*inputs()), weights(net)
    trainable = list(EmbodimentAdapters(net).add("arm"))
    assert torch.equal(net(*inputs()), expected), "bit for bit"
    assert same(weights(net), before), "the base's checkpoint has the same tensors under the same names"
    net(*inputs()).square().sum().backward()
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(parameter.grad is not None for parameter in trainable)


def test_fine_tuning_moves_the_loss_and_not_the_base() -> None:
    """A base for chunks around 0, an embodiment whose chunks are around 1.5: a twelfth of the weights brings most of it back."""
    net = head(HEADS[0])
    fit(net, list(net.parameters()), 0.0, 100)
    at_home, abroad, before = validation(net, 0.0), validation(net, 1.5), weights(net)
    adapters = EmbodimentAdapters(net, rank=2)
    trainable = list(adapters.add("arm"))
    fit(net, trainable, 1.5, 100)
    assert abroad > 2 * at_home
    assert validation(net, 1.5) < at_home + 0.3 * (abroad - at_home)
    assert same(weights(net), before)
    adapters.use(None)
    assert (validation(net, 0.0), validation(net, 1.5)) == (at_home, abroad)
    assert sum(p.numel() for p in trainable) < sum(p.numel() for p in net.parameters()) / 8


def varied(adapters: EmbodimentAdapters, embodiment: str, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in adapters.add(embodiment):
        nn.init.normal_(parameter, std=0.1)


@pytest.mark.parametrize("config", HEADS, ids=lambda c: type(c).__name__)
def test_switching_swaps_the_behaviour_exactly(config: MLP | DiT | FlagDiT | UNet) -> None:
    net = head(config)
    adapters = EmbodimentAdapters(net)
    answers: dict[str | None, torch.Tensor] = {None: net(*inputs())}
    for seed, embodiment in enumerate(("arm", "hand")):
        varied(adapters, embodiment, seed)
        answers[embodiment] = net(*inputs())
    assert (answers["arm"] - answers["hand"]).abs().max() > 1e-3
    assert (answers["arm"] - answers[None]).abs().max() > 1e-3
    for embodiment in ("hand", None, "arm", "hand"):
        adapters.use(embodiment)
        assert torch.equal(net(*inputs()), answers[embodiment])


def test_training_one_embodiment_leaves_the_other() -> None:
    net = head(HEADS[0])
    adapters = EmbodimentAdapters(net)
    varied(adapters, "arm", 0)
    arm = weights(adapters.sets["arm"])
    fit(net, list(adapters.add("hand")), 1.0, 3)
    assert same(weights(adapters.sets["arm"]), arm)


def test_saved_beside_the_base_and_loaded_exactly(tmp_path: Path) -> None:
    net = head(HEADS[0])
    adapters = EmbodimentAdapters(net, rank=2)
    varied(adapters, "arm", 0)
    expected = net(*inputs())
    file = adapters.save("arm", tmp_path)
    assert file == tmp_path / "adapters" / "arm.safetensors"
    assert file.stat().st_size < 0.3 * sum(4 * p.numel() for p in net.parameters())
    fresh = head(HEADS[0])
    again = EmbodimentAdapters(fresh, rank=2)
    again.load("arm", tmp_path)
    assert torch.equal(fresh(*inputs()), expected)
    again.load("arm", tmp_path)  # over the one that is there
    assert torch.equal(fresh(*inputs()), expected)


def test_sets_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    net = head(HEADS[0])
    adapters = EmbodimentAdapters(net, rank=2)
    varied(adapters, "arm", 0)
    file = adapters.save("arm", tmp_path)
    other = head(HEADS[0])
    with torch.no_grad():
        next(other.parameters()).mul_(1.001)
    with pytest.raises(KineflowError, match=r"arm\.safetensors: was trained for base \w{12}, this network has base \w{12}"):
        EmbodimentAdapters(other, rank=2).load("arm", tmp_path)
    with pytest.raises(KineflowError, match="was trained for rank 2, this network has rank 3"):
        EmbodimentAdapters(head(HEADS[0]), rank=3).load("arm", tmp_path)
    with pytest.raises(KineflowError, match="cannot be read"):
        adapters.load("hand", tmp_path)
    save_file(load_file(file), file)  # without its metadata
    with pytest.raises(KineflowError, match="was trained for rank None"):
        adapters.load("arm", tmp_path)
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(KineflowError, match="cannot be read"):
        adapters.load("arm", tmp_path)


def test_names_and_sizes_that_cannot_be() -> None:
    adapters = EmbodimentAdapters(head(HEADS[0]))
    adapters.add("arm")
    with pytest.raises(KineflowError, match="no adapters for embodiment 'hnad'; there are arm"):
        adapters.use("hnad")
    with pytest.raises(KineflowError, match="'arm' is there already"):
        adapters.add("arm")
    for name in ("../x", "a.b", ""):
        with pytest.raises(KineflowError, match="is no file name"):
            adapters.add(name)
    with pytest.raises(KineflowError, match="found 0"):
        EmbodimentAdapters(nn.Conv1d(2, 2, 3))
    with pytest.raises(KineflowError, match="rank 0"):
        EmbodimentAdapters(nn.Sequential(nn.Linear(2, 2)), rank=0)


def test_a_trained_policy_takes_adapters(trained: Path, tmp_path: Path) -> None:
    """Around encoder and head of a loaded checkpoint; what the policy then saves is still the base, and loads as one."""
    policy = load_policy(trained)
    adapters = EmbodimentAdapters(policy.network)
    varied(adapters, "arm", 0)
    policy.save_pretrained(tmp_path)
    adapters.save("arm", tmp_path)
    base = load_policy(tmp_path)
    assert same(weights(base.network), weights(load_policy(trained).network))
    EmbodimentAdapters(base.network).load("arm", tmp_path)
    x, t = torch.randn(2, 8, 2), torch.rand(2)
    condition = torch.randn(2, *policy.network.encoder.token_shape)
    assert torch.equal(base.network.head(x, t, condition), policy.network.head(x, t, condition))
    assert not torch.equal(base.network.head(x, t, condition), load_policy(trained).network.head(x, t, condition))
