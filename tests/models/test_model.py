"""Listing, reading and replacing layers; ties; copies that share values but nothing else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tersor.errors import InvalidArgument
from tersor.models import Model
from tersor.weights import CompressedLinear, DenseWeight, ZeroWeight

TOKENS = torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(0))

LINEARS = {"llama": 3 * 7, "gpt2": 3 * 4, "opt": 3 * 6 + 2, "qwen2": 3 * 7 + 1, "bert": 3 * 6 + 1, "bert-encoder": 3 * 6 + 1}
TIED = {"llama": True, "gpt2": True, "opt": True, "qwen2": False, "bert": True, "bert-encoder": False}


def test_linears_count_an_untied_head_and_no_tied_one(model: Model):
    assert len(model.linears()) == LINEARS[model.name]
    assert model.tied == TIED[model.name]
    assert len(model.embeddings()) == 1


def test_matrix_is_what_the_layer_multiplies_by(model: Model):
    generator = torch.Generator().manual_seed(0)
    for name, layer in model.linears().items():
        out_features, in_features = model.shape(name)
        x = torch.randn(4, in_features, generator=generator)
        bias = layer.bias if layer.bias is not None else torch.zeros(out_features)
        torch.testing.assert_close(layer(x), x @ model.matrix(name).T + bias, atol=1e-6, rtol=1e-5)


def test_replacing_every_layer_by_its_own_values_changes_nothing(tiny: SimpleNamespace, model: Model):
    before = tiny.outputs(model, TOKENS)
    n_parameters = model.n_parameters
    for name in (*model.linears(), *model.embeddings()):
        model.replace(name, DenseWeight(model.matrix(name)))
    torch.testing.assert_close(tiny.outputs(model, TOKENS), before, atol=1e-5, rtol=1e-5)
    assert set(model.weights()) == set(model.linears()) | set(model.embeddings())
    assert model.tied == TIED[model.name]
    assert model.n_parameters == n_parameters


def test_replacing_the_table_moves_the_tied_head_with_it(tiny: SimpleNamespace):
    model = tiny.model("bert")
    (table,) = model.embeddings()
    weight = tiny.rounded(model.matrix(table))
    model.replace(table, weight)
    head = model.module.get_output_embeddings()
    assert head.weight is weight
    assert head.bias is model.module.cls.predictions.bias
    assert "cls.predictions.decoder" not in model.linears()


def test_the_name_of_a_tied_head_means_the_table(tiny: SimpleNamespace, llama: Model):
    weight = tiny.rounded(llama.matrix("lm_head"))
    llama.replace("lm_head", weight)
    assert llama.weights() == {"model.embed_tokens": weight}
    assert llama.module.model.embed_tokens.weight is llama.module.lm_head.weight


def test_replacing_twice_keeps_the_bias(tiny: SimpleNamespace):
    model = tiny.model("gpt2")
    name = "transformer.h.1.mlp.c_fc"
    bias = model.linears()[name].bias
    for _ in range(2):
        model.replace(name, tiny.rounded(model.matrix(name)))
    assert isinstance(model.linears()[name], CompressedLinear)
    assert model.linears()[name].bias is bias


def test_unknown_layers_and_wrong_shapes_are_refused(llama: Model):
    with pytest.raises(InvalidArgument, match=r"no layer 'nothing'; its layers are model\.layers\.0"):
        llama.matrix("nothing")
    name = next(iter(llama.linears()))
    with pytest.raises(InvalidArgument, match="shape"):
        llama.replace(name, ZeroWeight((3, 3)))
    llama.replace(name, ZeroWeight(llama.shape(name)))
    with pytest.raises(InvalidArgument, match="shape"):
        llama.replace(name, ZeroWeight((3, 3)))


def test_a_copy_shares_values_and_nothing_else(tiny: SimpleNamespace, model: Model):
    before, fingerprint = tiny.outputs(model, TOKENS), model.fingerprint()
    twin = model.copy()
    assert twin.fingerprint() == fingerprint
    originals = {parameter.data_ptr() for parameter in model.module.parameters()}
    assert {parameter.data_ptr() for parameter in twin.module.parameters()} == originals
    for name in twin.linears():
        twin.replace(name, ZeroWeight(twin.shape(name)))
    twin.module.to(torch.float64)
    assert torch.equal(tiny.outputs(model, TOKENS), before)
    assert model.fingerprint() == fingerprint
    assert twin.fingerprint() != fingerprint


def test_a_copy_in_another_type_keeps_ties_and_position_tables(tiny: SimpleNamespace, model: Model):
    model.replace(next(iter(model.embeddings())), tiny.rounded(model.matrix(next(iter(model.embeddings())))))
    twin = model.copy(torch.bfloat16)
    assert tiny.outputs(twin, TOKENS).dtype == torch.bfloat16
    assert twin.tied == model.tied
    for (name, before), (_, after) in zip(model.module.named_buffers(), twin.module.named_buffers(), strict=True):
        assert torch.equal(before, after), name
    reference = tiny.outputs(model, TOKENS)
    assert (tiny.outputs(twin, TOKENS).float() - reference).abs().max() < 0.05 * reference.abs().max()


def test_compressed_layers_are_copied_with_their_ties(tiny: SimpleNamespace, llama: Model):
    llama.replace("model.embed_tokens", tiny.rounded(llama.matrix("model.embed_tokens")))
    twin = llama.copy()
    assert twin.tied
    assert torch.equal(tiny.outputs(twin, TOKENS), tiny.outputs(llama, TOKENS))


def test_fingerprint_sees_one_changed_value_and_one_changed_option(llama: Model):
    before = llama.fingerprint()
    llama.config.rope_parameters["rope_theta"] *= 2
    changed = llama.fingerprint()
    llama.module.model.norm.weight.data[0] += 1
    assert len({before, changed, llama.fingerprint()}) == 3


def test_facts(llama: Model):
    assert (llama.architecture, llama.max_context, llama.vocabulary, llama.hidden_size) == ("LlamaForCausalLM", 64, 96, 32)
    assert "21 linear layers" in repr(llama)


def test_tokens_need_a_tokenizer(llama: Model):
    with pytest.raises(InvalidArgument, match="no tokenizer"):
        llama.encode("text")


def test_a_module_without_a_config_is_refused():
    with pytest.raises(InvalidArgument, match="transformers model"):
        Model(torch.nn.Linear(2, 2))
