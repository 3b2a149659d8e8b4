"The vLLM engine, real, in an environment of its own (constraints-vllm.txt): the numbers of the hf engine, in float32"
import os,subprocess,sys,time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
import psutil,pytest
from esma_nb.core.files import read_json,read_lines
from esma_nb.engines.models import load_model
from esma_nb.engines.saving import save_model

pytestmark = pytest.mark.skipif(not find_spec('vllm'), reason='vllm is not installed')
ROOT = Path(__file__).resolve().parent.parent
SMALL = '--device cpu --num_iterations 3 --population_size 4 --num_data_per_iteration 16 --num_val_samples 20 --model_save_interval 1'.split()
ENV = os.environ | dict(OMP_NUM_THREADS='1', OMP_WAIT_POLICY='PASSIVE', PYTHONPATH=str(ROOT), HF_HUB_OFFLINE='1')

def command(module, *args, processes=0):
    start = [sys.executable, '-m'] if not processes else [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(processes), '-m']
    return [*start, f'esma_nb.{module}', *map(str, args)]

def run(module, *args, processes=0, ok=True):
    p = subprocess.run(command(module, *args, processes=processes), capture_output=True, text=True, env=ENV, timeout=600)
    assert not ok or p.returncode==0, p.stdout[-2000:]+p.stderr[-4000:]
    return p

@pytest.fixture(scope='session')
def hf(tmp_path_factory): # A short training run with the hf engine
    out = tmp_path_factory.mktemp('runs')/'hf'
    run('evolution.train', *SMALL, '--output_dir', out)
    return out

def same_run(a, b):
    assert read_json(a/'summary.json')['model_sha256']==read_json(b/'summary.json')['model_sha256']
    assert [l['rewards'] for l in read_lines(a/'journal.jsonl')]==[l['rewards'] for l in read_lines(b/'journal.jsonl')]

def vllm(*more): return ['--engine', 'vllm', '--enforce_eager', *SMALL, *more]

@pytest.mark.parametrize('page', ['09_vllm_model', '10_vllm', '11_lora'])
def test_the_pages(page):
    from nbdev.test import test_nb as run_nb
    ok,_ = run_nb(ROOT/'nbs'/'engines'/f'{page}.ipynb', skip_flags=['slow', 'gpu', 'net'], force_flags=['vllm'], basepath=ROOT)
    assert ok

@pytest.mark.parametrize('processes', [0, 2])
def test_killed_and_resumed(hf, tmp_path, processes):
    args = [*vllm('--tensor_parallel_size', max(1, processes)), '--output_dir', tmp_path/'run']
    p = psutil.Popen(command('evolution.train', *args, processes=processes), env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = tmp_path/'run'/'journal.jsonl'
    while p.poll() is None and not (journal.exists() and journal.read_text().count('\n')): time.sleep(.05)
    for q in [p, *p.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess): q.kill() # A helper process may end with its parent
    p.wait()
    assert not (tmp_path/'run'/'summary.json').exists()
    assert 'going on after iteration' in run('evolution.train', *args, processes=processes).stdout
    same_run(tmp_path/'run', hf)

@pytest.mark.parametrize('processes,shared', [(2, 1), (2, 2), (4, 2)])
def test_processes(hf, tmp_path, processes, shared):
    run('evolution.train', *vllm('--tensor_parallel_size', shared), '--output_dir', tmp_path/'run', processes=processes)
    same_run(tmp_path/'run', hf)

def test_members_of_low_rank(tmp_path):
    small = [*SMALL, '--perturbation', 'lowrank']
    for engine,more in (('hf', {}), ('vllm', {}), ('divided', dict(processes=2))):
        args = ['--engine', 'hf' if engine=='hf' else 'vllm', '--enforce_eager', '--tensor_parallel_size', 2 if more else 1]
        run('evolution.train', *args, *small, '--output_dir', tmp_path/engine, **more)
        same_run(tmp_path/'hf', tmp_path/engine)

def test_a_sweep(hf, tmp_path):
    for engine in ('hf', 'vllm'): run('patching.sweep', 'demo', hf, '--p', 10, '--rules', 'top', '--num_samples', 30, '--dtype', 'float32',
        '--engine', engine, '--enforce_eager', '--output_dir', tmp_path/engine)
    assert (tmp_path/'hf'/'sweep.csv').read_text()==(tmp_path/'vllm'/'sweep.csv').read_text()

def test_another_engine_goes_on_in_float32_only(hf, tmp_path):
    run('evolution.train', *[2 if a=='3' else a for a in SMALL], '--output_dir', tmp_path/'run')
    run('evolution.train', *vllm(), '--output_dir', tmp_path/'run')
    same_run(tmp_path/'run', hf)
    small = ['--dtype', 'bfloat16', *[1 if a=='3' else a for a in SMALL]]
    run('evolution.train', *small, '--output_dir', tmp_path/'other')
    p = run('evolution.train', '--engine', 'vllm', '--dtype', 'bfloat16', *SMALL, '--output_dir', tmp_path/'other', ok=False)
    assert p.returncode==2 and "engine='hf' (now 'vllm')" in p.stderr

def test_a_revision_of_the_hub(tmp_path, monkeypatch):
    "Both engines read the commit that is named, and not the branch."
    monkeypatch.setitem(ENV, 'HF_HOME', str(tmp_path))
    repository = tmp_path/'hub'/'models--me--tiny'
    for commit,factor in dict(a=1., b=1.3).items():
        model,tokenizer = load_model('demo', 'float32', 'cpu')
        for p in model.parameters():
            if p.ndim==1: p.mul_(factor)
        save_model(model, tokenizer, repository/'snapshots'/(40*commit))
    (repository/'refs').mkdir()
    (repository/'refs'/'main').write_text(40*'a')
    def log_odds(name, model, *more):
        run('evaluation.evaluate', '--model', model, '--num_samples', 20, '--dtype', 'float32', '--output_dir', tmp_path/name, *more)
        return read_json(tmp_path/name/'args.json')['model_commit'],[l['log_odds'] for l in read_lines(tmp_path/name/'records'/'meta.jsonl')]
    named = log_odds('vllm', f"me/tiny@{40*'b'}", '--engine', 'vllm', '--enforce_eager')
    commit,expected = log_odds('hf', f"me/tiny@{40*'b'}")
    assert named==(40*'b', pytest.approx(expected, abs=1e-3)) and commit==40*'b'
    assert log_odds('main', 'me/tiny')[1]!=pytest.approx(expected, abs=.1)

def test_evaluation(tmp_path):
    for engine in ('hf', 'vllm'): run('evaluation.evaluate', '--engine', engine, '--num_samples', 100, '--dtype', 'float32', '--output_dir', tmp_path/engine)
    a,b = (read_lines(tmp_path/e/'records'/'meta.jsonl') for e in ('hf', 'vllm'))
    keys = [k for k in a[0] if k not in ('log_odds', 'p_yes', 'confidence', 'seconds')]
    assert [[r[k] for k in keys] for r in a]==[[r[k] for k in keys] for r in b]
    assert max(abs(x['log_odds']-y['log_odds']) for x,y in zip(a, b))<1e-4

def test_signals(tmp_path):
    names = 'likelihood entropy percent p_true_letters consistency semantic_entropy semantic_entropy_rao'.split()
    def signals(engine, name):
        run('evaluation.evaluate', '--engine', engine, '--num_samples', 40, '--dtype', 'float32', '--samples', 4, '--signals', *names, '--output_dir', tmp_path/name)
        return [r['signals'] for r in read_lines(tmp_path/name/'records'/'meta.jsonl')],read_lines(tmp_path/name/'samples.jsonl')
    (hf,_),(ours,samples),again = signals('hf', 'hf'),signals('vllm', 'vllm'),signals('vllm', 'again')
    for n in ('likelihood', 'p_true_letters'): assert max(abs(a[n]-b[n]) for a,b in zip(hf, ours))<1e-4, n
    assert [r['percent'] for r in hf]==[r['percent'] for r in ours] and [r['entropy'] for r in ours]==[None]*40
    assert [l['samples'] for l in samples]==[l['samples'] for l in again[1]] and len({*samples[0]['samples']})<=4
    for n in ('consistency', 'semantic_entropy', 'semantic_entropy_rao'): # Other random numbers, the same distribution
        gap = [a[n]-b[n] for a,b in zip(hf, ours)]
        assert 0<sum(map(abs, gap)) and abs(sum(gap))/40<.15, n

@pytest.mark.parametrize('args,message', [
    (['--tensor_parallel_size', 3], 'attention heads cannot be divided'), (['--device', 'map'], 'for --engine hf'),
    (['--model', 'quantized.gguf'], 'Save it as a folder first')])
def test_one_line(args, message, tmp_path):
    (tmp_path/'quantized.gguf').write_bytes(b'GGUF')
    args = [tmp_path/a if a=='quantized.gguf' else a for a in args]
    p = run('evaluation.evaluate', '--engine', 'vllm', '--num_samples', 4, *args, '--output_dir', tmp_path/'out', ok=False)
    assert p.returncode==2 and message in p.stderr.strip().splitlines()[-1] and not (tmp_path/'out').exists(), p.stderr[-2000:]
