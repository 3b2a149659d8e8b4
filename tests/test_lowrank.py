"Members of low rank: whole runs that are killed, shared and replayed, and models of other families"
import json,os,subprocess,sys,time
from functools import partial
from pathlib import Path
import pytest
import torch
from esma_nb.evolution.es import MasterWeights,sample_population
from esma_nb.engines.hf import generate_ids
from esma_nb.evolution.lowrank import LowRankBatch,lowrank_engine,lowrank_direction,lowrank_sum
from esma_nb.engines.models import load_model
from esma_nb.engines.saving import fingerprint
from esma_nb.engines.prepack import pack
from esma_nb.prompts.templates import direct_prompt,meta_prompt
from esma_nb.engines.llama import decoder_for

BIN = Path(sys.executable).parent
SMALL = ('--perturbation lowrank --rank 2 --num_iterations 3 --sigma .04 --population_size 8 --num_data_per_iteration 16 '
    '--num_val_samples 20 --batch_size 64 --model_save_interval 2 --seed 5').split()
ENV = dict(os.environ, OMP_NUM_THREADS='1', TQDM_DISABLE='1')

def train(out, *words, **env): return subprocess.run([BIN/'esma_nb_train', *SMALL, '--output_dir', out, *words], capture_output=True, text=True, env=ENV | env)

def digest(out): return json.loads((out/'summary.json').read_text())['model_sha256']

def lines(out): return (out/'journal.jsonl').read_text().count('\n') if (out/'journal.jsonl').exists() else 0

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')/'run'
    done = train(out)
    assert done.returncode==0, done.stderr
    assert all(any(json.loads(l)['coefficients']) for l in (out/'journal.jsonl').open()), 'a run in which nothing moves proves nothing'
    args = json.loads((out/'args.json').read_text())['args']
    assert (args['perturbation'], args['rank'])==('lowrank', 2)
    return out

@pytest.mark.parametrize('n', [2])
def test_killed_and_started_again(whole, tmp_path, n):
    out = tmp_path/'run'
    p = subprocess.Popen([BIN/'esma_nb_train', *SMALL, '--output_dir', out], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV)
    while lines(out)<n and p.poll() is None: time.sleep(.002)
    p.kill(), p.communicate()
    assert train(out).returncode==0
    assert digest(out)==digest(whole)

def test_threads_and_batch_size_do_not_matter(whole, tmp_path):
    done = train(tmp_path/'run', '--batch_size', '16', OMP_NUM_THREADS='2')
    assert done.returncode==0, done.stderr
    assert digest(tmp_path/'run')==digest(whole)

def test_the_journal_alone_leads_to_the_model(whole):
    from esma_nb.evolution.checkpoint import replay
    journal = [json.loads(l) for l in (whole/'journal.jsonl').open()]
    def master(**kw): return MasterWeights(load_model('demo', 'float32', 'cpu')[0], **kw)
    low = master(noise=partial(lowrank_direction, rank=2), total=partial(lowrank_sum, rank=2))
    replay(low, journal)
    assert fingerprint(low.state())==digest(whole)
    with pytest.raises(ValueError, match='computed with other noise'): replay(master(), journal)
    unmarked = [{k: v for k,v in line.items() if k!='noise_sha256'} for line in journal]
    with pytest.raises(ValueError, match='does not lead to the weights'): replay(master(), unmarked)

def test_another_rank_is_another_run(whole):
    done = train(whole, '--rank', '3')
    assert done.returncode==2 and 'rank=2 (now 3)' in done.stderr and done.stderr.count('\n')==1

@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_crew_leaves_every_bit(dtype):
    model,tokenizer = load_model('demo', 'float32', 'cpu')
    master = MasterWeights(model)
    model.to(dtype)
    master.params |= pack(model)
    master.restore()
    home = fingerprint(master.state()),fingerprint(dict(model.named_parameters()))
    ask = lowrank_engine(LowRankBatch(model, master.params), tokenizer)
    prompts = [direct_prompt('What is the capital of France?'), meta_prompt('What is the capital of France?')]
    members = [(key, .04*sign) for key,sign in sample_population(1, 0, 8) for _ in prompts]
    before = ask(members, prompts*8)
    with pytest.raises(AttributeError): ask(members[:1], [None])
    assert ask(members, prompts*8)==before
    assert (fingerprint(master.state()), fingerprint(dict(model.named_parameters())))==home
    assert not any(m._forward_hooks for m in model.modules())

def test_a_visit_along_a_key_is_the_member_of_the_crew():
    model,_ = load_model('demo', 'float32', 'cpu')
    master = MasterWeights(model, noise=lowrank_direction)
    lowrank_batch,ids = LowRankBatch(model, master.params),torch.arange(60).view(3, 20)
    with torch.inference_mode():
        with lowrank_batch.activate([((1, 0, 0), .03), ((1, 0, 1), -.03)]):
            lowrank_batch.assign_rows([((1,), 0, 2), ((0,), 2, 3)])
            shared = model(ids).logits
        for at,key,scale in (([0, 1], (1, 0, 1), -.03), ([2], (1, 0, 0), .03)):
            with master.perturbed(key, scale): assert torch.allclose(model(ids).logits[at], shared[at], atol=2e-3)

def random_model(kind):
    import transformers as hf
    torch.manual_seed(0)
    size = dict(vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, eos_token_id=2, pad_token_id=0, bos_token_id=1)
    if kind=='GPT2': return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=300, n_embd=64, n_layer=2, n_head=4, n_positions=128, eos_token_id=2, bos_token_id=1, pad_token_id=0)).eval()
    kw = dict(sliding_window=16) if kind=='Mistral' else {}
    return getattr(hf, f'{kind}ForCausalLM')(getattr(hf, f'{kind}Config')(**size, num_key_value_heads=2, **kw)).eval()

def test_scaled_embeddings_are_refused():
    import transformers as hf
    model = hf.GemmaForCausalLM(hf.GemmaConfig(vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16, pad_token_id=0))
    assert model.lm_head.weight is model.model.embed_tokens.weight # Found by the output layer, and not written to as an embedding
    with pytest.raises(ValueError, match='embed_tokens.weight is in a layer that is neither linear nor a plain table'): LowRankBatch(model, MasterWeights(model).params)

@pytest.mark.parametrize('kind', ['Llama', 'Qwen2', 'Qwen3', 'Mistral', 'Phi3', 'Olmo2'])
def test_other_models(kind):
    "The plain reader serves where the lean one cannot; a crew says what its members say when they are written into the weights."
    model = random_model(kind)
    master = MasterWeights(model, noise=lowrank_direction)
    lowrank_batch,places = LowRankBatch(model, master.params),[((1, 0, 0), .02), ((1, 0, 0), -.02), ((1, 0, 1), .02)]
    g = torch.Generator().manual_seed(1)
    head = torch.randint(3, 300, (20,), generator=g).tolist()
    rows = [head + torch.randint(3, 300, (n,), generator=g).tolist() for n in (3, 9, 5, 1)]
    with lowrank_batch.activate(places):
        together,_ = generate_ids(model, 3*rows, [(m, 'a') for m in range(3) for _ in rows], [12, 12, 4, 12]*3, make_decoder=lambda m: decoder_for(m, lowrank_batch.assign_rows))
    alone = []
    for key,scale in places:
        with master.perturbed(key, scale): alone += generate_ids(model, rows, ['a']*4, [12, 12, 4, 12])[0]
    assert together==alone
    assert together[:4]!=together[4:8]

def test_a_model_whose_weights_are_elsewhere_is_refused():
    model = random_model('GPT2')
    with pytest.raises(ValueError, match='neither linear nor a plain table'): LowRankBatch(model, MasterWeights(model).params)
