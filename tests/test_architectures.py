"""Every kind of causal model that transformers has, as tiny random ones: asked, trained, saved, cut off, resumed, subtracted and added again.

A third of the table runs always, all of it with `ESMA_NB_SLOW=1`. Mixtures of experts and a few others have other tensors in memory than on the disk,
and recurrent layers keep a state that can neither be padded nor cut into rows."""
import json,os,shutil
import pytest
import torch
from transformers import AutoModelForCausalLM,AutoModelForSeq2SeqLM,AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from esma_nb.patching import commands as surgery
from esma_nb.engines.hf import generate_ids,hf_engine
from esma_nb.engines.llama import decoder_for
from esma_nb.engines.encoding import encode
from esma_nb.engines.models import cast_parameters,find_model,load_model,quiet
from esma_nb.engines.saving import fingerprint,save_model,stored_tensors
from esma_nb.engines.prepack import pack
from esma_nb.prompts.templates import direct_prompt,meta_prompt
from esma_nb.patching.replay import at_iteration
from esma_nb.rewards.rewards import rewards
from esma_nb.sft.train import sft
from esma_nb.evolution.train import train
from esma_nb.patching.tensors import open_weights,sha256_weights

tokenizer = AutoTokenizer.from_pretrained(**find_model('demo'))
SIZE = dict(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=256,
    num_experts=4, num_local_experts=4, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16, n_group=1, topk_group=1,
    n_shared_experts=1, first_k_dense_replace=1, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_d_ssm=64, state_size=8, time_step_rank=4,
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
    pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
LATENT = dict(head_dim=None, num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8) # Multi-head latent attention
MIXED,STATE = (dict(layer_types=[kind, 'full_attention']) for kind in ('sliding_attention', 'linear_attention'))
WINDOW = dict(sliding_window=12) # Shorter than any prompt

# Type of the configuration: what is not as in SIZE; None is left to the architecture
OFTEN = dict(llama={}, qwen3={}, mistral=WINDOW, mixtral={}, qwen3_moe={}, qwen3_next=STATE, gemma3_text=WINDOW|MIXED, gpt2={}, gpt_neox={}, falcon=dict(head_dim=None), bloom={}, mpt={},
    gpt_oss=WINDOW|MIXED, deepseek_v3=LATENT, granitemoehybrid=dict(layer_types=['mamba', 'attention']), apertus={}, olmoe={}, mamba={}, lfm2=dict(layer_types=['conv', 'full_attention']),
    minimax=STATE|dict(block_size=8), recurrent_gemma=dict(num_hidden_layers=3, attention_window_size=12, lru_width=32), cohere2=WINDOW|MIXED,
    llama4_text=dict(attention_chunk_size=12, intermediate_size_mlp=48, no_rope_layers=[1, 0], layer_types=['chunked_attention', 'full_attention']))
SELDOM = {'openai-gpt': {}, 'modernbert-decoder': dict(local_attention=12)} | dict(ministral=WINDOW|MIXED, ministral3={}, qwen2={}, qwen2_moe={}, qwen3_5_text=STATE, qwen3_5_moe_text=STATE, gemma={}, gemma2=WINDOW, gemma3n_text=MIXED|WINDOW|dict(vocab_size_per_layer_input=len(tokenizer), hidden_size_per_layer_input=8, num_kv_shared_layers=0, activation_sparsity_pattern=None),
    gemma4_text=MIXED|WINDOW|dict(vocab_size_per_layer_input=len(tokenizer), hidden_size_per_layer_input=8, head_dim=None), phi={}, phi3={}, phimoe={}, olmo={}, olmo2={}, olmo3=WINDOW|MIXED, olmo_hybrid=STATE, flex_olmo={}, gpt_bigcode={}, gptj=dict(rotary_dim=4), codegen=dict(rotary_dim=4),
    gpt_neo=dict(attention_types=[[['global', 'local'], 1]], num_layers=2, num_heads=4, window_size=12), opt=dict(ffn_dim=48, word_embed_proj_dim=32), falcon_h1={}, falcon_mamba={}, cohere={}, smollm3={},
    deepseek_v2=LATENT, longcat_flash=LATENT|dict(head_dim=8, num_layers=1, qk_head_dim=16, ffn_hidden_size=32, expert_ffn_hidden_size=16, zero_expert_num=2, moe_topk=2), minicpm3=LATENT, granite={}, granitemoe={}, granitemoeshared={}, stablelm={}, starcoder2={}, glm={}, glm4={}, glm4_moe={},
    minimax_m2={}, ernie4_5={}, ernie4_5_moe={}, exaone4=WINDOW|MIXED, hunyuan_v1_dense={}, hunyuan_v1_moe={}, nemotron={}, nemotron_h={}, persimmon={}, biogpt={},
    mamba2=dict(num_heads=8, head_dim=8, n_groups=1, chunk_size=8), jamba=dict(attn_layer_period=2, attn_layer_offset=1), lfm2_moe=dict(layer_types=['conv', 'full_attention'], num_dense_layers=1), bamba=dict(attn_layer_indices=[1]),
    zamba2=dict(num_hidden_layers=3, layer_types=['mamba', 'hybrid', 'mamba'], hybrid_layer_ids=[1], num_mem_blocks=1, mamba_headdim=8, mamba_ngroups=1, n_mamba_heads=8, chunk_size=8),
    xlstm=dict(head_dim=None, hidden_size=64, embedding_dim=64, num_heads=4, qk_dim_factor=1.), helium={}, arcee={}, seed_oss={}, dots1={}, xglm=dict(d_model=32, ffn_dim=48, num_layers=2, attention_heads=4), nanochat={}, vaultgemma=WINDOW|MIXED, bitnet={}, jetmoe={},
    diffllama={}, doge={}, cwm=WINDOW|MIXED, jais2={}, afmoe=WINDOW, ctrl=dict(dff=48))
MIXED_PRECISION = 'llama','minimax','gemma3_text','mamba','falcon_h1','ernie4_5_moe' # All but llama and mamba keep more than rotary frequencies in float32
# Type of the configuration: what is said in one line
REFUSED = dict(bert='keeps no keys and values, so it is no causal decoder', t5='it is an encoder-decoder', rwkv='changes its own weights during inference')

def config_of(kind, **more):
    known,left_alone = CONFIG_MAPPING[kind](),{k for k,v in more.items() if v is None}
    return CONFIG_MAPPING[kind](**{k: v for k,v in (SIZE | more).items() if k not in left_alone and (k in more or hasattr(known, k))})

def tiny(kind, folder, **more):
    "A random model that says something else to each question, saved; the folder."
    torch.manual_seed(0)
    with quiet(): model = AutoModelForCausalLM.from_config(config_of(kind, **more)).float().eval()
    g = torch.Generator().manual_seed(1)
    for p in model.parameters():
        if p.ndim>1 and p is not model.get_input_embeddings().weight: p.data += .3*torch.randn(p.shape, generator=g) # Else its layers hardly count
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    save_model(model, tokenizer, folder)
    return folder

def alone(model, row, limit):
    "What `model.generate` says to one prompt, without padding."
    with torch.inference_mode():
        out = model.generate(torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.long), max_new_tokens=limit, do_sample=False)
    return out[0, len(row):].tolist()

QUESTIONS = ['Who?', 'What is the capital of France?', 'What is the capital of Papua New Guinea?']
PROMPTS = [kind(q) for kind in (direct_prompt, meta_prompt) for q in QUESTIONS]

def says_what_generate_says(base):
    (model,_),(other,_) = (load_model(str(base), 'float32', 'cpu') for _ in range(2))
    pack(model)
    rows,limits = encode(tokenizer, PROMPTS),[8, 3, 8]*2
    expected = [alone(other, r, n) for r,n in zip(rows, limits)]
    assert generate_ids(model, rows, ['direct']*3+['meta']*3, limits)[0]==expected
    assert len({tuple(r) for r,n in zip(expected, limits) if n==8})>1, 'a model that always says the same proves nothing'
    replies = hf_engine(model, tokenizer)(PROMPTS)
    assert all(r.text is not None and not r.failed for r in replies) and None not in [r.log_odds for r in replies[3:]]

HOW = dict(dataset='demo', num_iterations=2, population_size=2, num_data_per_iteration=4, num_val_samples=4, sigma=.05, alpha=.05, reward_type='lean', max_new_tokens=4,
    model_save_interval=1, dtype='float32', device='cpu', seed=3)

def is_one_model(run, capsys):
    "The printed sha, the saved folder's, and that of what transformers loads; the weights, too."
    said,sha = capsys.readouterr().out,json.loads((run/'summary.json').read_text())['model_sha256']
    assert 'going back' not in said and sha==sha256_weights(open_weights(run/'model'))
    with quiet(): loaded = AutoModelForCausalLM.from_pretrained(run/'model').eval()
    assert sha==fingerprint(stored_tensors(loaded))
    return loaded

def cut_after_the_first(run, folder):
    "A run as a kill in its second iteration leaves it."
    shutil.copytree(run, folder)
    (folder/'summary.json').unlink(), shutil.rmtree(folder/'model'), (folder/'records'/'iter000002.jsonl').unlink()
    (folder/'journal.jsonl').write_text((run/'journal.jsonl').read_text().splitlines(keepends=True)[0])
    return folder

def trains_and_resumes(base, out, capsys):
    train(model=str(base), output_dir=str(out), **HOW)
    loaded = is_one_model(out, capsys)
    assert all(any(json.loads(l)['coefficients']) for l in (out/'journal.jsonl').open()), 'a run in which nothing moves proves nothing'
    model,_,master,_ = at_iteration(out, 2, checkpoints=False)
    state = master.state()
    assert all(torch.equal(p, state[n]) for n,p in loaded.named_parameters())
    ids = torch.tensor([tokenizer('What is the capital of France?')['input_ids']])
    with torch.inference_mode(): assert torch.allclose(loaded(ids, use_cache=False).logits, model(ids, use_cache=False).logits, atol=1e-4)
    cut = cut_after_the_first(out, out.with_name('cut'))
    train(model=str(base), output_dir=str(cut), **HOW)
    is_one_model(cut, capsys)
    assert sha256_weights(open_weights(cut/'model'))==sha256_weights(open_weights(out/'model'))

def learns_by_gradient(base, out, capsys):
    how = dict(model=str(base), dataset='demo', num_samples=2, num_val_samples=2, num_epochs=2, max_new_tokens=4, model_save_interval=2, device='cpu', seed=3)
    sft(output_dir=str(out), **how)
    is_one_model(out, capsys)
    shutil.copytree(out, cut := out.with_name('sft_cut'))
    (cut/'summary.json').unlink(), shutil.rmtree(cut/'model')
    sft(output_dir=str(cut), **how)
    is_one_model(cut, capsys)
    assert sha256_weights(open_weights(cut/'model'))==sha256_weights(open_weights(out/'model'))!=sha256_weights(open_weights(base))

def delta_gives_it_back(base, tuned, folder, capsys):
    surgery.delta(str(base), str(tuned), str(folder/'delta.safetensors'))
    surgery.patch(str(base), str(folder/'delta.safetensors'), str(folder/'patched'))
    assert 'the tuned model' in capsys.readouterr().out
    with quiet(): a,b = (dict(AutoModelForCausalLM.from_pretrained(d).named_parameters()) for d in (folder/'patched', tuned))
    assert fingerprint(a)==fingerprint(b)

def seldom(kind): return pytest.param(kind, marks=pytest.mark.skipif(not os.environ.get('ESMA_NB_SLOW'), reason='ESMA_NB_SLOW=1 runs the rest of the table'))

@pytest.fixture
def lean(monkeypatch):
    "A reward that a random model earns too, whose claims nobody can read: how far it leans to yes."
    monkeypatch.setitem(rewards, 'lean', lambda correct, yes, log_odds: sum(log_odds)/len(log_odds))

@pytest.mark.parametrize('kind', [*OFTEN, *map(seldom, SELDOM)])
def test_asked_trained_saved_and_resumed(kind, tmp_path, capsys, lean):
    base = tiny(kind, tmp_path/'base', **(OFTEN | SELDOM)[kind])
    says_what_generate_says(base)
    trains_and_resumes(base, tmp_path/'run', capsys)
    learns_by_gradient(base, tmp_path/'sft', capsys)
    delta_gives_it_back(base, tmp_path/'run'/'model', tmp_path, capsys)

@pytest.mark.parametrize('kind', [*MIXED_PRECISION, *(seldom(k) for k in OFTEN | SELDOM if k not in MIXED_PRECISION)])
def test_members_in_bfloat16_are_what_is_evaluated_in_bfloat16(kind, tmp_path):
    "Some buffers and routers stay in float32; which ones, transformers decides when it loads."
    base = str(tiny(kind, tmp_path/'base', **(OFTEN | SELDOM)[kind]))
    member,loaded = cast_parameters(load_model(base, 'float32', 'cpu')[0], torch.bfloat16),load_model(base, 'bfloat16', 'cpu')[0]
    tensors = [dict(m.named_parameters()) | dict(m.named_buffers()) for m in (member, loaded)]
    assert {n: t.dtype for n,t in tensors[0].items()}=={n: t.dtype for n,t in tensors[1].items()}
    assert all(t.equal(tensors[1][n]) for n,t in tensors[0].items())

@pytest.mark.parametrize('kind', REFUSED)
def test_refused_in_one_line(kind, tmp_path, lean):
    torch.manual_seed(0)
    with quiet(): model = (AutoModelForSeq2SeqLM if kind=='t5' else AutoModelForCausalLM).from_config(config_of(kind))
    model.save_pretrained(tmp_path/'base'), tokenizer.save_pretrained(tmp_path/'base')
    with pytest.raises(ValueError, match=REFUSED[kind]) as e: train(model=str(tmp_path/'base'), output_dir=str(tmp_path/'run'), **HOW)
    assert '\n' not in str(e.value)

def test_a_checkpoint_that_is_read_otherwise_than_written_is_not_used(tmp_path, capsys, lean):
    "Youtu sets the padding token's embedding to 0 when it is loaded."
    base = tiny('youtu', tmp_path/'base', **LATENT)
    says_what_generate_says(base)
    train(model=str(base), output_dir=str(tmp_path/'run'), **HOW)
    cut_after_the_first(tmp_path/'run', tmp_path/'cut')
    train(model=str(base), output_dir=str(tmp_path/'cut'), **HOW)
    assert 'iter000001: transformers does not read the weights that were written: going back' in capsys.readouterr().out
    assert sha256_weights(open_weights(tmp_path/'cut'/'model'))==sha256_weights(open_weights(tmp_path/'run'/'model'))
    delta_gives_it_back(base, tmp_path/'run'/'model', tmp_path, capsys)
