"Whole commands: kills, several processes, interrupts, full disks, bad input. What is a lesson stands on the pages."
import json,os,shutil,signal,subprocess,sys,time
from importlib.util import find_spec
from pathlib import Path
import pytest
from esma_nb.prompts.templates import Prompt

BIN = Path(sys.executable).parent
TINY = '--num_iterations 4 --sigma .04 --population_size 4 --num_data_per_iteration 16 --num-val-samples 40 --seed 5'.split()
ENV = dict(os.environ, OMP_NUM_THREADS='1', TQDM_DISABLE='1')

def train(out, *words, **kw):
    "Run `esma_nb_train` to its end."
    return subprocess.run([BIN/'esma_nb_train', *TINY, '--output_dir', out, *map(str, words)], capture_output=True, text=True, env=ENV, **kw)

def start(out, *words):
    return subprocess.Popen([BIN/'esma_nb_train', *TINY, '--output_dir', out, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV)

def lines(out): return (out/'journal.jsonl').read_text().count('\n') if (out/'journal.jsonl').exists() else 0

def wait_for(out, n, process):
    "Until the journal has `n` lines."
    while lines(out)<n and process.poll() is None: time.sleep(.002)

def digest(out): return json.loads((out/'summary.json').read_text())['model_sha256']

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')/'run'
    assert train(out).returncode==0
    assert all(any(json.loads(l)['coefficients']) for l in (out/'journal.jsonl').open()), 'a run in which nothing moves proves nothing'
    return out

def test_the_final_model_is_a_model(whole):
    from transformers import AutoModelForCausalLM,AutoTokenizer
    from esma_nb.evolution.es import MasterWeights
    from esma_nb.engines.saving import fingerprint
    model = AutoModelForCausalLM.from_pretrained(whole/'model')
    assert AutoTokenizer.from_pretrained(whole/'model').chat_template
    assert fingerprint(MasterWeights(model).state())==digest(whole)

@pytest.mark.parametrize('n', [0, 2])
def test_killed_in_any_iteration_and_started_again(whole, tmp_path, n):
    out = tmp_path/'run'
    p = start(out)
    wait_for(out, n, p)
    time.sleep(.05*n)
    p.kill(), p.communicate()
    assert train(out).returncode==0
    assert digest(out)==digest(whole)

def test_killed_between_checkpoints(whole, tmp_path):
    out = tmp_path/'run'
    p = start(out, '--model_save_interval', '2')
    wait_for(out, 3, p)
    p.kill(), p.communicate()
    assert (out/'checkpoints'/'iter000002').is_dir()
    with open(out/'checkpoints'/'iter000002'/'model.safetensors', 'r+b') as f: f.truncate(1000)
    done = train(out, '--model_save_interval', 2)
    assert 'iter000002/model.safetensors is truncated or was changed: going back' in done.stdout
    assert digest(out)==digest(whole)

def test_interrupted_politely(whole, tmp_path):
    out = tmp_path/'run'
    p = start(out)
    wait_for(out, 2, p)
    p.send_signal(signal.SIGINT)
    _,err = p.communicate()
    assert p.returncode==130 and 'the same command goes on from there' in err and err.count('\n')==1
    assert list((out/'checkpoints').glob('iter*'))
    assert train(out).returncode==0
    assert digest(out)==digest(whole)

def test_batch_size_and_threads_do_not_matter(whole, tmp_path):
    out = tmp_path/'run'
    assert subprocess.run([BIN/'esma_nb_train', *TINY, '--output_dir', out, '--batch_size', '7'], env=dict(ENV, OMP_NUM_THREADS='2')).returncode==0
    assert digest(out)==digest(whole)

@pytest.mark.skipif(not os.path.exists('/proc/self/limits') or os.geteuid()==0 and shutil.which('prlimit') is None, reason='needs prlimit')
def test_a_full_disk_loses_nothing(whole, tmp_path):
    "A limit on the size of files stands in for the disk: the model does not fit, the journal does."
    import resource
    out = tmp_path/'run'
    def small(): resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    done = train(out, preexec_fn=small)
    assert done.returncode==2 and done.stderr.count('\n')==1 and 'space' in done.stderr, done.stderr
    assert lines(out)==4 and not (out/'model').exists() and not list(out.glob('.*draft'))
    assert train(out).returncode==0
    assert digest(out)==digest(whole)

@pytest.mark.parametrize('words,says', [
    (['--model', './nowhere'], 'there is no ./nowhere'),
    (['--dataset', 'trivia'], "no dataset 'trivia'"),
    (['--lang', 'tlh'], 'pick one of en'),
    (['--reward-type', 'fame'], 'esma, correct, alignment'),
    (['--reward', 'fame'], 'unrecognized arguments'),
    (['--claim', 'guess'], 'percent, p_true'),
    (['--claim', 'idk', '--reward_type', 'brier'], 'needs log-odds'),
    (['--population-size', '1'], 'use 2 or more'),
    (['--population-size', '5'], 'even number'),
    (['--sigma', '0'], 'above 0'),
    (['--num_data_per_iteration', '100000'], 'lower --num_data_per_iteration'),
    (['--dataset', 'no.jsonl'], 'no.jsonl'),
    (['--max_update_norm', '-1'], 'give 0 or more'),
    (['--alpha', 'inf'], 'alpha is inf'),
    (['--batch_size', '0'], 'give 1 or more'),
    (['--device', 'cuda:99'], "no device 'cuda:99'"),
    (['--perturbation', 'lowrank', '--rank', '1000'], 'no matrix of this model'),
    (['--engine', 'vlm'], 'choose hf or vllm'),
    (['--tensor_parallel_size', '2'], 'is for --engine vllm'),
    pytest.param(['--engine', 'vllm'], 'use --engine hf', marks=pytest.mark.skipif(bool(find_spec('vllm')), reason='vllm is installed')),
    (['--seeed', '1'], 'unrecognized arguments')])
def test_a_mistake_is_one_line_and_leaves_nothing(words, says, tmp_path):
    done = train(tmp_path/'run', *words)
    assert done.returncode==2 and says in done.stderr and done.stderr.count('\n')==1, done.stderr
    assert not (tmp_path/'run').exists()

def test_a_folder_of_another_run_is_refused(whole):
    done = train(whole, '--seed', 6)
    assert done.returncode==2 and 'seed=5 (now 6)' in done.stderr and done.stderr.count('\n')==1

def test_a_broken_file_names_its_line(tmp_path):
    bad = tmp_path/'mine.jsonl'
    bad.write_text('{"question": "a?", "answers": ["b"]}\n{"question": "c?", "answ\n')
    done = train(tmp_path/'run', '--dataset', bad)
    assert done.returncode==2 and 'line 2' in done.stderr and done.stderr.count('\n')==1
    bad.write_text('')
    done = train(tmp_path/'run', '--dataset', bad)
    assert done.returncode==2 and 'mine.jsonl' in done.stderr and done.stderr.count('\n')==1

def test_no_chat_template(whole, tmp_path):
    plain = tmp_path/'plain'
    shutil.copytree(whole/'model', plain)
    (plain/'chat_template.jinja').unlink()
    done = train(tmp_path/'run', '--model', plain, '--dataset', 'demo')
    assert done.returncode==2 and 'no chat template' in done.stderr and done.stderr.count('\n')==1

def test_help_loads_nothing_heavy():
    code = "import sys, esma_nb.evolution.train; print([m for m in ('torch', 'transformers', 'datasets', 'scipy', 'matplotlib', 'pandas') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, '-c', code], text=True).strip()=='[]'

def test_one_process_of_accelerate_says_so(tmp_path):
    done = train(tmp_path/'run', '--num_iterations', 1)
    assert 'torchrun' not in done.stdout
    env = dict(ENV, ACCELERATE_MIXED_PRECISION='no')
    again = subprocess.run([BIN/'esma_nb_train', *TINY, '--num_iterations', '1', '--output_dir', tmp_path/'run'], capture_output=True, text=True, env=env)
    assert 'torchrun --nproc_per_node N' in again.stdout

def test_other_question_sets_are_measured_before_and_after(tmp_path):
    other = tmp_path/'other.jsonl'
    other.write_text(''.join(json.dumps(dict(question=f'What is the capital of {c}?', answers=[a]))+'\n' for c,a in dict(France='Paris', Peru='Lima', Palau='Ngerulmud').items()))
    done = train(tmp_path/'run', '--also_eval', other, '--reward_type', 'auroc')
    assert done.returncode==0 and '| other ' in done.stdout, done.stderr
    found = json.loads((tmp_path/'run'/'summary.json').read_text())['also']['other']
    assert found['accuracy']['ci'] and {p.stem for p in (tmp_path/'run'/'also'/'other').glob('*.jsonl')}=={'before', 'after'}
    card = (tmp_path/'run'/'model'/'README.md').read_text()
    assert 'Other question sets, before and after' in card and str(tmp_path) not in card
    after = tmp_path/'run'/'also'/'other'/'after.jsonl'
    old = after.stat().st_mtime_ns
    done = train(tmp_path/'run', '--also_eval', other, '--reward_type', 'auroc', '--num_iterations', 5)
    assert done.returncode==0 and after.stat().st_mtime_ns>old, 'of the model after 4 iterations'
    assert '--num_iterations 5' in (tmp_path/'run'/'model'/'README.md').read_text()

def test_questions_that_changed_are_refused(tmp_path):
    mine = tmp_path/'mine.jsonl'
    def write(n, answer): mine.write_text(''.join(json.dumps(dict(question=f'What is {i} plus {i}?', answers=[answer or str(2*i)]))+'\n' for i in range(n)))
    write(60, None)
    assert train(tmp_path/'run', '--dataset', mine, '--num_iterations', 1).returncode==0
    for n,answer in ((60, 'none'), (61, None)):
        write(n, answer)
        done = train(tmp_path/'run', '--dataset', mine, '--num_iterations', 2)
        assert done.returncode==2 and 'other questions' in done.stderr and done.stderr.count('\n')==1, done.stderr

SMALL = dict(sigma=.04, population_size=4, num_data_per_iteration=16, num_val_samples=40, seed=5, device='cpu')
def brevity(records): return [1/(1+len(r.direct_output)) for r in records]
def capitals(row): return [Prompt(f"Answer in capital letters.\nQuestion: {row['question']}\n")]

def python_train(out, **options):
    from esma_nb.evolution.train import train
    return train(**SMALL | options, output_dir=str(out))

def test_own_reward_and_prompts_resume_with_the_same_functions_only(tmp_path):
    own = dict(reward=brevity, prompts=capitals)
    at_once = python_train(tmp_path/'whole', num_iterations=2, **own)
    python_train(tmp_path/'parts', num_iterations=1, **own)
    assert python_train(tmp_path/'parts', num_iterations=2, **own)['model_sha256']==at_once['model_sha256']
    args = json.loads((tmp_path/'whole'/'args.json').read_text())['args']
    assert all(args[k]['name'].endswith(f'.{f.__name__}') and len(args[k]['sha256'])==64 for k,f in own.items())
    for other in (dict(reward=lambda records: brevity(records), prompts=capitals), dict(reward=brevity), {}):
        with pytest.raises(ValueError, match='belongs to a run with'): python_train(tmp_path/'parts', num_iterations=2, **other)
    records = [json.loads(l) for l in (tmp_path/'parts'/'records'/'before.jsonl').open()]
    assert all(r['meta_output'] is None and r['yes'] is None for r in records)
    assert at_once['before']['reward']==pytest.approx(sum(1/(1+len(r['direct_output'])) for r in records)/40)
    card = (tmp_path/'whole'/'model'/'README.md').read_text()
    assert args['reward']['sha256'] in card and args['prompts']['name'] in card

@pytest.mark.parametrize('reward,prompts,says', [
    (lambda records: [1.], None, 'shape (1,) for 2 records'),
    (lambda records: [float('nan')]*len(records), None, 'returned nan for record 0'),
    (lambda records: 'fine', None, "returned 'fine'"),
    (None, lambda row: row['question'], 'return a list of 1 or 2 Prompt'),
    (None, lambda row: [Prompt('?')]*(1+len(row['question'])%2), 'the same number')])
def test_a_wrong_function_is_one_line_and_leaves_nothing(reward, prompts, says, tmp_path):
    with pytest.raises(ValueError) as e: python_train(tmp_path/'run', reward=reward, prompts=prompts)
    assert says in str(e.value) and '\n' not in str(e.value) and not (tmp_path/'run').exists()

@pytest.mark.parametrize('claim,reward', [('logits', 'brier'), ('percent', 'log')])
def test_other_claims_train(claim, reward, tmp_path):
    done = train(tmp_path/'run', '--claim', claim, '--reward_type', reward, '--num_iterations', 2)
    assert done.returncode==0 and '| reward ' in done.stdout, done.stderr
    r = json.loads((tmp_path/'run'/'records'/'before.jsonl').open().readline())
    assert r['meta_output'] is not None and (claim=='percent' or r['yes']==(r['log_odds']>0))
    refused = train(tmp_path/'run', '--reward_type', reward, '--num_iterations', 2)
    assert refused.returncode==2 and f"claim='{claim}' (now 'meta')" in refused.stderr
