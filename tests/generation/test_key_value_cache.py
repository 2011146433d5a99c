"""A cache with room for more tokens holds what transformers' own holds, and does not copy it for each token."""

import torch
from transformers import DynamicCache

from tsugiki.generation import GrowingCache


def states(rows: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 2, tokens, 4), torch.randn(rows, 2, tokens, 6)


def test_it_holds_what_a_dynamic_cache_holds():
    ours, theirs = GrowingCache(), DynamicCache()

    def add(rows: int, *counts: int) -> None:
        for tokens in counts:
            for layer in range(2):
                new = states(rows, tokens)
                found, expected = ours.update(*new, layer), theirs.update(*new, layer)
                assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
            assert ours.get_seq_length() == theirs.get_seq_length()

    def change(function) -> None:
        for cache in (ours, theirs):
            for layer in cache.layers:
                layer.keys, layer.values = function(layer.keys), function(layer.values)

    add(3, 5, 1, 1, 90, 1, 1)
    change(lambda part: part[[0, 2]])  # a row leaves
    add(2, 1)
    change(lambda part: part[:, :, 3:])  # padding that all rows have
    add(2, 1)
    change(lambda part: torch.cat([part, part]))  # rows join
    add(4, 1)
    for cache in (ours, theirs):
        cache.crop(-2)
    add(4, 70)
    for cache in (ours, theirs):
        cache.reset()
    add(1, 3)


def test_a_token_is_written_behind_the_others():
    cache, places = GrowingCache(), []
    cache.update(*states(1, 10), 0)
    for _ in range(120):
        keys, values = cache.update(*states(1, 1), 0)
        places.append((keys.data_ptr(), values.data_ptr()))
    assert [len(set(places[:60])), len(set(places))] == [1, 2]
