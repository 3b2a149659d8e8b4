"A model held by several processes takes the steps of one that is whole, and writes the same files"
import json,os,subprocess,sys
from pathlib import Path
import pytest

BIN = Path(sys.executable).parent
TINY = ('--num_iterations 2 --sigma .04 --population_size 4 --num_data_per_iteration 8 --num_val_samples 8 --batch_size 32 --max_new_tokens 8 '
    '--model_save_interval 1 --seed 5').split()
ENV = dict(os.environ, OMP_NUM_THREADS='1', TQDM_DISABLE='1')
ADAM = '--optimizer adam --alpha .001 --weight_decay .1'.split()

def slow():
    if not os.environ.get('ESMA_NB_SLOW'): pytest.skip('ESMA_NB_SLOW=1 runs the other combinations')

def train(n, out, *more, launch=()):
    "`n` processes; 0 is a plain start."
    start = [BIN/'torchrun', '--nproc_per_node', str(n), *launch, '-m', 'esma_nb.training'] if n else [BIN/'esma_nb_train']
    return subprocess.run([*start, *TINY, '--output_dir', out, *more], env=ENV, capture_output=True, text=True)

def digest(out): return json.loads((out/'summary.json').read_text())['model_sha256']

@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp('alone')/'run'
    done = train(0, out)
    assert not done.returncode, done.stderr
    assert all(any(json.loads(l)['coefficients']) for l in (out/'journal.jsonl').open()), 'a run in which nothing moves proves nothing'
    return out

def test_two_processes_hold_one_model(alone, tmp_path):
    "Same fingerprint, and the same bytes on disk; the run is a run like any other, so that one process goes on with it."
    out = tmp_path/'run'
    done = train(2, out, '--tensor_parallel', '2')
    assert not done.returncode, done.stderr
    assert 'a group of 2 processes reads' in done.stdout
    assert digest(out)==digest(alone)
    for name in ('model.safetensors', 'config.json'): assert (out/'model'/name).read_bytes()==(alone/'model'/name).read_bytes(), name
    replayed = subprocess.run([BIN/'esma_nb_replay', out, '--no-checkpoints', '--output_dir', tmp_path/'again'], env=ENV, capture_output=True, text=True)
    assert digest(alone) in replayed.stdout, replayed.stderr

def test_a_group_can_be_of_another_size_tomorrow(tmp_path):
    "Adam's memory is cut and joined: stopped as two that hold one model, finished as one, against one that never stopped."
    slow()
    whole,out = tmp_path/'whole',tmp_path/'run'
    assert not train(0, whole, *ADAM).returncode
    assert not train(2, out, *ADAM, '--tensor_parallel', '2', '--num_iterations', '1').returncode
    assert not train(0, out, *ADAM).returncode
    assert digest(out)==digest(whole)
    back = tmp_path/'back'
    assert not train(0, back, *ADAM, '--num_iterations', '1').returncode
    assert not train(2, back, *ADAM, '--tensor_parallel', '2').returncode
    assert digest(back)==digest(whole)

def test_two_groups_of_two(alone, tmp_path):
    slow()
    done = train(4, tmp_path/'run', '--tensor_parallel', '2')
    assert not done.returncode, done.stderr
    assert digest(tmp_path/'run')==digest(alone)

@pytest.mark.parametrize('words', [['--perturbation', 'lowrank'], ['--clip', '1']], ids=['lowrank', 'clip'])
def test_other_ways(tmp_path, words):
    slow()
    for n,out,more in ((0, 'one', []), (2, 'two', ['--tensor_parallel', '2'])): assert not train(n, tmp_path/out, *words, *more).returncode
    assert digest(tmp_path/'one')==digest(tmp_path/'two')

@pytest.mark.parametrize('n,words,reason', [(0, ['--tensor_parallel', '2'], 'cannot be split into groups of 2'),
    (0, ['--tensor_parallel', '2', '--update', 'sharded'], 'leave out --update'), (0, ['--tensor_parallel', '0'], 'give 1 or more'),
    (2, ['--device', 'map'], 'start one process')], ids=['alone', 'update', 'none', 'map'])
def test_refused_in_one_line(tmp_path, n, words, reason):
    done = train(n, tmp_path/'run', *words)
    assert done.returncode and sum(reason in line for line in done.stderr.splitlines())>=1, done.stderr
    assert (n or 'Traceback' not in done.stderr) and not (tmp_path/'run').exists()

def test_two_hosts(alone, tmp_path):
    "Two launches that meet at a rendezvous, as on two machines that share a file system."
    slow()
    import socket
    with socket.socket() as s:
        s.bind(('localhost', 0))
        port = s.getsockname()[1]
    def host(rank): return subprocess.Popen([BIN/'torchrun', '--nnodes', '2', '--node_rank', str(rank), '--nproc_per_node', '1', '--rdzv_backend', 'c10d',
        '--rdzv_endpoint', f'localhost:{port}', '--rdzv_id', 'here', '-m', 'esma_nb.training', *TINY, '--output_dir', tmp_path/'run'], env=ENV)
    assert [h.wait(600) for h in (host(0), host(1))]==[0, 0]
    assert digest(tmp_path/'run')==digest(alone)
