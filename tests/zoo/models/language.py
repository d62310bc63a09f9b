# SPDX-License-Identifier: Apache-2.0
"""Text and speech models of Hugging Face, built from configurations: nothing is downloaded."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    CLIPConfig,
    CLIPModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
)

from tests.zoo.models.inputs import example, image, padding_mask, tokens
from tests.zoo.registry import Example, add

VOCABULARY = 1000
SMALL_VOCABULARY = 50


def _text(
    model: type[PreTrainedModel], config: PreTrainedConfig, length: int, *, attention: str = "sdpa", **inputs: Any
) -> Example:
    config._attn_implementation = attention
    ids = tokens(length, config.vocab_size)
    return example(model(config), input_ids=ids, **inputs)


def _encoder(
    name: str, model: type[PreTrainedModel], config: Callable[..., PreTrainedConfig], *, attention: str = "sdpa"
) -> None:
    """Six layers of width 256, or two of width 32; the second sequence of the batch is padded."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    if config is DistilBertConfig:
        names = ("dim", "n_layers", "n_heads", "hidden_dim")
    full = config(vocab_size=VOCABULARY, **dict(zip(names, (256, 6, 4, 1024), strict=True)))
    small = config(vocab_size=SMALL_VOCABULARY, **dict(zip(names, (32, 2, 4, 64), strict=True)))
    add(
        name,
        "BERT",
        full=lambda: _text(model, full, 64, attention=attention, attention_mask=padding_mask(64)),
        small=lambda: _text(model, small, 12, attention=attention, attention_mask=padding_mask(12)),
    )


def _llama(length: int, **options: Any) -> Example:
    return _text(LlamaForCausalLM, LlamaConfig(use_cache=False, **options), length)


def _gpt2(length: int, **options: Any) -> Example:
    return _text(GPT2LMHeadModel, GPT2Config(use_cache=False, **options), length)


def _t5(length: int, **options: Any) -> Example:
    config = T5Config(use_cache=False, **options)
    return _text(T5ForConditionalGeneration, config, length, decoder_input_ids=tokens(length // 2, config.vocab_size))


def _clip(side: int, text: dict[str, Any], vision: dict[str, Any], **options: Any) -> Example:
    config = CLIPConfig(text_config=text, vision_config=vision, **options)
    return example(CLIPModel(config), input_ids=tokens(16, text["vocab_size"]), pixel_values=image(side))


def _speech(samples: int, **options: Any) -> Example:
    return example(Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=32, **options)), input_values=_waveform(samples))


def _waveform(samples: int) -> Tensor:
    return torch.randn(2, samples)


_encoder("bert", BertForSequenceClassification, BertConfig)
_encoder("bert_eager", BertForSequenceClassification, BertConfig, attention="eager")
_encoder("distilbert", DistilBertForSequenceClassification, DistilBertConfig)
_encoder("roberta", RobertaForSequenceClassification, RobertaConfig)
add(
    "llama",
    "Llama",
    full=partial(
        _llama,
        64,
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
    ),
    small=partial(
        _llama,
        12,
        vocab_size=SMALL_VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
)
add(
    "gpt2",
    "GPT-2",
    full=partial(_gpt2, 64, vocab_size=VOCABULARY, n_embd=256, n_layer=6, n_head=8),
    small=partial(_gpt2, 12, vocab_size=SMALL_VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=32),
)
add(
    "t5",
    "T5",
    full=partial(_t5, 64, vocab_size=VOCABULARY, d_model=256, d_kv=32, d_ff=1024, num_layers=6, num_heads=8),
    small=partial(_t5, 12, vocab_size=SMALL_VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
)
_CLIP_TEXT = {"vocab_size": SMALL_VOCABULARY, "max_position_embeddings": 16, "eos_token_id": 49}
add(
    "clip",
    "CLIP",
    full=partial(
        _clip,
        224,
        {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 1024, **_CLIP_TEXT},
        {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 1024},
    ),
    small=partial(
        _clip,
        32,
        {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48, **_CLIP_TEXT},
        {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "image_size": 32,
            "patch_size": 8,
        },
        projection_dim=24,
    ),
)
_SPEECH = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 1024}
_SMALL_SPEECH = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16, 16, 24),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 2),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
add("wav2vec2", "Wav2Vec2", full=partial(_speech, 16000, **_SPEECH), small=partial(_speech, 400, **_SMALL_SPEECH))
_STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
add(
    "wav2vec2_layer_norm",
    "Wav2Vec2",
    full=partial(_speech, 16000, **_SPEECH, **_STABLE),
    small=partial(_speech, 400, **_SMALL_SPEECH, **_STABLE),
)
