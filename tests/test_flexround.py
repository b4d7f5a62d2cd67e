"""Where FlexRound's divisors start."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bitsplit.methods.flexround import Divisors
from bitsplit.network.layers import kind_of
from bitsplit.quantizers import Grid, attach_weight_quantizer, set_weight

GRIDS = {"symmetric": (Grid.symmetric(3), 0), "affine": (Grid.unsigned(3), 4)}


def hardened(ratios, levels, levels_of):
    """The levels of FlexRound before its first iteration; float weights are ``ratios`` steps of 0.5."""
    grid, zero = GRIDS[levels_of]
    layer = nn.Linear(len(ratios), 1)
    weight = 0.5 * torch.tensor([ratios])
    attach_weight_quantizer(layer, grid)
    set_weight(layer, torch.tensor([levels]) + zero, torch.tensor([0.5]), torch.tensor([zero]))
    task = SimpleNamespace(module=layer, kind=kind_of(layer), weight=weight[None])
    Divisors([task], 1e-3, 1e-3).harden()
    quantizer = layer.weight_quantizer
    return (quantizer.codes.int() - zero)[0].tolist()


@pytest.mark.parametrize("levels_of", GRIDS)
class TestStart:
    def test_nearest_stays(self, levels_of):
        nearest = [0, 0, 2, 3, 0]
        assert hardened([0.2, -0.4, 1.6, 9.0, 0.0], nearest, levels_of) == nearest

    def test_levels_an_earlier_method_chose_are_kept(self, levels_of):
        ratios = [0.2, 0.8, 1.6, -1.6, -2.9, 9.0, -0.7]
        chosen = [1, 0, 3, -1, -1, 2, -1]
        assert hardened(ratios, chosen, levels_of) == chosen

    def test_what_has_another_sign_ends_at_zero(self, levels_of):
        assert hardened([0.2, -1.4, 0.0], [-1, 2, 1], levels_of) == [0, 0, 0]
