"""The feature store gives back the same bits, in memory and on disk, and frees what nobody reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bitsplit.calibration import memory
from bitsplit.calibration.features import FeatureStore
from bitsplit.calibration.forecast import Forecast
from bitsplit.calibration.memory import SMALL, Slabs

CPU = torch.device("cpu")
TREES = [
    torch.randn(3, 4, 5),
    torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    (torch.randn(2, 2), [torch.arange(5), "text", None]),
    {"a": torch.randn(7).to(torch.bfloat16), "b": torch.tensor([True, False])},
    torch.zeros(0, 3),
    torch.tensor(2.5),
]


def assert_same(left: object, right: object) -> None:
    leaves, spec = torch.utils._pytree.tree_flatten(left)
    others, other_spec = torch.utils._pytree.tree_flatten(right)
    assert spec == other_spec
    for leaf, other in zip(leaves, others, strict=True):
        if isinstance(leaf, torch.Tensor):
            assert leaf.dtype == other.dtype
            assert torch.equal(leaf, other)
        else:
            assert leaf == other


@pytest.mark.parametrize("budget", [0, 100, 1 << 30])
def test_values_come_back_whatever_the_budget(budget: int, tmp_path: Path) -> None:
    store = FeatureStore(budget, tmp_path)
    for number, tree in enumerate(TREES):
        store.put(number, tree, CPU)
    for number, tree in enumerate(TREES):
        assert_same(store.get(number), tree)
    assert store.in_memory <= budget
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_small_tensors_lie_side_by_side_and_keep_their_values() -> None:
    slabs = Slabs("pageable")
    tensors = [torch.full((n, 3), float(n)).T for n in range(1, 400)] + [torch.rand(SMALL // 4 - 1)] * 5
    placed = [slabs.place(tensor) for tensor in tensors]
    assert len({tensor.untyped_storage().data_ptr() for tensor in placed}) == 2
    assert all(torch.equal(*pair) for pair in zip(placed, tensors, strict=True))
    assert placed[7].stride() == tensors[7].stride()


def test_a_caller_may_change_what_it_gets(tmp_path: Path) -> None:
    store = FeatureStore(1 << 20, tmp_path)
    kept = torch.ones(4)
    store.put("x", kept, CPU)
    kept.zero_()
    store.get("x").fill_(7)
    assert torch.equal(store.get("x"), torch.ones(4))


@pytest.mark.parametrize("budget", [0, 1 << 30])
def test_released_features_take_no_room_but_keep_their_shape(budget: int, tmp_path: Path) -> None:
    store = FeatureStore(budget, tmp_path)
    store.put("x", (torch.ones(10, 10), 3), CPU)
    hollow, number = store.shape_only("x")
    assert hollow.shape == (10, 10) and number == 3 and not hollow.any()
    store.release("x")
    assert store.in_memory == 0
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) == 0
    assert store.shape_only("x")[0].shape == (10, 10)


def kept_for_a_gpu(store: FeatureStore) -> list[torch.Tensor]:
    """Puts all trees from and for a GPU, checks what comes back; where they lie."""
    device = torch.device("cuda")
    for number, tree in enumerate(TREES):
        store.put(number, torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.cuda, tree), device)
    for number, tree in enumerate(TREES):
        back = store.get(number)
        assert all(leaf.is_cuda for leaf in torch.utils._pytree.tree_leaves(back) if torch.is_tensor(leaf))
        assert_same(torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.cpu, back), tree)
    return [leaf for leaves, _, _ in store._trees.values() for leaf in leaves if torch.is_tensor(leaf)]


@pytest.mark.cuda
@pytest.mark.parametrize("budget", [0, 100, 1 << 30])
def test_what_a_full_gpu_reads_again_lies_in_pinned_memory(budget: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "LEFT_FREE", 1.0)
    store = FeatureStore(budget, tmp_path)
    assert all(leaf.is_pinned() for leaf in kept_for_a_gpu(store) if leaf.numel())
    assert store.in_memory <= budget and store.on_card == 0
    store.close()


@pytest.mark.cuda
def test_what_a_gpu_reads_again_lies_there_while_it_has_room(tmp_path: Path) -> None:
    store = FeatureStore(0, tmp_path)
    assert all(leaf.is_cuda for leaf in kept_for_a_gpu(store))
    assert store.on_card > 0 and list(tmp_path.iterdir()) == []
    for number in range(len(TREES)):
        store.release(number)
    assert store.on_card == 0


def test_the_forecast_in_words():
    gib = 2**30
    on_a_card = Forecast(features=6 * gib, on_card=3 * gib, on_disk=gib, fitting=0, layer="")
    assert str(on_a_card) == "features: 2.00 GiB in memory, 1.00 GiB on disk, 3.00 GiB on the card"
    elsewhere = Forecast(features=gib, on_card=0, on_disk=0, fitting=gib // 2, layer="fc")
    assert str(elsewhere) == "features: 1.00 GiB in memory, 0.00 GiB on disk; largest layer: 0.50 GiB (fc)"
