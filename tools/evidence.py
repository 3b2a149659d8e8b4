"""The runs of runs/PLAN.md, made one after the other and resumed where they stopped; what stays is in runs/evidence, without the words of the questions.

    ESMA_NB_DATA=data python tools/evidence.py run OUT [HOURS] [NAME...]    make what is missing of the runs whose names begin with one of NAME (all)
    python tools/evidence.py tables                                         the outcomes that the plan names, of the runs that are there
"""
import os,subprocess,sys,time
from pathlib import Path
from bare_records import strip
from half_known import half_known
from dataclasses import replace
import numpy as np
from scipy.stats import t
from esma_nb.core.runs import append_lines,atomic_write,read_lines
from esma_nb.datasets.registry import load_rows
from esma_nb.evaluation.paired import join_records,pooled_difference
from esma_nb.evaluation.recalibration import best_threshold
from esma_nb.evaluation.records import columns,load_records,record_files,scores

home = Path(__file__).parents[1]/'runs'
seeds,sets = (1, 2, 3),('trivia_qa', 'nq_open', 'web_questions')
es = '--num_val_samples 240 --alpha 2e-3 --population_size 8 --num_data_per_iteration 32 --num_iterations 40 --model_save_interval 5'
arms = { # Name: start, and the command from there
    'auroc': ('smollm2', f'train {es} --reward_type auroc'),
    'sft-meta': ('smollm2', 'sft_meta --num_val_samples 240 --num_epochs 1 --learning_rate 2e-6 --model_save_interval 100'),
    'balanced': ('sft-meta-{seed}', f'train {es} --reward_type balanced'),
    'auroc-rademacher': ('smollm2', f'train {es} --reward_type auroc --noise rademacher')}
ways = {'esma': 'train', 'lowrank': 'train --perturbation lowrank', 'rademacher': 'train --noise rademacher',
    'momentum': 'train --optimizer momentum --alpha .0043', 'adam': 'train --optimizer adam --alpha .0048', 'sft-meta': 'sft_meta'}

def pool(out:Path, data:Path)->Path: # The questions of PLAN.md, with their words from the data
    path = out/'half_known.jsonl'
    if not path.exists():
        words = {r['question_id']: r for r in load_rows('trivia_qa', split='train', data_dir=data/'trivia_qa')[0]}
        records = load_records(home/'smollm2'/'pass'/'records'/'meta.jsonl')
        for r in records: r.question,r.answers = (words[r.question_id][k] for k in ('question', 'answers'))
        with atomic_write(path) as draft: append_lines(draft, half_known(records))
    return path

def evaluations(name:str, model:str, data:Path): # (name, command) of the three sets
    for s in sets: yield f'{name}-{s}',f'eval --model {model} --dtype bfloat16 --dataset {s} --data_dir {data/s} --num_samples 1000'

def planned(out:Path, data:Path): # Names and commands, in the order of the plan
    yield from evaluations('base', 'smollm2', data)
    for arm,(start,command) in arms.items():
        for seed in seeds:
            model,run = start.format(seed=seed),f'{arm}-{seed}'
            if model!='smollm2': model = f'{model}/model'
            yield run,f'{command} --model {model} --dataset {pool(out, data).name} --seed {seed}'
            yield from evaluations(run, f'{run}/model', data)
    for seed in range(10):
        for way,command in ways.items():
            often = f"--evaluate_interval {2 if command.startswith('train') else 64}"
            yield f'demo-{way}-{seed}',f'{command} --model demo --seed {seed} {often}'

def run(out:str, hours:str='1e9', *names):
    out,end = Path(out).resolve(),time.time()+3600*float(hours)
    for name,command in planned(out, Path(os.environ['ESMA_NB_DATA']).resolve()):
        if names and not name.startswith(names) or (home/'evidence'/name/'summary.json').exists(): continue
        if time.time()>end: return print(f'{name}: no time left')
        command = f'esma_nb_{command} --output_dir {name}'
        print(command, flush=True)
        subprocess.run(command.split(), cwd=out, check=True)
        keep(out/name, home/'evidence'/name)

def keep(run:Path, out:Path): # Of a real model the records without words; of the miniature, which any machine computes again from the journal, the held-out scores by iteration
    if not run.name.startswith('demo-'): return strip(run, out)
    out.mkdir(parents=True, exist_ok=True)
    for name in ('args.json', 'journal.jsonl', 'summary.json'):
        if (run/name).exists(): (out/name).write_bytes((run/name).read_bytes())
    with atomic_write(out/'heldout.jsonl') as draft: append_lines(draft, [dict(iteration=0 if n=='before' else int(n[4:])) | heldout(load_records(p)) for n,p in record_files(run).items()])

def heldout(rs)->dict:
    s = scores(rs)
    return {k: getattr(s, k) for k in ('n', 'counts', 'unparsed', 'accuracy', 'd_prime_loglinear', 'auroc')}

def records(name): return load_records(home/'evidence'/name/'records'/'meta.jsonl')
def complete(arm): return [s for s in seeds if all((home/'evidence'/f'{arm}-{s}-{q}'/'summary.json').exists() for q in sets)]

def with_line(rows:list)->list: # Claims from the threshold that the plan fits on `pass`
    fitted = [r for r in load_records(home/'smollm2'/'pass'/'records'/'meta.jsonl') if r.log_odds is not None]
    line = best_threshold([r.correct for r in fitted], [r.log_odds for r in fitted])
    return [replace(r, yes=r.log_odds>line, unparsed=False) for r in rows]

def outcome(arm:str, measure:str, confidence:float=.95, threshold=False, questions=sets): # A `PooledDifference` against base; with a threshold, its claims are base's
    def joined(s):
        base = records(f'base-{s}')
        rows,_ = join_records(dict(base=with_line(base) if threshold else base) | {seed: records(f'{arm}-{seed}-{s}') for seed in complete(arm)})
        return [columns(r) for r in rows.values()]
    first,*others = zip(*map(joined, questions))
    return pooled_difference(list(first), [list(o) for o in others], measure, confidence)

def curves(way)->list: # For each seed the held-out d′ by iteration
    runs = [home/'evidence'/f'demo-{way}-{seed}'/'heldout.jsonl' for seed in range(10)]
    return [{l['iteration']: l['d_prime_loglinear'] for l in read_lines(p)} for p in runs if p.exists()]

def t_interval(x, confidence=.95)->tuple: # Mean, and its interval over seeds
    half = t.ppf((1+confidence)/2, len(x)-1)*np.std(x, ddof=1)/len(x)**.5
    return np.mean(x),np.mean(x)-half,np.mean(x)+half

def miniature(): # Rows of the table of 10 seeds: final d′, and its difference to esma of the same seed
    final = {way: [c[max(c)] for c in curves(way)] for way in ways}
    n = min(map(len, final.values()))
    for way,d in final.items():
        if n<2: return
        less = t_interval(np.subtract(d[:n], final['esma'][:n]), .99) if way!='esma' else None
        reached = [min((i for i,v in c.items() if v>=1), default=None) for c in curves(way)[:n]]
        yield way,n,t_interval(d[:n]),less,reached

outcomes = { # Name: measure, and whether base's claims come from a threshold
    'AUROC': ('auroc', False), 'd′ of words, less d′ of the threshold': ('d_prime_loglinear', True), 'accuracy': ('accuracy', False), 'says yes': ('yes_rate', False)}

def shown(d): return f'{d.mean:+.3f} [{d.ci[0]:+.3f}, {d.ci[1]:+.3f}]'

def tables():
    print('| arm | seeds | outcome | 95 % interval | 99.4 % interval | each seed |\n|---|---|---|---|---|---|')
    for arm in arms:
        if len(complete(arm))<2: continue
        for name,(measure,threshold) in outcomes.items():
            d,wide = (outcome(arm, measure, c, threshold) for c in (.95, 1-.05/8))
            print(f"| {arm} | {len(d.each)} | {name} | {shown(d)} | {shown(wide).split(' ', 1)[1]} | {' '.join(f'{x:+.3f}' for x in d.each)} |")

    print('\n| way | seeds | final d′, 95 % interval | less esma, 99 % interval | first iteration with d′ of 1, by seed |\n|---|---|---|---|---|')
    for way,n,d,less,reached in miniature():
        print(f"| {way} | {n} | {d[0]:.2f} [{d[1]:.2f}, {d[2]:.2f}] | {f'{less[0]:+.2f} [{less[1]:+.2f}, {less[2]:+.2f}]' if less else ''} | {' '.join(str(r or '–') for r in reached)} |")

if __name__=='__main__': dict(run=run, tables=tables)[sys.argv[1]](*sys.argv[2:])
