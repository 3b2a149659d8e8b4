"Remote models: a server on the loopback that misbehaves in every way, clients that are killed, a key that nobody may see"
import asyncio,json,os,signal,subprocess,sys,time
from collections import Counter
from hashlib import blake2b
from pathlib import Path
import pytest
from servers import KEY,Server,claims_to,knows
from esma_nb.api.client import APIEngine
from esma_nb.prompts.templates import direct_prompt,meta_prompt

ENV = dict(os.environ, MY_KEY=KEY, TQDM_DISABLE='1', NO_PROXY='127.0.0.1', no_proxy='127.0.0.1', OPENAI_LOG='debug')
N = 40

def lot(*parts): # A number from 0 to 1, the same in every run
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=6).digest(), 'little') / 2**48

def unkind(server, body, n): # 30 % busy, a quarter broken in other ways; one country is never spoken of
    text = body['messages'][0]['content']
    if 'Country 7?' in text: return 'filtered'
    x = lot(text, n)
    for share,mood in [(.30, 'busy'), (.38, 'down'), (.41, 'slow'), (.46, 'broken'), (.49, 'odd'), (.53, 'dropped'), (.57, 'torn')]:
        if x<share: return mood
    return 'fine'

@pytest.fixture
def serve():
    made = []
    def start(mood=unkind): return made.append(Server(mood)) or made[-1]
    yield start
    for s in made: s.close()

@pytest.fixture
def questions(tmp_path):
    path = tmp_path/'capitals.jsonl'
    path.write_text(''.join(json.dumps(dict(question_id=str(i), question=f'What is the capital of Country {i}?', answers=[f'City {i}']))+'\n' for i in range(N)))
    return path

def command(server, questions, *more):
    return [str(w) for w in (sys.executable, '-m', 'esma_nb.evaluation.api_jobs', '--model', 'unkind', '--base_url', server.url, '--key-env', 'MY_KEY',
        '--dataset', questions, '--timeout', '2', '--output_dir', questions.parent/'run', *more)]

def run(*words): return subprocess.run(words, capture_output=True, text=True, env=ENV, timeout=600)

def whole_lines(path): return [json.loads(l) for l in path.read_bytes().split(b'\n')[:-1]] if path.exists() else []

def check(lines): # What must hold at every moment
    assert len({l['question_id'] for l in lines})==len(lines)
    for l in lines:
        i = int(l['question_id'])
        if l['failed']: assert (l['correct'], l['yes'], l['unparsed'])==(None, None, False), l
        else: assert (l['correct'], l['yes'])==(knows(i), claims_to(i)), l

def nowhere(folder, *outputs): # The key, in any file or output
    for p in folder.rglob('*'):
        if p.is_file(): assert KEY.encode() not in p.read_bytes(), p
    for o in outputs: assert KEY not in o

def test_killed_five_times(serve, questions):
    server,path = serve(),questions.parent/'run'/'records'/'meta.jsonl'
    outputs,before = [],set()
    for kill in range(5):
        log = open(questions.parent/f'log{kill}.txt', 'w+')
        p = subprocess.Popen(command(server, questions), stdout=log, stderr=log, env=ENV)
        start,end = len(server.seen),time.monotonic()+200
        while p.poll() is None and len(whole_lines(path))<7*(kill+1) and time.monotonic()<end: time.sleep(.01)
        p.send_signal(signal.SIGKILL)
        p.wait()
        time.sleep(.1)
        assert not {i for i in before for _,text,_ in server.seen[start:] if f'Country {i}?' in text}
        lines = whole_lines(path)
        check(lines)
        assert len(lines)>=len(before)
        before = {l['question_id'] for l in lines if not l['failed'] or 'refused' in l['failed']}
        if kill==2:
            path.write_bytes(path.read_bytes()[:-30]) # Torn by a crash of the machine
            before -= {lines[-1]['question_id']}
    assert 0<len(before)<N
    for _ in range(3): # Rows whose eight tries were all in vain are asked anew
        done = run(*command(server, questions))
        assert done.returncode==0, done.stderr[-500:]
        outputs += [done.stdout, done.stderr]
        lines = whole_lines(path)
        check(lines)
        assert [l['question_id'] for l in lines]==[str(i) for i in range(N)]
        if not [l for l in lines if l['failed'] and 'refused' not in l['failed']]: break
    assert [l['question_id'] for l in lines if l['failed']]==['7'] and lines[7]['failed']=='refused: content filter'
    summary = json.loads((questions.parent/'run'/'summary.json').read_text())
    assert summary['scores']['n']==N-1 and summary['scores']['failed']==1 and summary['left']==0
    assert summary['usage']['served_by']=={'unkind-1': N}
    asked = len(server.seen)
    assert run(*command(server, questions)).returncode==0 and len(server.seen)==asked
    print(Counter(mood for *_,mood in server.seen))
    nowhere(questions.parent, *outputs)

def test_what_nobody_can_mend_stops_at_once(serve, questions):
    for mood,says in [((401, 'Incorrect key'), 'right key'), ((404, 'No such model'), '--model'), ((400, 'model `unkind` does not exist'), 'not exist'),
            ((429, 'insufficient_quota'), 'quota'), ((400, 'temperature is not for me, nor is anything else'), None)]:
        server = serve(lambda *_: mood)
        done = run(*command(server, questions, '--output_dir', questions.parent/f'run{server.server_port}'))
        last = done.stderr.splitlines()[-1]
        assert done.returncode==2 and 'Traceback' not in done.stderr, done.stderr[-800:]
        assert says is None or says in last, last
        assert len(server.seen)<=(1 if says else 25)
        nowhere(questions.parent, done.stdout, done.stderr)
    traceback = run(*command(serve(lambda *_: (401, 'Incorrect key')), questions, '--debug', '--output_dir', questions.parent/'debug'))
    assert 'Traceback' in traceback.stderr
    nowhere(questions.parent, traceback.stdout, traceback.stderr)

def test_a_dead_server_costs_no_patience_and_no_rows(questions):
    server = Server()
    server.close()
    done = run(*command(server, questions, '--tries', '2'))
    assert done.returncode==2 and '20 prompts in a row failed' in done.stderr
    assert all(l['failed'] and l['yes'] is None for l in whole_lines(questions.parent/'run'/'records'/'meta.jsonl'))
    nowhere(questions.parent, done.stdout, done.stderr)

def test_mistakes_are_one_line(questions):
    server = Server()
    quiet = {k: v for k,v in ENV.items() if k!='OPENAI_LOG'}
    for more,env,says in [([], dict(quiet, MY_KEY='sk-with a-blank'), 'holds blanks'), (['--price', 'dear'], quiet, '0.15,0.60'), (['--max_cost', '1'], quiet, '--price'),
            (['--base_url', 'ftp:/x'], quiet, 'no address'), (['--base_url', 'https://127.0.0.2/v1', '--key_env', 'NONESUCH'], quiet, 'NONESUCH'),
            (['--base_url', 'http://127.0.0.2/v1'], quiet, 'unencrypted'), (['--claim', 'gut'], quiet, 'choose one of'), (['--max_cost', '0', '--price', '1,1'], quiet, 'buys no question'),
            (['--timeout', '0'], quiet, 'give more than 0 seconds')]:
        done = subprocess.run(command(server, questions, *more), capture_output=True, text=True, env=env, timeout=600)
        assert done.returncode==2 and says in done.stderr and done.stderr.count('\n')==1, (more, done.stderr)
        assert 'a-blank' not in done.stderr and KEY not in done.stderr
    assert not server.seen
    server.close()

def test_budget_and_interruption(serve, questions):
    server,path = serve(lambda server, body, n: 'fine'),questions.parent/'run'/'records'/'meta.jsonl'
    words = command(server, questions, '--price', '1000,1000', '--concurrency', '2')
    done = run(*words, '--max_cost', '2')
    summary = json.loads((questions.parent/'run'/'summary.json').read_text())
    assert done.returncode==0 and 0<summary['usage']['dollars']<=2 and 0<summary['left']<N, done.stderr[-500:]
    assert summary['usage']['dollars']==pytest.approx(.106*len(whole_lines(path)))
    assert run(*words, '--max_cost', '2').returncode==0
    assert json.loads((questions.parent/'run'/'summary.json').read_text())['usage']['dollars']<=2
    asked = len(server.seen)
    server.mood = lambda *_: time.sleep(1) or 'fine'
    p = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) # Jobs in the background ignore it
    while p.poll() is None and len(server.seen)<asked+4: time.sleep(.01)
    p.send_signal(signal.SIGINT)
    _,err = p.communicate(timeout=300)
    assert p.returncode==130 and 'the same command goes on from there' in err.splitlines()[-1], err[-500:]
    assert 'never retrieved' not in err and 'was destroyed' not in err
    assert run(*words).returncode==0 and len(whole_lines(path))==N
    check(whole_lines(path))

def test_a_budget_is_used_up(serve, questions):
    "The maximum of a row is far above its cost: rows wait for the settled ones, and can be interrupted while they wait."
    server,path = serve(lambda server, body, n: 'fine'),questions.parent/'run'/'records'/'meta.jsonl'
    words = command(server, questions, '--price', '1,10', '--max_cost', '1', '--enable_thinking', '--max_reasoning_tokens', '8192')
    done = run(*words)
    summary = json.loads((questions.parent/'run'/'summary.json').read_text())
    assert done.returncode==0 and summary['left']==0 and 0<summary['usage']['dollars']<=1, done.stderr[-500:]
    server.mood = lambda *_: time.sleep(1) or 'fine'
    p = subprocess.Popen([*words, '--output_dir', str(questions.parent/'again')], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    asked = len(server.seen)
    while p.poll() is None and len(server.seen)<asked+4: time.sleep(.01)
    p.send_signal(signal.SIGINT)
    _,err = p.communicate(timeout=300)
    assert p.returncode==130 and 'the same command goes on from there' in err.splitlines()[-1], err[-500:]

def test_nothing_answered_is_an_error(serve, questions):
    server,path = serve(lambda *_: (500, 'down')),questions.parent/'run'/'records'/'meta.jsonl'
    words = command(server, questions, '--tries', '1', '--num_samples', '3')
    done = run(*words)
    assert done.returncode==2 and '3 of 3 rows failed' in done.stderr and 'asks them again' in done.stderr, done.stderr[-500:]
    assert len(whole_lines(path))==3 and not (questions.parent/'run'/'summary.json').exists()
    server.mood = lambda *_: 'fine'
    assert run(*words).returncode==0 and not any(l['failed'] for l in whole_lines(path))

def test_time_is_up(serve, questions):
    done = run(*command(serve(lambda *_: time.sleep(1.5) or 'fine'), questions, '--concurrency', '1', '--max_minutes', '.5')) # A busy machine may need many seconds to start
    assert done.returncode==0 and 'the budget left out' in done.stdout, done.stderr[-500:]

def ask(server, prompts, **how):
    remote = APIEngine('unkind', server.url, KEY, **how)
    return remote,remote(prompts)

def prompts(n): return [p(f'What is the capital of Country {i}?') for i in range(n) for p in (direct_prompt, meta_prompt)]

def test_retry_after_is_honoured(serve):
    server = serve(lambda server, body, n: 'fine' if server.seen else 'wait')
    remote,replies = ask(server, prompts(4))
    first,*others = [t for t,*_ in server.seen]
    assert all(t-first>=1 for t in others) and not any(r.failed for r in replies)

def test_a_dialect_is_learned_once(serve):
    def picky(server, body, n):
        for word in ('max_completion_tokens', 'reasoning_effort', 'temperature', 'logprobs'):
            if word in body: return 400,f"Unsupported parameter: '{word}'"
        return 'fine'
    server = serve(picky)
    remote,replies = ask(server, prompts(20))
    assert not any(r.failed for r in replies)
    complaints = Counter(mood[1].split("'")[1] for *_,mood in server.seen if mood!='fine')
    assert complaints.pop('logprobs')==2 # The first prompt with log-odds goes alone
    assert complaints==dict(max_completion_tokens=1, reasoning_effort=3, temperature=1), complaints
    before = len(server.seen)
    remote(prompts(5))
    assert len(server.seen)==before+10

def test_a_dripping_server_meets_the_deadline(serve):
    start = time.monotonic()
    _,(reply,) = ask(serve(lambda *_: 'drip'), prompts(1)[:1], timeout=.5, tries=2)
    assert 'no response within 0.5 s' in reply.failed and time.monotonic()-start<5

def test_order_and_odd_texts(serve):
    server = serve(lambda server, body, n: time.sleep(.02*lot(body['messages'][0]['content'])) or 'fine')
    _,replies = ask(server, prompts(30))
    assert [r.text=='Yes' for r in replies[1::2]]==[claims_to(i) for i in range(30)]
    assert all(r.text=='Perhaps Bearer ***' for i,r in enumerate(replies[::2]) if not knows(i))

def test_inside_a_running_loop(serve):
    async def notebook(): return ask(serve(lambda *_: 'fine'), prompts(2))[1]
    assert [r.text for r in asyncio.run(notebook())][1::2]==['No', 'Yes']
