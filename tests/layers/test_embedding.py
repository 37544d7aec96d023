"""The two ends of the vocabulary, which is no multiple of anything."""

import pytest
import torch

from tilewise.layers.embedding import HEAD_ROW_MULTIPLE, Head, TokenEmbedding


@pytest.mark.parametrize("vocab_size", [1, 127, 128, 300])
def test_padded_rows_never_become_ids_whatever_they_hold(vocab_size: int) -> None:
    head = Head(vocab_size, 16, torch.float32)
    weight = -torch.ones(vocab_size, 16)
    slot = head.slot("weight")
    assert slot.shape == (vocab_size, 16)
    slot.load(weight)
    assert len(head.weight) % HEAD_ROW_MULTIPLE == 0
    assert not head.weight[vocab_size:].any()
    head.weight[vocab_size:] = 1e9
    logits = head(torch.ones(3, 16))
    assert torch.equal(logits, torch.full((3, vocab_size), -16.0))
    assert logits.argmax(-1).max() < vocab_size


def test_rows_beyond_the_tokenizer_are_loaded_and_give_no_logits() -> None:
    head = Head(300, 16, torch.float32, num_logits=290)
    head.slot("weight").load(torch.full((300, 16), 2.0))
    assert torch.equal(head(torch.ones(3, 16)), torch.full((3, 290), 32.0))


def test_logits_are_fp32_after_a_product_in_the_models_dtype() -> None:
    head = Head(300, 16, torch.bfloat16)
    weight, x = (torch.randn(n, 16, generator=torch.Generator().manual_seed(n)).bfloat16() for n in (300, 4))
    head.slot("weight").load(weight)
    assert torch.equal(head(x), (x @ weight.T).float())


def test_a_token_is_its_row() -> None:
    embedding = TokenEmbedding(300, 16, torch.float32)
    table = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    embedding.slot("weight").load(table)
    assert torch.equal(embedding(torch.tensor([299, 0, 299])), table[[299, 0, 299]])


def test_a_tied_head_multiplies_with_the_rows_that_the_embedding_loads() -> None:
    head = Head(300, 16, torch.float32)
    embedding = TokenEmbedding(300, 16, torch.float32, tied=head)
    table = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    embedding.slot("weight").load(table)
    assert embedding.weight is head.weight
    assert torch.equal(embedding(torch.tensor([299, 0])), table[[299, 0]])
    torch.testing.assert_close(head(table[:2]), table[:2] @ table.T)
