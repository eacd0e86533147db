"""The list of composite operators is the one that torch makes, and torch takes it."""

from __future__ import annotations

from unittest.mock import patch

import torch
from torch import nn
from torch._export import utils
from torch.export import exported_program

from mmpack.multimethod.compile import composites


def test_the_list_is_the_one_that_torch_makes() -> None:
    theirs = utils._collect_all_valid_cia_ops()
    assert len(theirs) > 300
    assert composites.composites() == theirs


def test_an_operator_that_is_registered_later_is_on_it() -> None:
    library = torch.library.Library("mmpack_test_composites", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x + x, "CompositeImplicitAutograd")
    twice = torch.ops.mmpack_test_composites.twice.default
    assert twice in composites.composites()
    assert composites.composites() == utils._collect_all_valid_cia_ops()


def test_torch_takes_it_in_the_block_and_its_own_outside() -> None:
    program = torch.export.export(nn.Softmax(-1), (torch.ones(2, 3),), strict=False)
    with patch.object(composites, "composites", wraps=composites.composites) as listed:
        with composites.composites_listed_once():
            inside = program.run_decompositions({})
        assert listed.called
        listed.reset_mock()
        assert str(program.run_decompositions({}).graph) == str(inside.graph)
        assert not listed.called
    assert exported_program._collect_all_valid_cia_ops is utils._collect_all_valid_cia_ops
