from __future__ import annotations

import pytest
import torch

from truing.testing import FakeWeights, preference_rows, tiny_model, tiny_tokenizer

ARCHITECTURES = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gpt2", "bloom", "falcon", "gpt_neox"]


def test_any_text_decodes_to_itself():
    tokenizer = tiny_tokenizer()
    text = "".join(map(chr, range(128))) + "é漢😀 <|im_start|>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer) == 260


def test_special_tokens():
    tokenizer = tiny_tokenizer()
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token) == (0, 1, "<|im_end|>")
    assert tokenizer.encode("a<|im_end|>") == [tokenizer.encode("a")[0], tokenizer.eos_token_id]
    assert tokenizer.decode(tokenizer.encode("a<|im_end|>"), skip_special_tokens=True) == "a"
    assert tiny_tokenizer(add_bos=True).encode("a") == [1, *tokenizer.encode("a")]


def test_chat_template():
    tokenizer = tiny_tokenizer()
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
    )
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    counted = [token for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(counted) == "Yo<|im_end|>"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_models_are_small_repeatable_and_depend_on_the_context(architecture):
    tokenizer = tiny_tokenizer()
    ids = torch.tensor([tokenizer.encode("hello"), tokenizer.encode("jello")])
    model = tiny_model(tokenizer, architecture=architecture, dtype=torch.float64)
    logits = model(ids).logits
    assert (model.config.model_type, model.training, logits.dtype) == (architecture, False, torch.float64)
    assert sum(parameter.numel() for parameter in model.parameters()) < 100_000
    assert (logits[0, -1] - logits[1, -1]).abs().max() > 0.01
    assert torch.equal(tiny_model(tokenizer, architecture=architecture, dtype=torch.float64)(ids).logits, logits)
    other = tiny_model(tokenizer, architecture=architecture, dtype=torch.float64, seed=1)(ids).logits
    assert not torch.allclose(other, logits)


def test_sizes_and_further_fields_reach_the_configuration():
    model = tiny_model(hidden_size=16, layers=1, heads=2, kv_heads=1, vocab_size=50, max_positions=64, tie_word_embeddings=True)
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (16, 1, 2, 1)
    assert (config.vocab_size, config.max_position_embeddings) == (50, 64)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tiny_model(architecture="mistral").config.sliding_window == 16


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    tiny_model()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_preference_rows():
    rows = preference_rows(20)
    assert rows == preference_rows(20) and rows != preference_rows(20, seed=1)
    for row in rows:
        a, b = map(int, row["prompt"].rstrip("=").split("+"))
        assert int(row["chosen"]) == a + b != int(row["rejected"])


def test_fake_weights_are_those_of_the_model():
    model = tiny_model()
    weights = dict(FakeWeights(model).parameters())
    assert weights.keys() == dict(model.named_parameters()).keys()
    assert not any(tensor.requires_grad for tensor in weights.values())
    assert FakeWeights(model).adapter() is None
