# SPDX-License-Identifier: Apache-2.0
"""Hugging Face models: keyword inputs, their output classes, and train mode as in the original."""

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    SwinConfig,
    SwinForImageClassification,
    T5Config,
    T5EncoderModel,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
)

from djpq_nncf.capture import argument_names, capture
from djpq_nncf.errors import CaptureError
from tests.capture.helpers import assert_promised_form, assert_same, assert_same_behaviour, run

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 40,
    "max_position_embeddings": 16,
}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40, "n_positions": 16, "bos_token_id": 0}


def tokens(batch: int) -> dict[str, Tensor]:
    mask = torch.ones(batch, 8, dtype=torch.long)
    mask[0, 5:] = 0
    return {"input_ids": torch.randint(0, 40, (batch, 8)), "attention_mask": mask}


def pixels(batch: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(batch, 3, 32, 32)}


def swin() -> nn.Module:
    config = SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=4, drop_path_rate=0.4
    )
    return SwinForImageClassification(config)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], dict[str, Tensor]]]] = {
    "bert": (lambda: BertForSequenceClassification(BertConfig(**SIZES)), tokens),
    "gpt2": (lambda: GPT2LMHeadModel(GPT2Config(**GPT2, eos_token_id=0, use_cache=False)), tokens),
    "llama": (
        lambda: LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1, attention_dropout=0.3, use_cache=False)),
        tokens,
    ),
    "t5": (lambda: T5EncoderModel(T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)), tokens),
    "swin": (swin, pixels),
}


@pytest.fixture(scope="module", params=MODELS)
def captured(request: pytest.FixtureRequest) -> tuple[nn.Module, Any, Callable[[int], dict[str, Tensor]]]:
    build, inputs = MODELS[request.param]
    model = build()
    with warnings.catch_warnings():
        # attention dropout and stochastic depth follow train() and eval(): nothing is lost
        warnings.simplefilter("error")
        return model, capture(model, (), inputs(1)), inputs


def test_same_behaviour(captured: Any) -> None:
    model, gm, inputs = captured
    assert_promised_form(gm)
    assert argument_names(gm) == tuple(inputs(1))
    assert_same_behaviour(model, gm, (), inputs(3))


def test_output_class(captured: Any) -> None:
    model, gm, inputs = captured
    ours, theirs = run(gm, (), inputs(2)), run(model, (), inputs(2))
    assert type(ours) is type(theirs)
    assert pytree.tree_structure(ours) == pytree.tree_structure(theirs)


def test_copies(captured: Any) -> None:
    model, gm, inputs = captured
    kwargs = inputs(2)
    expected = run(model, (), kwargs)
    for copied in (copy.deepcopy(gm), pickle.loads(pickle.dumps(gm))):
        assert_same(run(copied, (), kwargs), expected)
        assert set(copied.state_dict()) == set(model.state_dict())
        copied.load_state_dict(model.state_dict())


def test_dropout_can_be_switched(captured: Any) -> None:
    _, gm, inputs = captured
    gm, kwargs = copy.deepcopy(gm), inputs(2)
    gm.train()
    assert not torch.equal(gm(**kwargs)[0], gm(**kwargs)[0])
    gm.eval()
    assert torch.equal(gm(**kwargs)[0], gm(**kwargs)[0])


def test_compile(captured: Any) -> None:
    _, gm, inputs = captured
    compiled = torch.compile(copy.deepcopy(gm).train(), backend="eager", fullgraph=True)
    assert_same(run(compiled, (), inputs(2), train=True), run(gm, (), inputs(2), train=True), 10.0)


def test_a_cache_cannot_be_returned() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    with pytest.raises(CaptureError, match=r"LlamaForCausalLM returns a DynamicCache.*use_cache=False"):
        capture(model, (), tokens(2))


def test_skipped_layers_are_named() -> None:
    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=20,
        conv_dim=(8, 8),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
    )
    with pytest.warns(UserWarning, match=r"wav2vec2.encoder \(Wav2Vec2Encoder\)\.$"):
        gm = capture(Wav2Vec2ForCTC(config), (), {"input_values": torch.randn(2, 200)})
    assert "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original0" in gm.state_dict()
