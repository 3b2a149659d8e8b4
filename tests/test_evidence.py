"What PLAN.md planned before the runs, and what README and pages say of them: computed again from the records"
import json,subprocess,sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
from evidence import found,home,planned

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

def test_the_plan_is_older_than_its_runs():
    def added(path): return subprocess.run(['git', 'log', '--diff-filter=A', '--format=%ct', '--', path], cwd=ROOT, capture_output=True, text=True).stdout.split()
    plan,runs = added('runs/PLAN.md'),added('runs/evidence')
    if not plan or not runs or len(plan)>1: pytest.skip('the history of git is not here')
    assert int(plan[0])<=min(map(int, runs))

def test_no_record_has_words_of_a_question():
    for path in (home/'evidence').glob('*/records/*.jsonl'):
        assert not any(json.loads(l).get('question') or json.loads(l).get('direct_output') for l in path.read_text(encoding='utf-8').splitlines()[:50]), path
