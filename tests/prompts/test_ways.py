"""What a model can be trusted with is found by trying, and each way that is trusted gives the model's own numbers."""

import threading

import pytest
import torch
from architectures import compressed, prompted, scores, tiny_model
from conftest import NEWER, tiny
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

import ctplab as ctp
from ctplab.models.anatomy import embed
from ctplab.prompts import prefix, ways
from ctplab.prompts.attention import NAME, prefix_attention
from ctplab.prompts.compiled import Concatenated, compile_rows, compiled, expand
from ctplab.prompts.head import halves
from ctplab.prompts.together import fits

EXACT = {"causal": True, "maskless": True, "compiled": True, "rows": True, "cached": True, "padded": True}
#: Kind -> what it cannot do, of all that a plain decoder can.
CANNOT = {
    "llama": (),
    "doge": ("maskless",),  # builds its mask from the one it is given
    "falcon_h1": ("compiled",),  # a recurrent state beside keys and values
    "mamba": ("compiled", "maskless", "cached"),
}


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An empty cache: nothing was tried before."""
    monkeypatch.setenv("CTPLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [pytest.param(k, marks=NEWER) if k == "doge" else k for k in CANNOT])
def test_each_kind_is_used_in_the_ways_that_are_exact(kind, fresh):
    model = tiny_model(kind)
    found = ways.ways(model)
    assert found.causal and found.rows
    assert all(not getattr(found, name) for name in CANNOT[kind])
    if kind == "llama":
        assert found == ways.Ways(**EXACT)
    scores(model)
    prompted(model)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_model_that_sees_later_tokens_is_refused(kind, fresh):
    model = tiny_model(kind)
    with pytest.raises(ctp.InputError, match="lets a token see later ones: it is no causal language model"):
        ctp.perplexity(ctp.Arm("full", model, prefix.none(model)), torch.arange(3, 23)[None])


@pytest.mark.filterwarnings("ignore")
def test_prompts_are_learned_through_a_hybrid_model(fresh):
    """By concatenation: the gradient that a step takes is that of the plain loss behind the rows."""
    model, ids = tiny_model("falcon_h1"), torch.arange(3, 23)[None]
    rows = torch.randn(3, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    kv = compile_rows(model, rows)
    assert isinstance(kv, Concatenated)
    cut = halves(model)
    found = cross_entropy(cut.head(cut.states(kv, ids)[0, :-1]), ids[0, 1:])
    joined = torch.cat([rows[None], embed(model, ids)], 1)
    wanted = cross_entropy(model(inputs_embeds=joined, use_cache=False).logits[0, 3:-1], ids[0, 1:])
    torch.testing.assert_close(*(torch.autograd.grad(loss, rows)[0] for loss in (found, wanted)))


def test_what_was_found_is_kept_and_costs_nothing_later(fresh, monkeypatch):
    found = ways.ways(tiny("llama"))
    assert len(list((fresh / "checks").iterdir())) == 1
    monkeypatch.setattr(ways, "_try", lambda model: pytest.fail("tried again"))
    assert ways.ways(tiny("llama")) == found, "another object, the same model"


def test_trying_disturbs_no_hooks_and_no_mode(fresh):
    model = tiny("llama").train()
    model.register_forward_hook(lambda *_: pytest.fail("a hook saw the tries"))
    ways.ways(model)
    assert model.training and model.config._attn_implementation == "sdpa"


def test_the_switch_stays_on_while_anyone_needs_it(llama):
    first, second = prefix_attention(llama), prefix_attention(llama)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert llama.config._attn_implementation == NAME
    second.__exit__(None, None, None)
    assert llama.config._attn_implementation == "sdpa"


@torch.no_grad()
def test_to_other_threads_the_switch_is_plain_sdpa(llama):
    """While one thread is inside, another that is not gets what it would get alone, with a mask of its own."""
    ids = torch.randint(3, 2048, (2, 20))
    mask = torch.ones(2, 27, dtype=torch.long)
    kv = compiled(ctp.Arm("x", llama, prefix.random_rows(llama, 7)))

    def outside():
        cache = expand(llama, kv, 2)
        return llama(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True).logits

    alone, found = outside(), []
    with prefix_attention(llama):
        thread = threading.Thread(target=lambda: found.append(outside()))
        thread.start()
        thread.join()
    assert torch.equal(found[0], alone)


def test_threads_that_share_a_model_get_their_own_numbers(llama):
    arm = ctp.Arm("x", llama, prefix.random_rows(llama, 20))
    ids = torch.randint(3, 2048, (12, 40))
    alone, found = ctp.perplexity(arm, ids, batch=2).nll, []
    threads = [threading.Thread(target=lambda: found.append(ctp.perplexity(arm, ids, batch=2).nll)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [alone] * 4


@pytest.fixture
def noisy():
    """A model in bfloat16 whose layers round otherwise for every shape, as kernels do, by 1%: at the limit."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(**sizes, **heads, pad_token_id=0, initializer_range=0.2)
    model = LlamaForCausalLM(config).bfloat16().eval().requires_grad_(False)

    def rounded(module, inputs, out):
        generator = torch.Generator().manual_seed(100 * out.shape[0] + out.shape[1])
        return out * (1 + 0.01 * torch.randn(out.shape[1:], generator=generator)).to(out.dtype)

    for block in model.model.layers:
        for layer in (block.self_attn.q_proj, block.self_attn.v_proj, block.self_attn.o_proj, block.mlp.down_proj):
            layer.register_forward_hook(rounded)
    return model


def test_rounding_at_the_limit_is_no_fault(noisy, fresh):
    """The plain way differs from itself, one token shorter, by more than rounding explains in any model."""
    ids = ways.text(noisy, 0)
    plain, shorter = (ways._logits(noisy, input_ids=ids[:, :n]) for n in (12, 11))
    assert ways.apart(plain[:, :11], shorter) > ways.HALF_NOISE
    assert ways.ways(noisy) == ways.Ways(**EXACT)
    assert fits(halves(noisy), 5, 2, 7)


@pytest.mark.parametrize("way, name", [("_behind", "compiled"), ("_step_by_step", "cached"), ("_padded", "padded")])
def test_a_wrong_way_is_found_beside_such_rounding(way, name, noisy, fresh, monkeypatch):
    """One of the first five tokens is another one: nothing more."""
    right = getattr(ways, way)

    def wrong(model, ids, *args):
        return right(model, torch.cat([ids[:, :2], (ids[:, 2:3] + 1) % 97, ids[:, 3:]], 1), *args)

    monkeypatch.setattr(ways, way, wrong)
    found = ways.ways(noisy)
    assert not getattr(found, name) and found.causal and found.rows


def test_a_later_token_is_seen_beside_such_rounding(noisy, fresh):
    def looks_ahead(module, inputs, out):
        return out + 0.2 * out.flip(1)

    noisy.model.layers[1].mlp.down_proj.register_forward_hook(looks_ahead)
    with pytest.raises(ctp.InputError, match="lets a token see later ones"):
        ways.ways(noisy)


def test_a_model_that_gives_nothing_is_no_model_that_sees_ahead(llama, fresh):
    with torch.no_grad():
        llama.model.norm.weight[0] = torch.nan
    with pytest.raises(ctp.InputError, match="gives NaN or infinite logits"):
        ways.ways(llama)


@pytest.mark.filterwarnings("ignore")
def test_experts_stored_transposed_are_compressed(fresh, tokenizer, tmp_path):
    compressed(tiny_model("gpt_oss"), tmp_path, tokenizer)
