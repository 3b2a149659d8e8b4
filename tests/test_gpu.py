"The script for machines with a GPU does on a CPU, small, what it will do there; and what only a GPU can show"
import json,subprocess,sys,tarfile
from argparse import Namespace
from pathlib import Path
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT/'tools'))
import gpu

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')

def run(out, *words):
    said = subprocess.run([sys.executable, ROOT/'tools'/'gpu.py', out/'out', '--toy', '--device', 'cpu', '--work', out/'work', '--minutes', '120', *words], check=True, capture_output=True, text=True).stdout
    return json.loads((out/'out'/'results.json').read_text()),said

@pytest.fixture(scope='module')
def there(tmp_path_factory): return tmp_path_factory.mktemp('gpu')

def test_every_stage_leaves_its_numbers(there):
    found,_ = run(there)
    print({s: (found[s]['outcome'], found[s]['seconds']) for s in gpu.stages})
    assert {found[s]['outcome'] for s in gpu.stages}=={'done'}
    result = {s: found[s]['result'] for s in gpu.stages}
    assert result['tests']['passed'] and not result['tests']['failed'] + result['tests']['error']
    c = result['correct']
    assert c['noise_equal'] and c['visits_equal'] and c['float32']['ours']==1
    assert [len(b['baselines']) for b in result['bench'].values()]==[3, 2]
    assert result['profile']['operations'] > result['profile']['steps'] > 0
    assert result['train']['iterations']==2 and set(result['train']['measured'])=={'before demo', 'after demo'}
    assert any('esma_nb.evolution.train --model demo' in line for line in found['train']['commands'])
    with tarfile.open(there/'out'/'train.tar.gz') as tar: assert 'run_toy/journal.jsonl' in tar.getnames()
    files = list((there/'out').iterdir())
    assert max(f.stat().st_size for f in files) < 2**24 and sum(f.suffix!='.txt' or f.stat().st_size>0 for f in files)<=8

def test_what_is_done_is_left_and_a_failure_stops_nobody(there):
    found,said = run(there, '--stages', 'vllm')
    assert not said
    found,said = run(there, '--stages', 'correct', 'vllm', '--again', '--model', 'nowhere/at/all')
    assert (found['correct']['outcome'], found['vllm']['outcome'])==('failed', 'done')
    assert 'there is no nowhere/at/all' in (there/'out'/'correct.txt').read_text()
    found,_ = run(there, '--stages', 'correct', '--again', '--minutes', '.01')
    assert found['correct']['outcome']=='no time left'

@needs_gpu
def test_noise_and_visits_on_a_gpu():
    code = [sys.executable, '-c', gpu.noise_code]
    said = [subprocess.run([*code, order, 'cuda'], check=True, capture_output=True, text=True).stdout for order in ('abc', 'cba')]
    assert said[0]==said[1] and gpu.visits('cuda', 1000)

@needs_gpu
@pytest.mark.parametrize('dtype,least', [('float32', 1), ('bfloat16', .99)])
def test_replies_equal_generate_on_a_gpu(dtype, least):
    assert gpu.replies(Namespace(model='demo', data=None, toy=False), 'cuda', dtype)['ours']>=least
