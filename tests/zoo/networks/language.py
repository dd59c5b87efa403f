"""Language models: encoders, encoder-decoders and decoders of transformers, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.subject import Example

VOCABULARY, LENGTH = 96, 12


def tokens(num: int = 8, length: int = LENGTH) -> Tensor:
    return torch.randint(4, VOCABULARY, (num, length))


def text(num: int = 8) -> dict[str, Tensor]:
    """Token ids of sentences of several lengths, and their mask."""
    mask = (torch.arange(LENGTH) < torch.randint(LENGTH // 2, LENGTH + 1, (num, 1))).long()
    return {"input_ids": tokens(num) * mask, "attention_mask": mask}


def small(**others: Any) -> dict[str, Any]:
    """Sizes of BERT-like configurations."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    return {**sizes, "vocab_size": VOCABULARY, "max_position_embeddings": 32, **others}


def bert() -> Example:
    """transformers: BERT, classification of sentences with padding."""
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(**small(num_hidden_layers=2), num_labels=3)), text()


def albert() -> Example:
    """transformers: ALBERT, one layer called several times."""
    from transformers import AlbertConfig, AlbertForSequenceClassification

    config = AlbertConfig(**small(num_hidden_layers=2), embedding_size=16, num_labels=3)
    return AlbertForSequenceClassification(config), text()


def distilbert() -> Example:
    """transformers: DistilBERT, classification of tokens."""
    from transformers import DistilBertConfig, DistilBertForTokenClassification

    config = DistilBertConfig(vocab_size=VOCABULARY, dim=32, n_layers=1, n_heads=4, hidden_dim=64, num_labels=5)
    return DistilBertForTokenClassification(config), text()


def roberta() -> Example:
    """transformers: RoBERTa, answers as spans: two outputs."""
    from transformers import RobertaConfig, RobertaForQuestionAnswering

    return RobertaForQuestionAnswering(RobertaConfig(**small())), text()


def deberta() -> Example:
    """transformers: DeBERTa with disentangled attention."""
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    config = DebertaV2Config(
        **small(), relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"], num_labels=3,
        norm_rel_ebd="layer_norm", share_att_key=True,
    )  # fmt: skip
    return DebertaV2ForSequenceClassification(config), text()


def modernbert() -> Example:
    """transformers: ModernBERT with rotary positions, local attention and gated layers."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    config = ModernBertConfig(
        **small(num_hidden_layers=2), pad_token_id=0, local_attention=4, attn_implementation="eager"
    )
    return ModernBertForMaskedLM(config), text()


def t5() -> Example:
    """transformers: T5 with relative positions and its own root-mean-square norms."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, use_cache=False,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return T5ForConditionalGeneration(config), {**text(), "decoder_input_ids": tokens(length=6)}


def bart() -> Example:
    """transformers: BART, encoder and decoder."""
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=VOCABULARY, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=32, use_cache=False,
    )  # fmt: skip
    return BartForConditionalGeneration(config), {**text(), "decoder_input_ids": tokens(length=6)}


class Translator(nn.Module):
    """``nn.Transformer`` between embeddings, with causal and padding masks."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width, padding_idx=0)
        self.positions = nn.Parameter(torch.randn(LENGTH, width) * 0.1)
        self.transformer = nn.Transformer(width, 4, 1, 1, 64, batch_first=True)
        self.logits = nn.Linear(width, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        padding = source == 0
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        encoded, decoded = (self.embedding(x) + self.positions[: x.shape[1]] for x in (source, target))
        masks = {"src_key_padding_mask": padding, "memory_key_padding_mask": padding}
        return self.logits(self.transformer(encoded, decoded, tgt_mask=causal, tgt_is_causal=True, **masks))


def translator() -> Example:
    """torch: nn.Transformer with causal and padding masks."""
    return Translator(), (text()["input_ids"], tokens(length=6))


def gpt2() -> Example:
    """transformers: GPT-2, the layers of which are Conv1D."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=32, n_layer=1, n_head=4, use_cache=False)
    return GPT2LMHeadModel(config), text()


def decoder(**others: Any) -> dict[str, Any]:
    """Sizes of Llama-like configurations."""
    return {**small(), "num_key_value_heads": 2, "use_cache": False, "pad_token_id": 0, **others}


def llama() -> Example:
    """transformers: Llama with grouped queries, rotary positions, root-mean-square norms and gated layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**decoder())), text()


def gemma() -> Example:
    """transformers: Gemma 2, norms with an offset, capped scores, sliding windows, tied embeddings."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(**decoder(num_hidden_layers=2), head_dim=8, sliding_window=4, attn_implementation="eager")
    return Gemma2ForCausalLM(config), text()


def opt() -> Example:
    """transformers: OPT with learned positions and ReLU."""
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, ffn_dim=64, num_attention_heads=4,
        max_position_embeddings=32, word_embed_proj_dim=32, use_cache=False,
    )  # fmt: skip
    return OPTForCausalLM(config), text()


def bloom() -> Example:
    """transformers: BLOOM with linear position biases."""
    from transformers import BloomConfig, BloomForCausalLM

    config = BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=1, n_head=4, use_cache=False)
    return BloomForCausalLM(config), text()


def mixtral() -> Example:
    """transformers: Mixtral, a mixture of four experts in each layer."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(**decoder(), num_local_experts=4, num_experts_per_tok=2)
    return MixtralForCausalLM(config), text()


def mamba() -> Example:
    """transformers: Mamba, selective state spaces by a sequential scan."""
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(
        vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=1, time_step_rank=4, use_cache=False,
    )  # fmt: skip
    return MambaForCausalLM(config), {"input_ids": tokens(length=6)}


def rwkv() -> Example:
    """transformers: RWKV, a linear recurrence over keys and values."""
    from transformers import RwkvConfig, RwkvForCausalLM

    config = RwkvConfig(
        vocab_size=VOCABULARY, hidden_size=16, attention_hidden_size=16, num_hidden_layers=2, intermediate_size=32,
        use_cache=False,
    )  # fmt: skip
    return RwkvForCausalLM(config), {"input_ids": tokens(length=6)}
