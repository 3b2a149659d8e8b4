"Graders: letters and numbers, and a judge behind a server that misbehaves"
import json,os,subprocess,sys,time
from pathlib import Path
import pytest
from esma_nb.api.client import APIEngine
from esma_nb.api.judge import judge,judge_bill
from esma_nb.core.files import append_lines,read_json,read_lines
from esma_nb.metrics.multiple_choice import multiple_choice_match
from esma_nb.metrics.numbers import numeric_match
from servers import Server

BIN = Path(sys.executable).parent
CASES = [(f'Question {i}?', [f'City {i}'], f'Reply {i}') for i in range(12)]

def number(q): return int(q['messages'][0]['content'].split('Reply ')[1].split('"')[0])

def says(text, wait=0):
    def mood(handler, q):
        time.sleep(wait)
        handler.say(200, json.dumps(dict(model='judge-1', usage=dict(prompt_tokens=100, completion_tokens=2),
            choices=[dict(index=0, message=dict(role='assistant', content=text), finish_reason='stop')])))
    return mood

def grade_of(i): return ('correct', 'incorrect', 'not attempted')[i%3]

@pytest.fixture
def serve():
    made = []
    def start(mood): return made.append(Server(mood)) or made[-1]
    yield start
    for s in made: s.close()

def remote(server, **more): return APIEngine('judge-1', server.url, 'none', **dict(dict(tries=2, timeout=5, concurrency=4), **more))

def test_misbehaviour_is_unknown(serve, tmp_path):
    "Wrong words, an empty text, an error 500 and a hang-up are None; the next call asks the failed ones again."
    bad = {0: says('I think it is correct'), 1: says(''), 2: 'down', 3: 'dropped', 4: 'broken'}
    server = serve(lambda server, q, n: bad.get(number(q), says(grade_of(number(q)))))
    path = tmp_path/'judgements.jsonl'
    found = judge(path, remote(server), CASES)
    assert found == [None]*5 + [grade_of(i) for i in range(5, 12)]
    bill = judge_bill(path, (1., 1.))
    assert bill['failed'] >= 3 and bill['requests'] == len(server.seen)
    better = serve(lambda server, q, n: says(grade_of(number(q))))
    again = judge(path, remote(better), CASES)
    assert again[2:] == [grade_of(i) for i in range(2, 12)] and again[0] is None
    asked = {int(t.split('Reply ')[1].split('"')[0]) for _,t,_ in better.seen}
    assert asked <= {1, 2, 3, 4} and {2, 3, 4} <= asked

def record(i, reply, correct): return dict(question_id=str(i), question=f'Question {i}?', answers=[f'City {i}'], direct_output=reply, correct=correct, yes=True)

def test_killed_and_resumed(serve, tmp_path):
    "No finished judgement is asked again, and the bill has every request that was answered."
    server = serve(lambda server, q, n: says(grade_of(number(q)), wait=.1))
    append_lines(tmp_path/'records'/'meta.jsonl', [record(i, f'Reply {i}', i%2==0) for i in range(40)])
    words = [str(w) for w in (BIN/'esma_nb_score', tmp_path, '--grader', 'judge', '--judge_model', 'judge-1', '--judge_url', server.url, '--judge_price', '1,1')]
    path,env = tmp_path/'judgements.jsonl',dict(os.environ, OMP_NUM_THREADS='1')
    p = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    while p.poll() is None and len(read_lines(path))<4: time.sleep(.01)
    p.kill(), p.communicate()
    done = {l['key'] for l in read_lines(path)}
    assert 4 <= len(done) < 40
    before = len(server.seen)
    r = subprocess.run(words, capture_output=True, text=True, env=env)
    assert r.returncode==0, r.stderr
    assert len(server.seen)-before == 40-len(done)
    assert '14 correct, 13 incorrect, 13 not attempted, 0 unknown' in r.stdout and "Cohen's kappa" in r.stdout
    assert 'judge: 40 judgements (0 unreadable), 0 failed; 40 requests, 4,000 tokens in, 80 out, $0.00408' in r.stdout
    assert 'You grade one reply' in r.stdout

def test_eval_with_a_judge(serve, tmp_path):
    server = serve(lambda server, q, n: says('not attempted'))
    words = [str(w) for w in (BIN/'esma_nb_eval', '--num_samples', 6, '--grader', 'judge', '--judge_url', server.url, '--output_dir', tmp_path/'x')]
    r = subprocess.run(words, capture_output=True, text=True)
    assert r.returncode==2 and 'which judge?' in r.stderr and not (tmp_path/'x').exists()
    r = subprocess.run([*words, '--judge_model', 'judge-1'], capture_output=True, text=True)
    assert r.returncode==0, r.stderr
    lines = read_lines(tmp_path/'x'/'records'/'meta.jsonl')
    assert len(lines)==6 and all(l['correct'] is False and l['grades']['judge']=='not attempted' for l in lines)
    assert '6 not attempted' in r.stdout and len(server.seen)==6

def test_eval_api_with_a_judge(serve, tmp_path):
    "Killed while the judge is asked, and resumed: no question and no finished judgement twice; the bill is in the summary, and nothing of it changes on a third start."
    questions,out = tmp_path/'q.jsonl',tmp_path/'run'
    append_lines(questions, [dict(question_id=str(i), question=f'Question {i}?', answers=[f'City {i}']) for i in range(30)])
    def answers(server, q, n):
        text = q['messages'][0]['content']
        return says('Yes' if 'Do you know' in text else f"Reply {text.split('Question ')[1].split('?')[0]}")
    model,server = serve(answers),serve(lambda server, q, n: says(grade_of(number(q)), wait=.1))
    words = [str(w) for w in (BIN/'esma_nb_eval_api', '--model', 'm', '--base_url', model.url, '--key_env', 'none', '--dataset', questions, '--price', '1,1', '--output_dir', out,
        '--grader', 'judge', '--judge_model', 'judge-1', '--judge_url', server.url, '--judge_key_env', 'none', '--judge_price', '2,2')]
    path,env = out/'judgements.jsonl',dict(os.environ, OMP_NUM_THREADS='1', TQDM_DISABLE='1')
    p = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    while p.poll() is None and len(read_lines(path))<4: time.sleep(.01)
    p.kill(), p.communicate()
    done,asked = {l['key'] for l in read_lines(path)},len(server.seen)
    assert 4 <= len(done) < 30 and len(model.seen)==60 and not (out/'summary.json').exists()
    assert all(l['correct'] is None for l in read_lines(out/'records'/'meta.jsonl')) # Unknown until it is judged
    r = subprocess.run(words, capture_output=True, text=True, env=env)
    assert r.returncode==0 and len(model.seen)==60 and len(server.seen)-asked==30-len(done), r.stderr
    summary,lines = read_json(out/'summary.json'),read_lines(out/'records'/'meta.jsonl')
    assert summary['judge']==dict(judgements=30, unreadable=0, failed=0, requests=30, prompt_tokens=3000, completion_tokens=60, dollars=.00612)
    assert summary['usage']['dollars']==.00612 and summary['scores']['n']==30 and [l['grades']['judge'] for l in lines]==[grade_of(i) for i in range(30)]
    assert subprocess.run(words, capture_output=True, env=env).returncode==0
    assert (read_json(out/'summary.json'), read_lines(out/'records'/'meta.jsonl'), len(model.seen), len(server.seen)-asked)==(summary, lines, 60, 30-len(done))

@pytest.mark.parametrize('reply,right', [('B', 1), ('(b) Lyon', 1), ('(a) Lyon', 0), ('(b Lyon', 0), ('B) Lyon', 1), ('Answer: B', 1), ('C. Lyon', 0), ('lyon', 1), ('Lyon or Paris', 0), ('A B', 0)])
def test_multiple_choice(reply, right): assert multiple_choice_match(reply, ['B', 'Lyon'])==bool(right)

@pytest.mark.parametrize('reply,gold,right', [('so 1,000', '1000', 1), ('-7', '7', 0), ('it is -7.', '-7', 1), ('3/4', '0.75', 1), ('75 %', '3/4', 1), ('7 or 8', '7', 0), ('', '7', 0)])
def test_numeric(reply, gold, right): assert numeric_match(reply, [gold])==bool(right)
