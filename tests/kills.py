"""A campaign of kills: training runs that are sent signal 9 at every bad moment, and have to end as if nothing had happened.

`python tests/kills.py --kills 60 --seed 0` starts small runs of `esma_nb_train`, in one process and in two, kills them, starts the same command again, and
compares what comes out with a run that nobody disturbed. Half of the kills come at random moments from outside; the other half are aimed: the run is then
started through this very file, which wraps one function of the package, so that the process dies in, before or after its n-th call. The package has no hooks.
`tests/test_kills.py` does the same with fewer kills.
"""
import argparse,json,os,random,re,runpy,shutil,signal,subprocess,sys,tempfile,threading,time
from collections import Counter,defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from uuid import uuid4
import psutil

BIN = Path(sys.executable).parent
N = 4 # Iterations of a run
TINY = (f'--num_iterations {N} --sigma .04 --population_size 6 --num_data_per_iteration 16 --num_val_samples 30 --batch_size 10 --evaluate_interval 1 '
    '--model_save_interval 1 --keep_checkpoints 2 --device cpu --seed 5').split()

# ---- Where to hit. Each moment: what is wrapped, when its process dies, which file it has to be about, how often a whole run comes by

class Moment:
    def __init__(self, target, when, about='', visits=N, main=False): self.__dict__.update(locals())

moments = dict(
    asking=Moment('esma_nb.evolution.population:evaluate_members', 'in'), # A population is being asked
    measuring=Moment('esma_nb.evaluation.evaluate:evaluate_into', 'in', visits=N+1), # Held-out questions
    update=Moment('esma_nb.evolution.es:MasterWeights.update', 'in'), # The master is being moved
    stepped=Moment('esma_nb.evolution.es:MasterWeights.update', 'after'), # It was, and nobody has written it down
    metrics=Moment('esma_nb.core.files:append_lines', 'after', r'metrics\.jsonl', main=True), # Metrics' line there, journal's not
    torn=Moment('esma_nb.core.files:append_lines', 'torn', r'journal\.jsonl', main=True), # Half of a journal's line
    journal=Moment('esma_nb.core.files:append_lines', 'after', r'journal\.jsonl', main=True), # The line is there, the checkpoint is not
    weights=Moment('esma_nb.engines.saving:write_model', 'in', main=True), # Weights of a checkpoint are being written
    unsealed=Moment('esma_nb.engines.saving:write_model', 'after', main=True), # They were; no manifest
    sealed=Moment('esma_nb.core.manifests:write_manifest', 'after', main=True), # Finished, not renamed
    renamed=Moment('os:replace', 'after', r'iter\d+|model', main=True), # There, and the older ones not yet pruned
    pruning=Moment('shutil:rmtree', 'half', r'iter\d+', N-3, main=True), # An old checkpoint is half gone
    books=Moment('os:replace', 'before', r'metrics\.jsonl', 1, main=True), # A resume puts the metrics in order
    summary=Moment('os:replace', 'before', r'summary\.json', 1, main=True)) # All done but the last file
kinds = dict(evaluation='asking measuring', update='update stepped', journal='metrics torn journal books summary', checkpoint='weights unsealed sealed renamed pruning')
kind_of = {m: kind for kind,names in kinds.items() for m in names.split()}

# ---- The victim: this file, started with AIM in its environment

def die(who): # self, both (the other process first), or all (torchrun before them)
    parent = psutil.Process().parent()
    others = [p for p in parent.children() if p.pid!=os.getpid()] if who!='self' else []
    for p in ([parent] if who=='all' else []) + others: p.kill()
    os.kill(os.getpid(), signal.SIGKILL)

def torn_line(path, values): # What a crash of the machine may leave
    text = ''.join(json.dumps(v)+'\n' for v in values).encode()
    with open(path, 'ab') as f: f.write(text[:len(text)//2])

def half_removed(folder): max(Path(folder).iterdir(), key=lambda p: p.stat().st_size).unlink()

def aim(name, n, who, delay):
    "Let this process die at the `n`-th moment `name`."
    m,count = moments[name],Counter()
    module,path = m.target.split(':')
    *way,last = path.split('.')
    owner = import_module(module)
    for w in way: owner = getattr(owner, w)
    f = getattr(owner, last)
    def fits(args): return not m.about or any(re.fullmatch(m.about, Path(a).name) for a in args[:2] if isinstance(a, (str, Path)))
    @wraps(f)
    def aimed(*args, **kw):
        count['n'] += fits(args)
        if not fits(args) or count['n']!=n: return f(*args, **kw)
        if m.when=='torn': torn_line(*args)
        if m.when=='half': half_removed(args[0])
        if m.when in ('torn', 'half', 'before'): die(who)
        if m.when=='in': threading.Timer(delay, die, [who]).start()
        result = f(*args, **kw)
        if m.when=='after': die(who)
        return result
    setattr(owner, last, aimed)

def victim(order):
    mine = order['rank'] in (None, int(os.environ.get('RANK', 0)))
    if mine and os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')=='0': aim(*(order[k] for k in ('name', 'n', 'who', 'delay')))
    runpy.run_module('esma_nb.evolution.train', run_name='__main__', alter_sys=True)

# ---- Starting and ending runs

class Run:
    "One start of the command, in one process or two."
    def __init__(self, out, processes=1, order=None, restarts=0):
        self.out,self.processes,self.mark = Path(out),processes,uuid4().hex
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.said = Path(f'{out}.{time.time_ns()}.log')
        env = {k: v for k,v in os.environ.items() if k!='AIM'} | dict(OMP_NUM_THREADS='1', TQDM_DISABLE='1', KILLS=self.mark)
        if order: env['AIM'] = json.dumps(order)
        program = [__file__] if order else ['-m', 'esma_nb.evolution.train']
        launcher = [BIN/'torchrun', '--nproc_per_node', '2', '--max-restarts', str(restarts)] if processes>1 else [sys.executable]
        with self.said.open('w') as f:
            self.p = subprocess.Popen([*launcher, *program, *TINY, '--output_dir', out], stdout=f, stderr=f, env=env, start_new_session=True)

    def text(self): return self.said.read_text(errors='replace')

    def wait_for_work(self): # Until it has said its first line, or is dead
        while '\n' not in self.text() and self.p.poll() is None: time.sleep(.02)

    def alive(self): # Everybody who carries the mark
        def marked(p):
            try: return p.environ().get('KILLS')==self.mark and p.status()!=psutil.STATUS_ZOMBIE
            except (psutil.NoSuchProcess, psutil.AccessDenied): return False
        return [p for p in psutil.process_iter() if marked(p)]

    def workers(self): return sorted((p for p in self.alive() if p.pid!=self.p.pid), key=lambda p: p.pid) if self.processes>1 else [psutil.Process(self.p.pid)]

    def kill(self, who): # From outside: self, other, both, or all, torchrun included
        crew = self.workers()
        for p in dict(self=crew[:1], other=crew[1:], both=crew, all=[psutil.Process(self.p.pid), *crew])[who]: p.kill()

    def busy(self)->float: # Seconds of computing
        def seconds(p):
            try: return sum(p.cpu_times()[:2])
            except psutil.NoSuchProcess: return 0
        return sum(map(seconds, self.workers())) if self.p.poll() is None else 0

    def end(self, patience=40)->dict: # Exit status (None: nobody did anything for so many seconds), how long it took, and how many were still there
        start = since = time.time()
        done = 0
        while self.p.poll() is None and time.time()-since<patience:
            try: self.p.wait(1)
            except subprocess.TimeoutExpired:
                if abs((now := self.busy())-done)>.3: done,since = now,time.time()
        took,rc = time.time()-start,self.p.poll()
        if rc==-signal.SIGKILL: time.sleep(.2)
        left = self.alive()
        for p in left: p.kill()
        self.p.wait()
        return dict(rc=rc, seconds=took, left=len(left))

# ---- What should be true

def whole_lines(path): return path.read_bytes().split(b'\n')[:-1] if path.exists() else []

def iterations(path): return [json.loads(l)['iteration'] for l in whole_lines(path)]

def state(out)->dict: # What counts as done on disk
    return dict(journal=whole_lines(out/'journal.jsonl'), records={p.name: p.read_bytes() for p in (out/'records').glob('[!.]*.jsonl')})

def lost(before:dict, out:Path)->list: # Complaints
    "Is all that was whole before still there, and nothing twice?"
    now,wrong = state(out),[]
    if now['journal'][:len(before['journal'])]!=before['journal']: wrong.append('a line of the journal was lost or rewritten')
    wrong += [f'records/{name} was lost or asked again' for name,data in before['records'].items() if now['records'].get(name)!=data]
    t = iterations(out/'journal.jsonl')
    return wrong + ([f'the journal has iterations {t}'] if t!=list(range(1, len(t)+1)) else [])

def facts(out:Path)->dict: # All that must not depend on who was killed when
    summary = json.loads((out/'summary.json').read_text())
    records = {p.name: [{k: v for k,v in json.loads(l).items() if k!='seconds'} for l in p.open()] for p in sorted((out/'records').glob('[!.]*'))}
    return dict(summary={k: v for k,v in summary.items() if k!='seconds'}, journal=whole_lines(out/'journal.jsonl'), records=records,
        metrics=iterations(out/'metrics.jsonl'), weights={str(p.relative_to(out)): sha256(p.read_bytes()).hexdigest() for p in out.rglob('[!.]*.safetensors') if '/.' not in str(p)},
        files={str(p.relative_to(out)) for p in out.rglob('*')})

def same(a, b)->bool: # Up to the last digits of numbers, which depend on who shares a batch
    if isinstance(a, dict): return isinstance(b, dict) and a.keys()==b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list): return isinstance(b, list) and len(a)==len(b) and all(map(same, a, b))
    return abs(a-b)<1e-4 if isinstance(a, float) and isinstance(b, (int, float)) else a==b

def differences(out:Path, reference:dict)->list: # Complaints
    "Compare a finished run with the one that nobody disturbed."
    if not (out/'summary.json').exists(): return ['there is no summary']
    here = facts(out)
    wrong = [f'other {k}' for k in here if k!='files' and not same(here[k], reference[k])]
    for what,names in (('left over', here['files']-reference['files']), ('missing', reference['files']-here['files'])):
        if names: wrong.append(f"{what}: {', '.join(sorted(names)[:5])}")
    return wrong

def unclear(run, order, end)->list: # Complaints
    "Did the job of a killed process end, and say how to go on? Before its first measurement there is nothing to go on with, and after its last line nothing to do."
    if end['rc'] is None: return ['the job hung']
    wrong,text = [f"{end['left']} processes survived"] if end['left'] else [],run.text()
    if run.processes==1 or order['who'] in ('both', 'all') or 'before:' not in text or (run.out/'summary.json').exists(): return wrong
    if 'same command' not in text: wrong.append('the process that was left did not say how to go on')
    if re.search(r'^\[rank\d\]: Traceback', text, re.M): wrong.append('the process that was left ended with a traceback')
    return wrong

# ---- The campaign

def draw(rng, processes, left)->dict: # A blow from outside at a random moment, or an order for the victim
    who = rng.choice(('self', 'other', 'both', 'all') if processes>1 else ('self',))
    label = dict(self='one of two', other='one of two', both='both of two', all='both and torchrun')[who] if processes>1 else 'one process'
    if rng.random()<.5: return dict(what=f'random, {label}', who=who, at=rng.random()*(left+1)/(N+1))
    name = rng.choice(kinds[kind := rng.choice([*kinds])].split())
    m = moments[name]
    rank = None if processes==1 else 0 if m.main else rng.choice((0, 1))
    return dict(what=f'{kind}, {label}', name=name, n=rng.randint(1, max(1, m.visits-(N-left))), who='self' if who=='other' else who, rank=rank, delay=rng.choice((0, rng.random()*.3)))

def strike(out, processes, order, span)->dict: # What was done and seen; None if the run was faster
    "Start the command, and kill it as ordered."
    before,run = state(out),Run(out, processes, order if 'name' in order else None)
    if 'at' in order:
        run.wait_for_work()
        time.sleep(order['at']*span)
        try: run.kill(order['who'])
        except psutil.NoSuchProcess: pass
    end = run.end()
    if end['rc']==0: return
    missed = [f"it ended with {end['rc']} before it was killed: {run.text()[-300:]}"] if processes==1 and end['rc']!=-signal.SIGKILL else []
    return dict(order, done=len(state(out)['journal']), seconds=end['seconds'], said=run.text(), wrong=missed+unclear(run, order, end)+lost(before, out))

def chain(folder, seed, blows, processes, span, reference)->list: # A dict for each kill
    "One run that is killed so many times, or by these orders, and then left in peace; one that was shared by two may be finished by one."
    rng,out = random.Random(seed),folder/'run'
    orders = blows if isinstance(blows, list) else (draw(rng, processes, N-len(state(out)['journal'])) for _ in range(blows))
    kills = [k for order in orders if (k := strike(out, processes, order, span*processes))]
    before,run = state(out),Run(out, rng.choice((1, processes)))
    end,text = run.end(),run.text()
    at = int(m[1]) if (m := re.search(r'going on after iteration (\d+)', text)) else N if 'this run is finished' in text else 0
    wrong = lost(before, out) + ([] if end['rc']==0 else [f"the resume ended with {end['rc']}: {text.strip()[-300:]}"]) + differences(out, reference)
    kills = kills or [dict(what='(the run was faster)', missed=True, wrong=[])]
    kills[-1]['wrong'] = kills[-1]['wrong']+wrong
    equal = (out/'summary.json').exists() and json.loads((out/'summary.json').read_text())['model_sha256']==reference['summary']['model_sha256']
    for k in kills: k.update(seed=seed, resumed=end['rc']==0, equal=equal, lost=max(0, len(before['journal'])-at))
    if not any(k['wrong'] for k in kills): shutil.rmtree(folder)
    return kills

def undisturbed(out)->tuple: # Its facts, and the seconds between its first line and its end
    run = Run(out)
    run.wait_for_work()
    start,end = time.time(),run.end()
    if end['rc']!=0: raise SystemExit(f"the undisturbed run failed:\n{run.text()[-2000:]}")
    if not all(any(json.loads(l)['coefficients']) for l in whole_lines(out/'journal.jsonl')): raise SystemExit('a run in which nothing moves proves nothing')
    return facts(out),time.time()-start

def campaign(total, seed, folder, two=1/3, jobs=1, log=print, most=3)->tuple: # A dict for each kill, and the facts of the undisturbed run
    "Kill until `total` have died; a run is killed once to `most` times."
    reference,span = undisturbed(folder/'reference')
    log(f'undisturbed: {span:.1f} s of work')
    kills,i = [],0
    while missing := total-len(kills):
        orders = []
        while missing>0:
            n = min(missing, random.Random(f'{seed}/{i}').choice(range(1, most+1)))
            orders.append((folder/f'{i:03d}', f'{seed}/{i}', n, 1 + (int((i+1)*two)>int(i*two)), span, reference))
            missing,i = missing-n,i+1
        with ThreadPoolExecutor(jobs) as pool:
            for mine in pool.map(lambda order: chain(*order), orders):
                kills += [k for k in mine if not k.get('missed')]
                for k in mine: log(in_words(k))
    return kills,reference

def in_words(k)->str: # A line for the log
    told = ' '.join(f'{key}={k[key]}' for key in ('n', 'rank', 'done', 'resumed', 'equal', 'lost') if k.get(key) is not None)
    return f"{k['seed']:7} {k['what']:30} {k.get('name', ''):10} {told}" + ''.join(f'\n      WRONG: {w}' for w in k['wrong'])

def table(kills)->str: # Markdown
    rows = defaultdict(Counter)
    for k in kills:
        for row in (k['what'], 'all'): rows[row].update(dict(kills=1, resumed=int(k['resumed']), equal=int(k['equal']), lost=k['lost'], wrong=len(k['wrong'])))
    body = [[name, *(str(rows[name][c]) for c in ('kills', 'resumed', 'equal', 'lost', 'wrong'))] for name in sorted(rows, key=lambda n: (n=='all', n))]
    head = ['moment', 'kills', 'resumed', 'equal hash', 'iterations lost', 'complaints']
    return '\n'.join('| ' + ' | '.join(f'{c:{30 if i==0 else 15}}' for i,c in enumerate(r)) + ' |' for r in [head, ['-'*30]+['-'*14+':']*5, *body])

def restarted(out, reference, order=dict(name='update', n=2, who='self', rank=1, delay=0))->list: # Complaints
    "One of two processes dies, and torchrun --max-restarts starts both again."
    run = Run(out, 2, order, restarts=3)
    end = run.end()
    wrong = differences(out, reference) + ([] if end['rc']==0 else [f"torchrun ended with {end['rc']}"]) + ([f"{end['left']} processes survived"] if end['left'] else [])
    return wrong + ([] if 'going on after iteration' in run.text() else ['nobody had to be started again'])

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--kills', type=int, default=60)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--two', type=float, default=.4, help='Share of the runs that have two processes')
    p.add_argument('--jobs', type=int, default=1, help='Runs at a time')
    p.add_argument('--folder', help='Where the runs go; those with a complaint stay there')
    a = p.parse_args()
    folder = Path(a.folder or tempfile.mkdtemp(prefix='kills-'))
    def log(text): print(text, flush=True)
    kills,reference = campaign(a.kills, a.seed, folder, a.two, a.jobs, log)
    wrong = restarted(folder/'restarts'/'run', reference)
    log(f"\n{table(kills)}\n\ntorchrun --max-restarts 3, one of two killed in its second update: {'; '.join(wrong) or 'recovered by itself, same hash'}")
    for w,n in Counter(re.sub(r'\d+', 'N', w) for k in kills for w in k['wrong']).most_common(): log(f'{n:3} x {w}')
    raise SystemExit(bool(wrong) or any(k['wrong'] for k in kills))

if __name__=='__main__': victim(json.loads(os.environ['AIM'])) if 'AIM' in os.environ else main()
