"Long runs: any iteration comes back, and nothing piles up"
import json,os,random,subprocess,sys,time
from pathlib import Path
import pytest

BIN = Path(sys.executable).parent
TINY = '--sigma .04 --population_size 4 --num_data_per_iteration 8 --num_val_samples 20 --seed 5'.split()
ENV = dict(os.environ, OMP_NUM_THREADS='1', TQDM_DISABLE='1')
slow = pytest.mark.skipif(not os.environ.get('ESMA_NB_SLOW'), reason='ESMA_NB_SLOW=1 runs the slow ones')

@slow
def test_three_iterations_of_thirty(tmp_path):
    out = tmp_path/'run'
    subprocess.run([BIN/'esma_nb_train', *TINY, '--num_iterations', '30', '--model_save_interval', '1', '--keep_checkpoints', '0', '--output_dir', out], check=True, env=ENV)
    for t in random.Random(0).sample(range(1, 30), 3):
        said = subprocess.run([BIN/'esma_nb_replay', out, '--iteration', str(t), '--no-checkpoints'], check=True, env=ENV, capture_output=True, text=True).stdout
        print(said)
        assert json.loads((out/'checkpoints'/f'iter{t:06d}'/'manifest.json').read_text())['model_sha256'] in said

@slow
def test_two_hundred_iterations_hold_still(tmp_path):
    "Memory of the last quarter against that of the first, and open files."
    out = tmp_path/'run'
    p = subprocess.Popen([BIN/'esma_nb_train', *TINY, '--num_iterations', '200', '--output_dir', out], env=ENV, stdout=subprocess.DEVNULL)
    seen = {}
    while p.poll() is None:
        try:
            t = (out/'journal.jsonl').read_bytes().count(b'\n')
            status = Path(f'/proc/{p.pid}/status').read_text()
            seen[t] = int(status.split('VmRSS:')[1].split()[0]),len(os.listdir(f'/proc/{p.pid}/fd'))
        except (OSError, IndexError): pass
        time.sleep(.02)
    def mean(a, b, i): return sum(v[i] for t,v in seen.items() if a<=t<b)/sum(a<=t<b for t in seen)
    first,last = mean(2, 50, 0),mean(150, 199, 0)
    print(f'{first/1e3:.1f} MB, then {last/1e3:.1f} MB; files {mean(2, 50, 1):.1f}, then {mean(150, 199, 1):.1f}')
    assert p.returncode==0 and abs(last/first-1)<.02 and abs(mean(150, 199, 1)-mean(2, 50, 1))<.5
