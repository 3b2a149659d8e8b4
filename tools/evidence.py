"""The runs of runs/PLAN.md, made one after the other and resumed where they stopped; what stays is in runs/evidence, without the words of the questions.

    ESMA_NB_DATA=data python tools/evidence.py run OUT [HOURS] [NAME...]    make what is missing of the runs whose names begin with one of NAME (all)
    python tools/evidence.py pause OUT                                      put the journals of unfinished runs into runs/evidence/unfinished, from which `run` goes on in another OUT
    python tools/evidence.py replay OUT [NAME...]                           compute runs of evolution again from their journals (seed 0 of each way of the miniature), and compare the sha256
    python tools/evidence.py tables                                         the outcomes that the plan names, of the runs that are there, and runs/evidence/tables.json

Processes with different NAMEs may run at the same time in one OUT.
"""
import os,shutil,subprocess,sys,time
from pathlib import Path
from bare_records import strip
from half_known import half_known
from dataclasses import asdict,replace
from functools import cache
import numpy as np
from scipy.stats import t
from esma_nb.core.files import append_lines,atomic_write,read_json,read_lines,write_json
from esma_nb.datasets.registry import load_rows
from esma_nb.metrics.scores import markdown_table
from esma_nb.metrics.signal_detection import count_cells,flags
from esma_nb.evaluation.paired import differences,join_records,mcnemar,pooled_difference
from esma_nb.evaluation.recalibration import as_many_yes,best_threshold
from esma_nb.evaluation.records import columns,load_records,record_files,scores
from esma_nb.signals.tracking import tracking,tracking_verdict

home = Path(__file__).parents[1]/'runs'
seeds,sets = (1, 2, 3),('trivia_qa', 'nq_open', 'web_questions')
es = '--dtype float32 --num_val_samples 240 --alpha 2e-3 --population_size 8 --num_data_per_iteration 32 --num_iterations 40 --model_save_interval 5'
arms = { # Name: start, and the command from there
    'auroc': ('smollm2', f'train {es} --reward_type auroc'),
    'sft-meta': ('smollm2', 'sft_meta --dtype float32 --num_val_samples 240 --num_epochs 1 --learning_rate 2e-6 --model_save_interval 100'),
    'balanced': ('sft-meta-{seed}', f'train {es} --reward_type balanced'),
    'auroc-rademacher': ('smollm2', f'train {es} --reward_type auroc --noise rademacher')}
other_settings = dict(freebase_qa='--dataset freebase_qa --num_samples 500', mkqa_en='--dataset mkqa --num_samples 500', mkqa_es='--dataset mkqa --lang es --num_samples 500',
    idk='--dataset trivia_qa --claim idk --num_samples 500', consistency='--dataset trivia_qa --num_samples 300 --signals consistency') # The last one for seed 1 only
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
    for s in sets: yield f'{name}-{s}',f'eval --model {model} --dtype float32 --dataset {s} --data_dir {data/s} --num_samples 1000'

def other_evaluations(data:Path): # The same, of base and of all arms
    models = {'base': 'smollm2'} | {f'{arm}-{seed}': f'{arm}-{seed}/model' for arm in arms for seed in seeds}
    for run,model in models.items():
        for name,options in other_settings.items():
            folder = data/options.split()[1]
            if name!='consistency' or run=='base' or run.endswith('-1'): yield f'{run}-{name}',f'eval --model {model} --dtype float32 {options} --data_dir {folder}'

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
    yield from other_evaluations(data)

def run(out:str, hours:str='1e9', *names):
    out,end = Path(out).resolve(),time.time()+3600*float(hours)
    for name,command in planned(out, Path(os.environ['ESMA_NB_DATA']).resolve()):
        if names and not name.startswith(names) or (home/'evidence'/name/'summary.json').exists(): continue
        if time.time()>end: return print(f'{name}: no time left')
        if (left := home/'evidence'/'unfinished'/name).exists() and not (out/name).exists(): shutil.copytree(left, out/name)
        command = f'esma_nb_{command} --output_dir {name}'
        print(command, flush=True)
        if subprocess.run(command.split(), cwd=out).returncode: print(f'{name} failed; the next start tries it again', flush=True)
        else:
            keep(out/name, home/'evidence'/name)
            shutil.rmtree(left, ignore_errors=True)

def pause(out:str): # A journal is enough to go on from: the weights are made again from the base model
    for journal in Path(out).glob('*/journal.jsonl'):
        run = journal.parent
        kept = home/'evidence'/'unfinished'/run.name/'journal.jsonl'
        if (home/'evidence'/run.name/'summary.json').exists() or kept.exists() and len(read_lines(kept))>=len(read_lines(journal)): continue
        with atomic_write(home/'evidence'/'unfinished'/run.name) as draft:
            draft.mkdir()
            for name in ('args.json', 'journal.jsonl', 'metrics.jsonl'): (draft/name).write_bytes((run/name).read_bytes())
        print(f"{run.name}: {len(read_lines(journal))} iterations")

def keep(run:Path, out:Path): # Of a real model the records without words; of the miniature, which any machine computes again from the journal, the held-out scores by iteration
    if not run.name.startswith('demo-'): return strip(run, out)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out/'heldout.jsonl') as draft: append_lines(draft, [dict(iteration=0 if n=='before' else int(n[4:])) | heldout(load_records(p)) for n,p in record_files(run).items()])
    for name in ('args.json', 'journal.jsonl', 'summary.json'): # The last of them says that the run is kept
        if (run/name).exists(): (out/name).write_bytes((run/name).read_bytes())

def heldout(rs)->dict:
    s = scores(rs)
    return {k: getattr(s, k) for k in ('n', 'counts', 'unparsed', 'accuracy', 'd_prime_loglinear', 'auroc')}

def records(name): # Of an evaluation; with the IDK prompt, what is right is decided by the answers without it
    (path,) = record_files(home/'evidence'/name).values()
    found = load_records(path)
    if not name.endswith('-idk'): return found
    correct = {r.question_id: r.correct for r in records(name.replace('-idk', '-trivia_qa'))}
    return [replace(r, correct=correct[r.question_id]) for r in found]

def is_kept(name)->bool: return (home/'evidence'/name/'summary.json').exists()
def complete(arm, questions=sets): return [s for s in seeds if all(is_kept(f'{arm}-{s}-{q}') for q in questions)]

@cache
def threshold()->float: # That which the plan fits on `pass`
    fitted = [r for r in load_records(home/'smollm2'/'pass'/'records'/'meta.jsonl') if r.log_odds is not None]
    return best_threshold([r.correct for r in fitted], [r.log_odds for r in fitted])

def with_line(rows:list)->list: # Claims from the threshold
    line = threshold()
    return [replace(r, yes=None if r.log_odds is None else r.log_odds>line, unparsed=r.log_odds is None) for r in rows]

# From the joined records of the start and of an arm to the pair that is compared
def as_they_are(start, arm): return start,arm
def less_threshold(start, arm): return with_line(start),arm
def less_matched(start, arm): return as_many_yes(start, arm),arm
def of_same_answers(start, arm): return start,[replace(b, correct=a.correct) for a,b in zip(start, arm)]
def less_threshold_if_all_count(start, arm): return with_line(start),[replace(r, yes=not r.correct) if r.unparsed else r for r in arm]
def of_readability(start, arm): return tuple([replace(r, correct=not r.unparsed) for r in rows] for rows in (start, arm))

def compared(arm:str, view, questions=sets, start:str='base')->list: # By set the `columns` of the starts and of the arm's runs, one for each seed; `start` is one run, or has {seed}
    seeds = complete(arm, questions)
    def joined(s):
        starts = {f'start {seed}': records(f'{start.format(seed=seed)}-{s}') for seed in seeds}
        rows,_ = join_records(starts | {seed: records(f'{arm}-{seed}-{s}') for seed in seeds})
        return zip(*([columns(r) for r in view(rows[f'start {seed}'], rows[seed])] for seed in seeds))
    return [*map(joined, questions)]

def outcome(arm:str, measure:str, view=as_they_are, confidence:float=.95, questions=sets, start:str='base'): # A `PooledDifference` of an arm and its start
    firsts,seconds = zip(*compared(arm, view, questions, start))
    return pooled_difference([list(f) for f in firsts], [list(x) for x in zip(*seconds)], measure, confidence)

def curves(way)->dict: # By seed the lines of its held-out scores, by iteration
    runs = {seed: home/'evidence'/f'demo-{way}-{seed}' for seed in range(10)}
    return {seed: {l['iteration']: l for l in read_lines(p/'heldout.jsonl')} for seed,p in runs.items() if (p/'summary.json').exists()}

def first_above(curve, d=1.)->int: # Iteration; None where d′ without a flag never gets there
    return min((i for i,l in curve.items() if l['d_prime_loglinear']>=d and not flags(l['counts'].values())), default=None)

def replies_until(way, iteration)->int: # Answers and claims that training had asked for by then; SFT-meta renews its labels every `label_interval` steps
    if iteration is None: return None
    a = read_json(home/'evidence'/f'demo-{way}-0'/'args.json')['args']
    return iteration*(2*a['population_size']*a['num_data_per_iteration'] if 'population_size' in a else a['batch_size'])

def t_interval(x, confidence=.95)->dict: # Over seeds
    half = t.ppf((1+confidence)/2, len(x)-1)*np.std(x, ddof=1)/len(x)**.5
    return dict(mean=float(np.mean(x)), ci=[float(np.mean(x)-half), float(np.mean(x)+half)])

def miniature()->list: # A row for each way, of the seeds that all ways have: final scores, their difference to esma of the same seed, and when d′ reached 1
    by_way = {way: curves(way) for way in ways}
    common = sorted(set.intersection(*map(set, by_way.values())))
    if len(common)<2: return []
    last = {way: [c[seed][max(c[seed])] for seed in common] for way,c in by_way.items()}
    def final(way, k): return [l[k] for l in last[way]]
    def less(way, k): return None if way=='esma' else t_interval(np.subtract(final(way, k), final('esma', k)), 1-.05/5)
    def row(way):
        reached = [first_above(by_way[way][seed]) for seed in common]
        return dict(way=way, seeds=len(common), final=t_interval(final(way, 'd_prime_loglinear')), each=final(way, 'd_prime_loglinear'),
            flagged=[seed for seed,l in zip(common, last[way]) if flags(l['counts'].values())], less_esma=less(way, 'd_prime_loglinear'),
            auroc=t_interval(final(way, 'auroc')), auroc_less_esma=less(way, 'auroc'), accuracy_less_esma=less(way, 'accuracy'),
            reached=reached, replies=[replies_until(way, i) for i in reached])
    return [row(way) for way in ways]

def base_rows()->list: # The untrained model
    fields = 'n', 'accuracy', 'accuracy_ci', 'unparsed', 'yes_rate', 'auroc', 'auroc_ci', 'd_prime_loglinear', 'flags'
    return [dict(set=q) | {k: getattr(scores(records(f'base-{q}')), k) for k in fields} for q in sets]

primary = {'auroc': ('auroc', as_they_are), 'd_prime_less_threshold': ('d_prime_loglinear', less_threshold)} # Name: measure, and view of the records
secondary = {'accuracy': ('accuracy', as_they_are), 'yes_rate': ('yes_rate', as_they_are), 'readable': ('accuracy', of_readability), 'alignment': ('alignment', as_they_are),
    'auroc_of_same_answers': ('auroc', of_same_answers), 'd_prime_less_matched': ('d_prime_loglinear', less_matched),
    'balanced_accuracy_less_threshold': ('balanced_accuracy', less_threshold_if_all_count)}
of_words = 'd_prime_less_threshold', 'd_prime_less_matched', 'balanced_accuracy_less_threshold' # No outcomes of the arms that are not paid for words
corrected = 1-.05/8 # Of 8 comparisons

def flagged(*how)->list: # As for `compared`: the flags of both d′, of all seeds and sets; with one, their difference is no finding
    return sorted({f for pair in compared(*how) for runs in pair for rows in runs for f in flags(count_cells(rows['correct'], rows['yes']).values())})

def finished(questions=sets)->list: return [arm for arm in arms if len(complete(arm, questions))==len(seeds)]

def arm_row(arm, name, measure, view, start='base', questions=sets)->dict: # With the reason where an outcome is not defined in every run
    row = dict(arm=arm, outcome=name, seeds=len(complete(arm, questions)), flags=flagged(arm, view, questions, start) if name.startswith('d_prime') else [])
    try: d,wide = (outcome(arm, measure, view, c, questions, start) for c in (.95, corrected))
    except ValueError as e: return row | dict(mean=None, ci=None, corrected_ci=None, each=None, reason=str(e))
    return row | dict(mean=d.mean, ci=d.ci, corrected_ci=wide.ci if name in primary else None, each=d.each, reason=None)

def arm_rows()->list:
    rows = [arm_row(arm, name, *how) for arm in finished() for name,how in (primary | secondary).items() if name not in of_words or not arm.startswith('auroc')]
    if {'balanced', 'sft-meta'}<={*finished()}: # What evolution adds to its start
        rows += [arm_row('balanced', f'{name}_less_sft_meta', measure, as_they_are, 'sft-meta-{seed}') for name,measure in dict(auroc='auroc', d_prime='d_prime_loglinear', accuracy='accuracy').items()]
    return rows

others = { # Those added to the plan on 28 November. Name: setting, and measure; with the IDK prompt, `yes` is an answer and not a pass
    'accuracy_freebase_qa': ('freebase_qa', 'accuracy'), 'accuracy_mkqa_en': ('mkqa_en', 'accuracy'), 'accuracy_mkqa_es': ('mkqa_es', 'accuracy'),
    'auroc_mkqa_es': ('mkqa_es', 'auroc'), 'answered_idk': ('idk', 'yes_rate'), 'd_prime_idk': ('idk', 'd_prime_loglinear')}

def other_rows()->list:
    return [arm_row(arm, name, measure, as_they_are, questions=(setting,)) for name,(setting,measure) in others.items() if is_kept(f'base-{setting}') for arm in finished((setting,))]

def other_base_rows()->list: # The untrained model in the same settings
    def row(name, setting, measure):
        found = scores(records(f'base-{setting}'))
        return dict(outcome=name, n=found.n, value=getattr(found, measure), ci=getattr(found, f'{measure}_ci'), flags=found.flags if name.startswith('d_prime') else [])
    return [row(name, *how) for name,how in others.items() if is_kept(f'base-{how[0]}')]

def tracking_rows()->list: # Does the log-odds go with being right, or with consistency?
    def row(run):
        t = tracking(*zip(*((r.correct, r.log_odds, r.signals['consistency']) for r in records(f'{run}-consistency'))))
        return dict(run=run) | asdict(t) | dict(verdict=tracking_verdict(t))
    return [row(run) for run in ('base', *(f'{arm}-1' for arm in arms)) if is_kept(f'{run}-consistency')]

confirmed_by = dict(auroc=['auroc_of_same_answers'], d_prime_less_threshold=['d_prime_less_matched', 'balanced_accuracy_less_threshold']) # Rows whose 95 % interval has to lie above 0 too

def is_harmful(rows, arm)->bool: return next(r['mean'] for r in rows if (r['arm'], r['outcome'])==(arm, 'accuracy'))<-.03

def findings(rows:list)->list: # The primary outcomes that are findings by the plan and its deviations
    at = {(r['arm'], r['outcome']): r for r in rows}
    def above(r, ci): return bool(r[ci]) and r[ci][0]>0 and not r['flags']
    return [f'{arm}: {name}' for (arm,name),r in at.items() if name in primary and not is_harmful(rows, arm) and above(r, 'corrected_ci') and all(above(at[arm, k], 'ci') for k in confirmed_by[name])]

def against(rows:list)->list: # What the plan counts against an arm, by its rows
    at,found = {(r['arm'], r['outcome']): r for r in rows},[]
    for arm in finished():
        if is_harmful(rows, arm): found.append(f"{arm}: harmful, accuracy {at[arm, 'accuracy']['mean']:+.3f}")
        for name in primary:
            r = at.get((arm, name))
            if not r or not r['each']: continue
            low,high = r['corrected_ci']
            if len({x>0 for x in r['each']})>1: found.append(f'{arm}: the seeds disagree in the sign of {name}')
            if low<=0: found.append(f"{arm}: {name} {'fell' if high<0 else 'is not shown to rise'}; 99.4 % interval {low:+.3f} to {high:+.3f}")
    return found + ahead(at)

def ahead(at)->list: # Is the mean of SFT-meta above those of both ways to evolve from base or from it?
    means = [at[arm, 'auroc']['mean'] for arm in ('sft-meta', 'auroc', 'balanced') if (arm, 'auroc') in at]
    if len(means)<3 or None in means or means[0]<=max(means[1:]): return []
    return [f'sft-meta: its auroc is ahead of those of auroc and balanced ({means[0]:+.3f}, {means[1]:+.3f}, {means[2]:+.3f})']

def heldout_rows()->list: # By arm and seed: the 240 questions of the pool before and after training, and by set the answers that changed
    def change(arm, seed):
        first,*_,last = record_files(home/'evidence'/f'{arm}-{seed}').values()
        rows,_ = join_records(dict(before=load_records(first), after=load_records(last)))
        found = differences(*map(columns, rows.values()))
        return {k: dict(before=d.first, after=d.second, ci=d.ci) for k,d in found.items() if k in ('auroc', 'd_prime_loglinear')} | dict(n=len(rows['after']), flags=found['d_prime_loglinear'].flags)
    def answers(arm, seed, s):
        rows,_ = join_records(dict(base=records(f'base-{s}'), arm=records(f'{arm}-{seed}-{s}')))
        return mcnemar(*([r.correct for r in rs] for rs in rows.values()))
    return [dict(arm=arm, seed=seed, heldout=change(arm, seed), answers={s: answers(arm, seed, s) for s in sets}) for arm in finished() for seed in seeds]

def of_noise()->dict: # AUROC of the arm with rademacher noise less that of the one with gaussian noise, of the same seeds
    if not {'auroc', 'auroc-rademacher'}<={*finished()}: return None
    try: d = outcome('auroc-rademacher', 'auroc', start='auroc-{seed}')
    except ValueError: return None
    return dict(mean=d.mean, ci=d.ci, each=d.each)

def found()->dict: return dict(base=base_rows(), arms=(rows := arm_rows()), findings=findings(rows), against=against(rows), heldout=heldout_rows(), others=other_rows(), others_base=other_base_rows(), tracking=tracking_rows(), rademacher_less_gaussian=of_noise(), miniature=miniature())

def shown(mean, ci): return '–' if mean is None else f'{mean:+.3f} [{ci[0]:+.3f}, {ci[1]:+.3f}]'

def tables():
    made = found()
    write_json(home/'evidence'/'tables.json', made)
    print(markdown_table([['arm', 'outcome', 'seeds', '95 % interval', '99.4 % interval', 'each seed', 'flags'], *([r['arm'], r['outcome'], str(r['seeds']), shown(r['mean'], r['ci']),
        shown(r['mean'], r['corrected_ci']) if r['corrected_ci'] else '', ' '.join(f'{x:+.3f}' for x in r['each'] or []), ' '.join(r['flags']) or r['reason'] or ''] for r in made['arms']+made['others'])]))
    if made['tracking']: print('\n'+markdown_table([['run', 'questions', 'being right', 'consistency', 'follows'], *([r['run'], str(r['n']), shown(r['accuracy'], r['accuracy_ci']), shown(r['consistency'], r['consistency_ci']), r['verdict']]
        for r in made['tracking'])]))
    print(f"\nfindings: {', '.join(made['findings']) or 'none'}", *(f'- {line}' for line in made['against']), sep='\n')
    def difference(r, k): return shown(**r[k]) if r[k] else ''
    print('\n'+markdown_table([['way', 'seeds', 'final d′, 95 % interval', 'less esma, 99 %', 'AUROC less esma, 99 %', 'accuracy less esma, 99 %', 'seeds with a flag', 'replies until d′ of 1'], *([r['way'], str(r['seeds']), shown(**r['final']),
        *(difference(r, k) for k in ('less_esma', 'auroc_less_esma', 'accuracy_less_esma')), ' '.join(map(str, r['flagged'])), ' '.join(str(x or '–') for x in r['replies'])] for r in made['miniature'])]))

def replay(out:str, *names): # Exit status 1 where a sha256 is another
    kept = home/'evidence'/'replay.txt'
    lines = {l.split(':')[0]: l for l in kept.read_text(encoding='utf-8').splitlines()}
    for name in names or [f'demo-{way}-0' for way,command in ways.items() if command.startswith('train')]:
        said = subprocess.run(['esma_nb_replay', name, '--no-checkpoints', '--output_dir', f'again/{name}'], cwd=out, check=True, capture_output=True, text=True).stdout
        digest = read_json(home/'evidence'/name/'summary.json')['model_sha256']
        lines[name] = f"{name}: {'the same' if digest in said else 'ANOTHER'} model_sha256 {digest}"
        print(lines[name])
    with atomic_write(kept) as draft: draft.write_text('\n'.join(lines.values())+'\n', encoding='utf-8')
    sys.exit(any('ANOTHER' in l for l in lines.values()))

if __name__=='__main__': dict(run=run, pause=pause, replay=replay, tables=tables)[sys.argv[1]](*sys.argv[2:])
