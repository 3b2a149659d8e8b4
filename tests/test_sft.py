"Gradient baselines as whole commands: loss, labels, kills, several processes, bad input. What is a lesson stands on the pages."
import json,os,signal,subprocess,sys,time
from pathlib import Path
import pytest

BIN = Path(sys.executable).parent
TINY = '--num_samples 24 --num_val_samples 20 --num_epochs 2 --batch_size 2 --model_save_interval 4 --seed 5'.split()
LABELS = dict(sft=[], sft_meta=['--label_interval', '5'])
ENV = dict(os.environ, OMP_NUM_THREADS='1', TQDM_DISABLE='1')
MAIN = 'import sys,esma_nb.sft.train as m\nfrom esma_nb.core.cli import run_command\nname = sys.argv.pop(1)\nrun_command(getattr(m, name).__wrapped__, prog="esma_nb_"+name)\n'

def words(task, out, *more): return [task, *TINY, *LABELS[task], '--output_dir', str(out), *map(str, more)]
def run(task, out, *more, **kw):
    return subprocess.run([sys.executable, '-c', MAIN, *words(task, out, *more)], capture_output=True, text=True, env=kw.pop('env', ENV), **kw)
def start(task, out, *more):
    return subprocess.Popen([sys.executable, '-c', MAIN, *words(task, out, *more)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV)
def summary(out): return json.loads((out/'summary.json').read_text())
def digest(out): return summary(out)['model_sha256']
def lines(path): return [json.loads(l) for l in path.open()] if path.exists() else []
def checkpoints(out): return sorted(p.name for p in (out/'checkpoints').glob('iter*'))

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')/'run'
    done = run('sft_meta', out)
    assert done.returncode==0, done.stderr
    return out

@pytest.fixture(scope='module')
def demo():
    from esma_nb.engines.models import load_model
    return load_model('demo', device='cpu')

def test_a_run_has_what_a_run_has(whole):
    s = summary(whole)
    assert s['iterations']==24 and set(s)=={'before', 'after', 'best', 'learned', 'iterations', 'seconds', 'warnings', 'model_sha256'}
    assert [m['iteration'] for m in lines(whole/'metrics.jsonl')]==[4, 8, 10, 12, 16, 20, 24]
    assert len(lines(whole/'records'/'before.jsonl'))==len(lines(whole/'records'/'iter000024.jsonl'))==20
    assert len(lines(whole/'learned'/'records'/'iter000024.jsonl'))==20
    args = json.loads((whole/'args.json').read_text())
    assert args['args']['learning_rate']==2e-5 and args['args']['task']=='sft_meta' and 'versions' in args and 'commit' in args

def test_the_final_model_is_a_model(whole):
    from transformers import AutoModelForCausalLM,AutoTokenizer
    from esma_nb.engines.models import load_model
    from esma_nb.engines.saving import fingerprint
    moved = dict(AutoModelForCausalLM.from_pretrained(whole/'model').named_parameters())
    assert AutoTokenizer.from_pretrained(whole/'model').chat_template and not (whole/'model'/'optimizer.safetensors').exists()
    assert fingerprint(moved)==digest(whole)
    still = dict(load_model('demo')[0].named_parameters())
    assert all((moved[n]!=still[n]).any() for n in moved), 'a run in which nothing moves proves nothing'

def test_nothing_is_a_pickle(whole):
    from zipfile import is_zipfile
    files = [p for p in whole.rglob('*') if p.is_file()]
    assert any('checkpoints' in p.parts for p in files)
    assert not [p for p in files if is_zipfile(p) or p.suffix in ('.pt', '.pth', '.bin', '.pkl') or p.read_bytes()[:1]==b'\x80']

def test_the_mask_by_hand(demo):
    "Which tokens count, and how much, spelled out with transformers and a loop."
    import torch
    from esma_nb.prompts.elicitation import get_claim
    from esma_nb.sft.examples import answer_and_claim_examples,tokenize_example
    from esma_nb.sft.optimization import loss_tokens,completion_loss
    model,tokenizer = demo
    row = dict(question='What is the capital of Kenya?', answers=['Nairobi'])
    pairs = answer_and_claim_examples(get_claim('meta'))(row, False)
    text = ['<s><|user|>Answer the following question with keywords.\nQuestion: What is the capital of Kenya?\n</s><|assistant|>Nairobi</s>',
        '<s><|user|>Do you know the answer to the following question? If you know and are sure about the answer, just return "Yes". '
        'If you don\'t know the answer or are uncertain, just return "No".\nQuestion: What is the capital of Kenya?\n</s><|assistant|>No</s>']
    for (prompt,reply),line in zip(pairs, text):
        ids,start = tokenize_example(tokenizer, prompt, reply)
        assert tokenizer.decode(ids)==line
        assert tokenizer.decode(ids[start:])==f'{reply}</s>'
        p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        def loss(first): return -sum(p[i-1, ids[i]].item() for i in range(first, len(ids)))
        assert completion_loss(model, [(ids, start)]).item()==pytest.approx(loss(start), abs=1e-4)
        whole = tokenize_example(tokenizer, prompt, reply, whole=True)
        assert completion_loss(model, [whole]).item()==pytest.approx(loss(1), abs=1e-3) and loss_tokens([whole])==len(ids)-1
    assert [tokenize_example(tokenizer, p, r)[1] for p,r in pairs]==[len(tokenizer(l.split('<|assistant|>')[0]+'<|assistant|>', add_special_tokens=False).input_ids) for l in text]

def test_labels_are_the_models_own_greedy_answers(whole, demo):
    "The first labels are those of the untrained model, found by transformers' own generation and the matcher."
    import torch
    from esma_nb.datasets.registry import load_rows
    from esma_nb.evaluation.protocol import matchers
    from esma_nb.engines.encoding import encode
    from esma_nb.prompts.templates import direct_prompt
    model,tokenizer = demo
    rows = {r['question_id']: r for r in load_rows('demo', 'train')[0]}
    right = lines(whole/'labels.jsonl')[0]['right']
    assert len(right)==10 and set(right.values())=={True, False}
    for qid,label in right.items():
        ids = torch.tensor(encode(tokenizer, [direct_prompt(rows[qid]['question'])]))
        said = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False)[0, ids.shape[1]:]
        assert matchers['words'](tokenizer.decode(said, skip_special_tokens=True), rows[qid]['answers'])==label
    assert [l['iteration'] for l in lines(whole/'labels.jsonl')]==[0, 5, 10, 15, 20]

def test_taught_and_measured_in_one_format(demo):
    from esma_nb.prompts.elicitation import get_claim
    from esma_nb.evaluation.evaluate import evaluate
    from esma_nb.sft.examples import answer_and_claim_examples,tokenize_example
    from esma_nb.engines.encoding import encode
    from esma_nb.prompts.templates import Completion
    for lang in ('en', 'ko', 'zh', 'es'):
        for chat in (True, False):
            claim,asked,row = get_claim('meta', lang=lang, chat=chat),[],dict(question_id='1', question='{Who}?', answers=['Ada'])
            evaluate(lambda prompts: asked.extend(prompts) or [Completion('') for _ in prompts], [row], claim)
            pairs = answer_and_claim_examples(claim, lang)(row, True)
            assert [p for p,_ in pairs]==asked
            for p,r in pairs:
                ids,start = tokenize_example(demo[1], p, r)
                assert ids[:start]==encode(demo[1], [p])[0]

@pytest.mark.parametrize('task,more', [('sft_meta', []), ('sft_meta', ['--answers']), ('sft', [])])
def test_killed_and_started_again(whole, tmp_path, task, more):
    "Killed somewhere after the second checkpoint, which is in the middle of a label interval."
    more = more if task=='sft_meta' else ['--learning_rate', '1e-4']
    out = tmp_path/'run'
    p = start(task, out, *more)
    while not {'iter000008', 'iter000012'} & set(checkpoints(out)) and p.poll() is None: time.sleep(.002)
    p.kill(), p.communicate()
    assert not (out/'summary.json').exists(), 'too late: the run was over'
    done = run(task, out, *more)
    assert done.returncode==0 and 'going on after iteration' in done.stdout, done.stderr
    assert [m['iteration'] for m in lines(out/'metrics.jsonl')]==[4, 8, 10, 12, 16, 20, 24]
    if not more: assert digest(out)==digest(whole)
    else:
        assert run(task, tmp_path/'once', *more).returncode==0
        assert digest(out)==digest(tmp_path/'once')!=digest(whole)

@pytest.mark.skipif(not os.environ.get('ESMA_NB_SLOW'), reason='ESMA_NB_SLOW=1 runs the slow ones')
def test_a_spoilt_checkpoint_is_passed_over(whole, tmp_path):
    out = tmp_path/'run'
    p = start('sft_meta', out)
    while 'iter000012' not in checkpoints(out) and p.poll() is None: time.sleep(.002)
    p.kill(), p.communicate()
    newest = out/'checkpoints'/checkpoints(out)[-1]
    with open(newest/'optimizer.safetensors', 'r+b') as f: f.truncate(1000)
    done = run('sft_meta', out)
    assert f'{newest.name}/optimizer.safetensors is truncated or was changed: going back' in done.stdout
    assert digest(out)==digest(whole)

@pytest.mark.skipif(not os.environ.get('ESMA_NB_SLOW'), reason='ESMA_NB_SLOW=1 runs the slow ones')
def test_interrupted_politely(whole, tmp_path):
    out = tmp_path/'run'
    p = start('sft_meta', out)
    while not checkpoints(out) and p.poll() is None: time.sleep(.002)
    p.send_signal(signal.SIGINT)
    _,err = p.communicate()
    assert p.returncode==130 and 'the same command goes on from there' in err and err.count('\n')==1, err
    assert run('sft_meta', out).returncode==0
    assert digest(out)==digest(whole)

@pytest.mark.skipif(not os.environ.get('ESMA_NB_SLOW'), reason='ESMA_NB_SLOW=1 runs the slow ones')
def test_two_processes_learn_the_same(whole, tmp_path):
    "Gradients are added in another order, so the last digits differ, and nothing else does."
    import torch
    from safetensors.torch import load_file
    script,out = tmp_path/'main.py',tmp_path/'run'
    script.write_text(MAIN)
    command = [BIN/'torchrun', '--nproc_per_node', '2', script, *words('sft_meta', out)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV)
    assert done.returncode==0, done.stderr
    a,b = load_file(out/'model'/'model.safetensors'),load_file(whole/'model'/'model.safetensors')
    assert all(torch.allclose(a[n], b[n], atol=2e-5) for n in a)
    assert [(r['direct_output'], r['yes']) for r in lines(out/'records'/'iter000024.jsonl')]==[(r['direct_output'], r['yes']) for r in lines(whole/'records'/'iter000024.jsonl')]
    assert [l['right'] for l in lines(out/'labels.jsonl')]==[l['right'] for l in lines(whole/'labels.jsonl')]
    for m,n in zip(lines(out/'metrics.jsonl'), lines(whole/'metrics.jsonl')): assert m['loss']==pytest.approx(n['loss'], abs=1e-3)

@pytest.mark.skipif(not os.environ.get('ESMA_NB_SLOW'), reason='ESMA_NB_SLOW=1 runs the slow ones')
def test_the_published_ways_by_flag(tmp_path):
    plain,loud,raw = (tmp_path/n for n in ('plain', 'loud', 'raw'))
    for out,more in ((plain, []), (loud, ['--prompt_loss']), (raw, ['--no-meta_chat'])): assert run('sft_meta', out, '--label_interval', 1, *more).returncode==0
    assert lines(loud/'metrics.jsonl')[0]['tokens'] > 10*lines(plain/'metrics.jsonl')[0]['tokens']
    assert len({digest(plain), digest(loud)})==2 and digest(raw)==digest(plain)
    said = [[r['log_odds'] for r in lines(out/'records'/'before.jsonl')] for out in (plain, raw)]
    assert said[0]!=said[1]
    assert len(lines(plain/'labels.jsonl'))==24

@pytest.mark.parametrize('task,more,says', [
    ('sft', ['--model', './nowhere'], 'there is no ./nowhere'),
    ('sft', ['--dataset', 'trivia'], "no dataset 'trivia'"),
    ('sft_meta', ['--lang', 'tlh'], 'pick one of en'),
    ('sft_meta', ['--learning-rate', '0'], 'above 0'),
    ('sft_meta', ['--num_samples', '10000'], '10,000 samples wanted'),
    ('sft_meta', ['--label-interval', '-1'], '0 to label once'),
    ('sft_meta', ['--warmup_ratio', '1.5'], 'below 1'),
    ('sft', ['--dtype', 'float8'], "no dtype 'float8'"),
    ('sft', ['--seeed', '1'], 'unrecognized arguments')])
def test_a_mistake_is_one_line_and_leaves_nothing(task, more, says, tmp_path):
    done = run(task, tmp_path/'run', *more)
    assert done.returncode==2 and says in done.stderr and done.stderr.count('\n')==1, done.stderr
    assert not (tmp_path/'run').exists()

def test_a_folder_of_another_run_is_refused(whole):
    done = run('sft_meta', whole, '--seed', 6)
    assert done.returncode==2 and 'seed=5 (now 6)' in done.stderr and done.stderr.count('\n')==1

def test_a_gradient_that_is_no_number_stops_the_run(tmp_path):
    done = run('sft_meta', tmp_path/'run', '--learning_rate', '1e30', '--warmup_ratio', '0')
    assert done.returncode==2 and 'give a lower --learning_rate' in done.stderr and done.stderr.count('\n')==1, done.stderr

def test_bfloat16_reads_and_float32_learns(whole, tmp_path):
    from safetensors.torch import load_file
    assert run('sft_meta', tmp_path/'run', '--dtype', 'bfloat16').returncode==0
    assert digest(tmp_path/'run')!=digest(whole)
    assert {str(t.dtype) for t in load_file(tmp_path/'run'/'model'/'model.safetensors').values()}=={'torch.float32'}

def test_help_loads_nothing_heavy():
    code = "import sys, esma_nb.sft.train; print([m for m in ('torch', 'transformers', 'datasets', 'scipy', 'matplotlib', 'pandas') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, '-c', code], text=True).strip()=='[]'

DATA = os.environ.get('ESMA_NB_DATA')
@pytest.mark.skipif(not DATA, reason='needs ESMA_NB_DATA with fictional_qa')
def test_fictional_events_are_learned_on_one_half_only(tmp_path):
    out = tmp_path/'run'
    done = subprocess.run([sys.executable, '-c', MAIN, 'sft', '--dataset', 'fictional_qa', '--data_dir', DATA, '--learning_rate', '1e-3', '--num_epochs', '20',
        '--batch_size', '2', '--output_dir', str(out)], capture_output=True, text=True, env=ENV)
    assert done.returncode==0, done.stderr
    s = summary(out)
    assert s['learned']['before']['accuracy']==0 and s['learned']['after']['accuracy']>.8 and s['after']['accuracy']<.2
    def ids(folder): return {r['question_id'][:9] for r in lines(folder/'records'/'before.jsonl')}
    assert ids(out) and ids(out/'learned') and not ids(out) & ids(out/'learned')
