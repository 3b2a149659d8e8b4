"""Comparing runs: what is too slow, too random or too large for a page

`pytest -s tests/test_comparison.py -k hold_the_truth` prints how often the paired intervals hold the truth."""
import json,os,subprocess,sys,warnings
from dataclasses import asdict
import numpy as np
import pytest
from esma_nb.evaluation.compare import csv_rows,compare_runs
from esma_nb.evaluation.paired import differences,mcnemar
from esma_nb.evaluation.records import Record
from esma_nb.core.files import append_lines

ENV = dict(os.environ, OMP_NUM_THREADS='1')

def compare(*words):
    return subprocess.run([sys.executable, '-m', 'esma_nb.evaluation.compare', *map(str, words)], capture_output=True, text=True, env=ENV)

def records(correct, yes, odds, question='Which of the {} rivers is the longest?'):
    return [Record(f'q{i}', question.format('many '*(i%5)), ['a'], 'a', correct=c, yes=y, unparsed=y is None and c is not None,
        failed='timeout' if c is None else None, log_odds=o) for i,(c,y,o) in enumerate(zip(correct, yes, odds))]

def world(rng, n, acc, ds, thresholds):
    "Models that know nearly the same and share half of their mood."
    first,mood = rng.random(n)<acc,rng.normal(size=n)
    def model(d, t, knows):
        warmth = (mood+rng.normal(size=n))/2**.5 + d*knows
        return dict(correct=knows.tolist(), yes=(warmth>t).tolist(), log_odds=warmth.tolist())
    return [model(d, t, first ^ (rng.random(n)<.05*i)) for i,(d,t) in enumerate(zip(ds, thresholds))]

def truth(acc, ds, thresholds):
    from scipy.stats import norm
    def of(p, d, t):
        hit,fa = norm.sf(t-d),norm.sf(t)
        return dict(accuracy=p, yes_rate=p*hit+(1-p)*fa, alignment=p*hit+(1-p)*(1-fa), d_prime_loglinear=d, auroc=norm.cdf(d/2**.5))
    a,b = (of(p, d, t) for p,d,t in zip((acc, acc*.95+(1-acc)*.05), ds, thresholds))
    return {m: b[m]-a[m] for m in a}

worlds = dict(even=(.5, (.3, 1.), (0., .5)), wrong=(.4, (.6, 1.), (.84, .7)), right=(.8, (.3, 1.), (-1., .5)),
    rare=(.9, (.3, 1.), (-.5, -.5)), demo=(.54, (0., 1.6), (-2.5, .8))) # Accuracy, d′ and threshold of each; demo says Yes to nearly all, then learns

def coverage(case, n, trials):
    rng,goal = np.random.default_rng(n),truth(*worlds[case])
    held = dict.fromkeys(goal, 0)
    for _ in range(trials):
        for m,d in differences(*world(rng, n, *worlds[case])).items(): held[m] += d.ci[0]-1e-12<=goal[m]<=d.ci[1]+1e-12
    got = {m: k/trials for m,k in held.items()}
    print(f'{n:5} questions {case:6}', *(f'{m} {c:.3f} ' for m,c in got.items()), flush=True)
    return got

@pytest.mark.parametrize('n', [256, 1000])
@pytest.mark.parametrize('case', worlds)
def test_intervals_hold_the_truth(case, n):
    got = coverage(case, n, 1000)
    assert all(c>=.93-.007 for c in got.values()), got # One standard error of 1,000 trials
    if case!='demo': assert all(c<=.97+.007 for c in got.values()), got # There the half rows widen the d′ on purpose

def test_mcnemar_is_the_binomial_test():
    from scipy.stats import binom,binomtest
    for gained,lost in [(7, 1), (10, 3), (5, 5), (0, 4), (60, 41)]:
        got = mcnemar([False]*gained+[True]*lost, [True]*gained+[False]*lost)
        exact = binomtest(gained, gained+lost).pvalue
        assert abs(got['p'] - min(1, exact - (binom.pmf(gained, gained+lost, .5) if gained!=lost else 0)))<1e-12

def test_whatever_is_unknown():
    "No crash, no warning, no NaN, whatever is missing."
    rng = np.random.default_rng(0)
    def bits(n, share): return [None if rng.random()<share else bool(rng.random()<p) for p in [rng.choice([0, .5, 1])]*n]
    def odds(n, share): return [None if rng.random()<share else float(rng.normal()) for _ in range(n)]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for trial in range(60):
            n,share = int(rng.integers(1, 25)),rng.choice([0, .2, 1])
            runs = {name: records([c if c is not None else bool(i%2) for i,c in enumerate(bits(n, 0))], bits(n, share), odds(n, share)) for name in 'abc'}
            c = compare_runs(runs, dict(w=runs['a']), runs['b'], seed=trial)
            json.dumps(c.asdict(), allow_nan=False)
            assert str(c) and csv_rows(c)
            for found in c.differences.values(): assert all(d.ci or d.reason for d in found.values())

def test_command(tmp_path):
    rng = np.random.default_rng(0)
    runs = dict(zip(('before', 'iter000012'), world(rng, 300, .5, (0., 1.5), (-2., .5))))
    for name,c in runs.items(): append_lines(tmp_path/'demo'/'records'/f'{name}.jsonl', [asdict(r) for r in records(c['correct'], c['yes'], c['log_odds'])])
    out = compare(tmp_path/'demo', '--json', tmp_path/'c.json', '--csv', tmp_path/'c.csv')
    assert out.returncode==0 and 'self-knowledge or a heuristic' in out.stdout, out.stderr
    found = json.loads((tmp_path/'c.json').read_text())['differences']['iter000012']['d_prime_loglinear']
    assert found['ci'][0]>0 and (tmp_path/'c.csv').read_text().startswith('run,against,measure,')
    again = compare(tmp_path/'demo'/'records'/'before.jsonl', tmp_path/'demo'/'records'/'iter000012.jsonl')
    assert again.stdout==out.stdout
    told = compare(tmp_path/'demo', '--meta_prompts', tmp_path/'demo'/'records'/'before.jsonl', '--reversed', tmp_path/'demo'/'records'/'iter000012.jsonl')
    assert 'wording before' in told.stdout and 'reversed prompt' in told.stdout, told.stderr

def test_mistakes_are_one_line(tmp_path):
    one = tmp_path/'one.jsonl'
    append_lines(one, [asdict(r) for r in records([True, False], [True, False], [1., -1.])])
    append_lines(tmp_path/'other.jsonl', [asdict(Record('z', 'Who?', ['a'], 'a', correct=True, yes=True))])
    append_lines(tmp_path/'changed.jsonl', [asdict(r) for r in records([True, False], [True, False], [1., -1.], 'Where is the {}sea?')])
    for words,says in [([one], 'name a second run'), ([one, one], 'named twice'), ([one, tmp_path/'other.jsonl'], 'no question in common'),
            ([one, tmp_path/'changed.jsonl'], 'not the same questions'), ([one, tmp_path/'gone'], 'there is no'), ([], 'runs'),
            ([one, tmp_path/'other.jsonl', '--json', tmp_path], 'is a folder'), ([one, tmp_path/'other.jsonl', '--csv', one], 'is read from'),
            ([one, one, '--grader', 'fuzzy'], 'choose one of')]:
        done = compare(*words)
        assert done.returncode==2 and says in done.stderr and done.stderr.count('\n')==1, (words, done.stderr)
    assert sorted(p.name for p in tmp_path.iterdir())==['changed.jsonl', 'one.jsonl', 'other.jsonl']

def test_twenty_thousand_rows(tmp_path):
    for name,c in zip('ab', world(np.random.default_rng(0), 20_000, .5, (.5, 1.), (.2, .4))):
        append_lines(tmp_path/f'{name}.jsonl', [asdict(r) for r in records(c['correct'], c['yes'], c['log_odds'])])
    out = compare(tmp_path/'a.jsonl', tmp_path/'b.jsonl')
    assert out.returncode==0 and '20,000 questions joined' in out.stdout, out.stderr
