"What PLAN.md planned before the runs, and what README and pages say of them: computed again from the records"
import json,subprocess,sys
from datetime import datetime
from pathlib import Path
from statistics import NormalDist
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
import evidence
from evidence import found,home,planned,ways
from esma_nb.core.files import read_lines
from esma_nb.evaluation.records import load_records
from esma_nb.evolution.checkpoint import check_journal

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

def test_unfinished_runs_are_planned_and_can_go_on(tmp_path):
    (tmp_path/'half_known.jsonl').touch()
    names = {name for name,_ in planned(tmp_path, tmp_path)}
    for path in (home/'evidence'/'unfinished').glob('*/journal.jsonl'):
        assert path.parent.name in names and not (home/'evidence'/path.parent.name).exists()
        check_journal(read_lines(path), path)

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

def test_arms_are_compared_with_base(tmp_path, monkeypatch):
    "2 made-up arms with 3 seeds: `auroc` knows its right answers by its log-odds, and `sft-meta` is base again."
    monkeypatch.setattr(evidence, 'home', tmp_path)
    (tmp_path/'smollm2').symlink_to(home/'smollm2')
    def put(run, name, lines):
        (tmp_path/'evidence'/run/'records').mkdir(parents=True, exist_ok=True)
        (tmp_path/'evidence'/run/'records'/f'{name}.jsonl').write_text(''.join(json.dumps(l)+'\n' for l in lines))
        (tmp_path/'evidence'/run/'summary.json').write_text('{}')
    base = {s: [json.loads(l) for l in (home/'evidence'/f'base-{s}'/'records'/'meta.jsonl').open()] for s in evidence.sets}
    def informed(lines): return [l | (dict(log_odds=l['log_odds'] + 5*l['correct']) if l.get('log_odds') is not None else {}) for l in lines]
    for s,lines in base.items():
        put(f'base-{s}', 'meta', lines)
        for seed in evidence.seeds: put(f'auroc-{seed}-{s}', 'meta', informed(lines)), put(f'sft-meta-{seed}-{s}', 'meta', lines)
    for seed in evidence.seeds:
        for arm in ('auroc', 'sft-meta', 'auroc-rademacher'): put(f'{arm}-{seed}', 'before', base['nq_open'][:240]), put(f'{arm}-{seed}', 'iter000040', base['nq_open'][:240])
    rows = {(r['arm'], r['outcome']): r for r in evidence.arm_rows()}
    better,same = rows['auroc', 'auroc'],rows['sft-meta', 'auroc']
    assert better['ci'][0]>.2 and better['corrected_ci'][0]<better['ci'][0] and same['mean']==0 and len(same['each'])==3
    assert all(rows[a, k]['mean']==0 for a in ('auroc', 'sft-meta') for k in ('accuracy', 'yes_rate', 'readable', 'alignment'))
    assert ('auroc', 'd_prime_less_threshold') not in rows and rows['sft-meta', 'd_prime_less_threshold']['flags']
    assert evidence.findings([*rows.values()])==['auroc: auroc']
    assert evidence.findings([r | dict(ci=[-1, 1]) if r['outcome']=='auroc_of_same_answers' else r for r in rows.values()])==[]
    assert all(rows[a, 'auroc_of_same_answers']['mean']==rows[a, 'auroc']['mean'] for a in ('auroc', 'sft-meta'))
    assert any('sft-meta: auroc is not shown' in l for l in evidence.against([*rows.values()])) and not any(l.startswith('auroc') for l in evidence.against([*rows.values()]))
    def listed(arm, outcome, **more): return [r | more if (r['arm'], r['outcome'])==(arm, outcome) else r for r in rows.values()]
    harmed = listed('auroc', 'accuracy', mean=-.031)
    assert evidence.findings(harmed)==[] and 'auroc: harmful, accuracy -0.031' in evidence.against(harmed)
    assert any(l.startswith('sft-meta: auroc fell') for l in evidence.against(listed('sft-meta', 'auroc', corrected_ci=[-.2, -.1])))
    assert evidence.ahead(dict.fromkeys([('sft-meta', 'auroc'), ('auroc', 'auroc'), ('balanced', 'auroc')], dict(mean=.1)))==[]
    assert 'ahead of' in evidence.ahead({(arm, 'auroc'): dict(mean=m) for arm,m in {'sft-meta': .2, 'auroc': .1, 'balanced': .1}.items()})[0]
    assert evidence.flagged('auroc', evidence.as_they_are, evidence.sets, 'sft-meta-{seed}')
    changed = evidence.heldout_rows()
    assert len(changed)==6 and all(c['heldout']['n']==240 and c['answers']['nq_open']['gained']==0 for c in changed)
    assert evidence.of_noise() is None
    for seed in evidence.seeds:
        for s,lines in base.items(): put(f'auroc-rademacher-{seed}-{s}', 'meta', lines)
    assert evidence.of_noise()['mean']==pytest.approx(-better['mean'])
    put('sft-meta-2-nq_open', 'meta', [l | dict(yes=None, unparsed=True) for l in base['nq_open']])
    mute = {r['outcome']: r for r in evidence.arm_rows() if r['arm']=='sft-meta'}
    assert mute['yes_rate']['mean'] is None and 'not defined in every run' in mute['yes_rate']['reason'] and mute['accuracy']['mean']==0
    evidence.found()

def test_other_sets_and_the_idk_prompt(tmp_path, monkeypatch):
    "A made-up arm that loses 40 right answers of another set, and passes exactly what it does not know."
    monkeypatch.setattr(evidence, 'home', tmp_path)
    def put(run, name, lines):
        (tmp_path/'evidence'/run/'records').mkdir(parents=True)
        (tmp_path/'evidence'/run/'records'/f'{name}.jsonl').write_text(''.join(json.dumps(l)+'\n' for l in lines))
        (tmp_path/'evidence'/run/'summary.json').write_text('{}')
    trivia = [json.loads(l) for l in (home/'evidence'/'base-trivia_qa'/'records'/'meta.jsonl').open()]
    def less_right(lines, n): return [l | dict(correct=l['correct'] and i not in [j for j,k in enumerate(lines) if k['correct']][:n]) for i,l in enumerate(lines)]
    def passing(lines): return [l | dict(correct=False, yes=l['correct']) for l in lines[:500]]
    for run in ('base', *(f'auroc-{s}' for s in evidence.seeds)):
        put(f'{run}-trivia_qa', 'meta', trivia)
        put(f'{run}-freebase_qa', 'meta', trivia[:500] if run=='base' else less_right(trivia[:500], 40))
        put(f'{run}-idk', 'idk', [l | dict(yes=i%2==0) for i,l in enumerate(passing(trivia))] if run=='base' else passing(trivia))
    share = [l['correct'] for l in trivia[:500]]
    put('base-consistency', 'meta', [l | dict(signals=dict(consistency=i%11/10), log_odds=i%11+10.*l['correct']) for i,l in enumerate(trivia[:300])])
    put('auroc-1-consistency', 'meta', [l | dict(signals=dict(consistency=i%11/10), log_odds=10.*l['correct'] - i*i%7) for i,l in enumerate(trivia[:300])])
    rows = {r['outcome']: r for r in evidence.other_rows()}
    assert [*rows]==['accuracy_freebase_qa', 'answered_idk', 'd_prime_idk'] and {r['arm'] for r in rows.values()}=={'auroc'}
    assert rows['accuracy_freebase_qa']['mean']==pytest.approx(-40/500) and rows['accuracy_freebase_qa']['ci'][1]<0
    assert rows['answered_idk']['mean']==pytest.approx(sum(share)/500-.5) and rows['d_prime_idk']['ci'][0]>2 and rows['d_prime_idk']['flags']
    assert {r['outcome']: r['value'] for r in evidence.other_base_rows()}.items()>=dict(accuracy_freebase_qa=sum(share)/500, answered_idk=.5).items()
    assert [(r['run'], r['verdict']) for r in evidence.tracking_rows()]==[('base', 'both'), ('auroc-1', 'accuracy')]
    assert evidence.complete('auroc')==[] and evidence.complete('auroc', ('idk',))==[1, 2, 3]

def test_a_shorter_journal_does_not_take_the_place_of_a_longer_one(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, 'home', tmp_path/'home')
    def journal(where, n):
        where.mkdir(parents=True, exist_ok=True)
        for name in ('args.json', 'journal.jsonl', 'metrics.jsonl'): (where/name).write_text('{}\n'*n)
    kept = tmp_path/'home'/'evidence'/'unfinished'/'auroc-1'
    for n,expected in ((4, 4), (3, 4), (5, 5)):
        journal(tmp_path/'out'/'auroc-1', n)
        evidence.pause(tmp_path/'out')
        assert len(read_lines(kept/'journal.jsonl'))==expected
