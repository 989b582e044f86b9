"""What is seen inside a stack, in every family: the walk's own states, and projections of the right tokens with their graph."""

import pytest
import torch

from fewtune.backbone import tiny, turns, watch
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.families import FAMILIES
from fewtune.deltas.lora import LoRA


@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_the_last_blocks_projections(family):
    backbone = Backbone(*tiny.model(family, blocks=4), name=family)
    ids_BT = torch.randint(10, 120, (3, 6), generator=torch.Generator().manual_seed(1))
    mask_BT = (torch.arange(6) < torch.tensor([6, 3, 5])[:, None]).long()
    LoRA(rank=1, sites=watch.RELATED).install(backbone, generator=torch.Generator().manual_seed(0))
    with watch.inside(backbone) as seen:
        for _ in range(2):  # the latest batch only
            output = backbone.forward(ids_BT, mask_BT)
        walked = list(backbone.layers(ids_BT, mask_BT))[1:]
    assert len(seen.states) == backbone.depth
    assert all(torch.equal(one, other) for one, other in zip(seen.states, walked, strict=True))
    assert torch.equal(backbone.norm(seen.states[-1]), output.hidden_BTD)
    for name in watch.RELATED:
        (site,) = [site for site in backbone.sites(name) if site.block == backbone.order[-1]]
        assert seen.last[name].shape == (3, 6, site.stop - site.start) and seen.last[name].requires_grad
    before = seen.states
    backbone.forward(ids_BT, mask_BT)
    assert seen.states is before  # nothing is written down afterwards


def test_rows_of_unlike_lengths_are_seen_together():
    backbone = Backbone(*tiny.model("bert", blocks=2), name="bert")
    ids_BT = torch.randint(10, 120, (3, 90), generator=torch.Generator().manual_seed(1))
    mask_BT = (torch.arange(90) < torch.tensor([4, 90, 5])[:, None]).long()
    assert turns.by_length(mask_BT)
    before = backbone.forward(ids_BT, mask_BT).hidden_BTD
    with watch.inside(backbone) as seen:
        output = backbone.forward(ids_BT, mask_BT)
        assert [states.shape[:2] for states in (*seen.states, *seen.last.values())] == [(3, 90)] * 5
        torch.testing.assert_close(backbone.norm(seen.states[-1])[mask_BT.bool()], output.hidden_BTD[mask_BT.bool()])
    torch.testing.assert_close(output.hidden_BTD[mask_BT.bool()], before[mask_BT.bool()])
    assert torch.equal(backbone.forward(ids_BT, mask_BT).hidden_BTD, before)  # they take turns again
