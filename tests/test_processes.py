"Several processes end at the bits of one, whoever does what, and in whichever order"
import json,os,socket,subprocess,sys
from pathlib import Path
import pytest

BIN = Path(sys.executable).parent
TINY = ('--num_iterations 3 --sigma .04 --population_size 8 --num_data_per_iteration 16 --num_val_samples 20 --batch_size 32 '
    '--model_save_interval 2 --seed 5').split()
if os.environ.get('ESMA_NB_RECIPE')=='demo': TINY = ['--seed', '42'] # The whole demo recipe, for runs/processes_bits.txt
WAYS = dict(full=[], lowrank=['--perturbation', 'lowrank', '--rank', '2'], adam=['--optimizer', 'adam', '--alpha', '.001', '--alpha_schedule', 'cosine', '--weight_decay', '.1', '--max_update_norm', '2'])
ENV = dict(os.environ, OMP_NUM_THREADS='1', TQDM_DISABLE='1')

def digest(out): return json.loads((out/'summary.json').read_text())['model_sha256']

def slow():
    if not os.environ.get('ESMA_NB_SLOW'): pytest.skip('one of the rest of the combinations: ESMA_NB_SLOW=1 runs them')

@pytest.fixture(scope='module', params=WAYS)
def alone(request, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param)/'run'
    subprocess.run([BIN/'esma_nb_train', *TINY, *WAYS[request.param], '--output_dir', out], check=True, env=ENV)
    assert all(any(json.loads(l)['coefficients']) for l in (out/'journal.jsonl').open()), 'a run in which nothing moves proves nothing'
    return WAYS[request.param],digest(out)

def test_a_taken_port(tmp_path):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        env = ENV | dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(taken.getsockname()[1]), WORLD_SIZE='2', RANK='0', LOCAL_RANK='0', LOCAL_WORLD_SIZE='2')
        end = subprocess.run([BIN/'esma_nb_train', *TINY, '--output_dir', tmp_path/'run'], env=env, capture_output=True, text=True)
    assert end.returncode==2 and 'give torchrun another --master_port' in end.stderr and 'Traceback' not in end.stderr and not (tmp_path/'run').exists()

ODD = '''
import sys,time
from esma_nb.evolution import population
deal = population.ProcessGroup.work_queue
def odd(self, work_items, name):
    for hand in deal(self, {order}, name):
        if self.rank==1: time.sleep({seconds})
        yield hand
population.ProcessGroup.work_queue = odd
sys.argv[0] = 'esma_nb_train'
import runpy
runpy.run_module('esma_nb.evolution.train', run_name='__main__', alter_sys=False)
'''

@pytest.mark.parametrize('n,update,order,seconds', [(2, 'whole', 'work_items', 0), (2, 'sharded', 'work_items', 0), (4, 'sharded', 'work_items', 0), (2, 'sharded', 'work_items', .5), (3, 'whole', 'work_items[::-1]', 0)],
    ids=['two', 'sharded', 'four', 'a straggler', 'another order'])
def test_the_same_bits(alone, tmp_path, n, update, order, seconds):
    words,expected = alone
    if not (n==2 and update=='sharded' and bool(seconds)==(not words)): slow()
    script,out = tmp_path/'train.py',tmp_path/'run'
    script.write_text(ODD.format(order=order, seconds=seconds))
    subprocess.run([BIN/'torchrun', '--nproc_per_node', str(n), script, *TINY, *words, '--update', update, '--output_dir', out], check=True, env=ENV)
    assert digest(out)==expected
    assert len((out/'records'/'before.jsonl').read_text().splitlines())==json.loads((out/'args.json').read_text())['args']['num_val_samples']
    last = json.loads((out/'metrics.jsonl').read_text().splitlines()[-1])
    assert ('exchange_seconds' in last)==(update=='sharded') and last['wait_seconds']>=0

def test_an_optimizer_goes_on_where_it_stopped(alone, tmp_path):
    "Sharded, one iteration with two processes, then the rest with one."
    words,expected = alone
    if 'adam' not in words: slow()
    out = tmp_path/'run'
    def start(n, more): subprocess.run([BIN/'torchrun', '--nproc_per_node', str(n), '-m', 'esma_nb.evolution.train', *TINY, *words, '--update', 'sharded', '--output_dir', out, *more], check=True, env=ENV)
    start(2, ['--model_save_interval', '1', '--max_hours', '1e-6'])
    assert not (out/'summary.json').exists()
    start(2, ['--model_save_interval', '1', '--max_hours', '.0008'])
    start(1, [])
    assert digest(out)==expected

TWICE = '''
import sys
from pathlib import Path
from esma_nb.evolution.train import train
for n in 'first','second':
    train(num_iterations=3, sigma=.04, population_size=8, num_data_per_iteration=16, num_val_samples=20, batch_size=32,
        model_save_interval=2, seed=5, output_dir=Path(sys.argv[1])/n)
'''

def test_two_runs_of_one_script(alone, tmp_path):
    words,expected = alone
    if words: slow()
    (tmp_path/'twice.py').write_text(TWICE)
    subprocess.run([BIN/'torchrun', '--nproc_per_node', '2', tmp_path/'twice.py', tmp_path], check=True, env=ENV)
    assert [digest(tmp_path/n) for n in ('first', 'second')]==[expected]*2

PARTED = '''
import os
from pathlib import Path
from esma_nb.engines.models import load_model
from esma_nb.evolution.distributed import ProcessGroup
team = ProcessGroup(cpu=True)
load_model('demo', 'float32', 'cpu')
team.close()
alive = [n for n in ((t/'comm').read_text() for t in Path('/proc/self/task').iterdir()) if 'gloo' in n]
assert not alive, alive
'''

@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='looks into /proc')
def test_who_parts_leaves_no_thread_that_python_could_not_end(tmp_path):
    (tmp_path/'parted.py').write_text(PARTED)
    subprocess.run([BIN/'torchrun', '--nproc_per_node', '2', tmp_path/'parted.py'], check=True, env=ENV)
