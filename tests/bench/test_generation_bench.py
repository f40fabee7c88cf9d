"""The peers compute what we compute."""

import pytest
import torch

from bench import generation
from bench.machine import memory_of
from jetkern.model.decoder import Decoder, decoder_preset
from jetkern.packed import Packed


def test_the_peers_block_is_ours() -> None:
    torch.manual_seed(0)
    decoder = Decoder(decoder_preset("omnijet", classes=(11,), dim=32))
    tokens = torch.randint(11, (2, 5))
    x = decoder.embeddings[0](tokens)
    for block in decoder.blocks:
        x = generation._block(block, x, generation._causal)
    want = decoder(tokens.view(-1, 1), Packed(torch.tensor([0, 5, 10])))
    torch.testing.assert_close(x.flatten(0, 1), want)


def test_the_peers_follow_the_law_of_the_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(generation, "POINTS", 6)
    decoder = Decoder(decoder_preset("omnijet", classes=(3,), dim=16, layers=1))
    with torch.no_grad():
        for p in decoder.heads.parameters():
            p.zero_()
        decoder.heads[0].bias[-1] = torch.tensor(3.0).log()  # an end with probability a half
    for peer in (generation.cached, generation.published):
        found = peer(decoder, 2000)
        assert float((found == 0).double().mean()) == pytest.approx(0.5, abs=0.05)
        assert int(found.max()) == 6


def test_memory_is_what_a_call_adds_at_its_highest() -> None:
    def call() -> None:
        for _ in range(2):
            torch.ones(80 * 2**18)  # 80 MB, given back

    assert memory_of(call) == pytest.approx(80, abs=15)
    with pytest.raises(RuntimeError, match="ended with 1"):
        memory_of(lambda: torch.ones(2)[3])
