"""A Llama of any size from its configuration, with new weights: to try what is meant for a large one, without the Hub."""

from __future__ import annotations

from torch import nn


def build(
    vocab: int,
    width: int = 128,
    depth: int = 4,
    heads: int = 4,
    kv_heads: int | None = None,
    hidden: int | None = None,
    context: int = 1024,
    attention: str = "sdpa",
) -> nn.Module:
    """transformers' LlamaForCausalLM: `input_ids` (batch, time) and `position_ids` -> `logits` (batch, time, vocab).

    `hidden`, of the feed-forward layers, is 8/3 of `width` by default, rounded up to a multiple of 32; `kv_heads` is `heads`.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=hidden or -(-8 * width // 96) * 32,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or heads,
        max_position_embeddings=context,
        attn_implementation=attention,
        bos_token_id=None,
        eos_token_id=None,
    )
    model: nn.Module = LlamaForCausalLM(config)
    return model.train()
