"What PLAN.md planned before the runs, and what README and pages say of them: computed again from the records"
import json,subprocess,sys
from datetime import datetime
from pathlib import Path
from statistics import NormalDist
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
from evidence import found,home,planned,ways
from esma_nb.evaluation.records import load_records

def test_tables_are_those_of_the_records():
    recorded = json.loads((home/'evidence'/'tables.json').read_text(encoding='utf-8'))
    assert close(json.loads(json.dumps(found())), recorded)

def close(a, b): # Equal but for the last bits of numbers
    if isinstance(a, dict): return a.keys()==b.keys() and all(close(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a)==len(b) and all(map(close, a, b))
    return a==pytest.approx(b, abs=1e-9) if isinstance(a, float) else a==b

def test_every_record_is_of_a_planned_run(tmp_path):
    (tmp_path/'half_known.jsonl').touch()
    names = {name for name,_ in planned(tmp_path, tmp_path)}
    assert {p.parent.name for p in (home/'evidence').glob('*/summary.json')}<=names

def test_the_plan_is_older_than_its_runs_and_unchanged():
    "By the clock in each run's args.json; git knows when the plan was committed, and what it said above its deviations."
    def git(*words): return subprocess.run(['git', *words], cwd=ROOT, capture_output=True, text=True).stdout
    added = git('log', '--diff-filter=A', '--format=%H %at', '--', 'runs/PLAN.md').split()
    if len(added)!=2: pytest.skip('the history of git is not here')
    started = {p.parent.name: datetime.fromisoformat(json.loads(p.read_text(encoding='utf-8'))['started']).timestamp() for p in (home/'evidence').glob('*/args.json')}
    assert len(started)>60 and {k for k,t in started.items() if t<int(added[1])}==set()
    def above(text): return text.split('## Deviations')[0].rstrip()
    assert above((ROOT/'runs'/'PLAN.md').read_text(encoding='utf-8'))==above(git('show', f'{added[0]}:runs/PLAN.md'))

def test_no_record_has_words_of_a_question():
    for path in (home/'evidence').glob('*/records/*.jsonl'):
        for r in load_records(path): assert not (r.question or r.answers or r.direct_output or r.meta_output), path

def test_all_runs_of_the_miniature_are_there_and_their_scores_fit_their_counts():
    for way in ways:
        for seed in range(10):
            lines = [json.loads(l) for l in (home/'evidence'/f'demo-{way}-{seed}'/'heldout.jsonl').read_text(encoding='utf-8').splitlines()]
            after = json.loads((home/'evidence'/f'demo-{way}-{seed}'/'summary.json').read_text(encoding='utf-8'))['after']
            last = max(lines, key=lambda l: l['iteration'])
            assert [last[k] for k in ('d_prime_loglinear', 'accuracy', 'auroc')]==[after[k] for k in ('d_prime_loglinear', 'accuracy', 'auroc')]
            for l in lines:
                yr,nr,yw,nw = l['counts'].values()
                assert yr+nr+yw+nw+l['unparsed']==l['n'] and abs(l['accuracy']-(yr+nr)/l['n'])*l['n']<=l['unparsed']+1e-6
                assert l['d_prime_loglinear']==pytest.approx(dprime(yr, nr, yw, nw))

def dprime(yr, nr, yw, nw): # Log-linear, written down once more
    z = NormalDist().inv_cdf
    return z((yr+.5)/(yr+nr+1)) - z((yw+.5)/(yw+nw+1))
