"The report in a real browser, on hostile replies, on a large file, and while its run is still going"
import json,re,shutil,subprocess,sys
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree
import numpy as np
import pytest
from esma_nb.evaluation.records import Record
from esma_nb.reports.report import page,read_runs,report
from esma_nb.core.files import append_lines,write_json
from browser import browse

def made(n, seed=0): # Records of a model that knows about half, and half knows it
    rng = np.random.default_rng(seed)
    warmth,noise = rng.normal(size=(2, n)).tolist()
    return [Record(str(i), f'What is the capital of country {i}?', ['Paris', 'Lutetia'], 'Paris' if w+e>0 else 'Lima', 'Yes' if w>0 else 'No',
        bool(w+e>0), bool(w>0), log_odds=w, p_yes=float(1/(1+np.exp(-w)))) for i,(w,e) in enumerate(zip(warmth, noise))]

def run_folder(folder, sets, goal=None, iterations=0, done=True):
    (folder/'records').mkdir(parents=True)
    for name,records in sets.items(): # By hand: half a surrogate pair, as an importer may bring it, has to be escaped
        (folder/'records'/f'{name}.jsonl').write_text(''.join(json.dumps(asdict(r))+'\n' for r in records))
    n = len(next(iter(sets.values())))
    args = dict(model='demo', dataset='demo', seed=42) | (dict(num_iterations=goal) if goal else dict(claim='meta'))
    write_json(folder/'args.json', dict(args=args, counts=dict(read=n, kept=n, drawn=n)))
    if iterations: append_lines(folder/'metrics.jsonl', [dict(iteration=t, reward_mean=1+t/100, reward_std=.05, accuracy=.5, yes_rate=.6,
        d_prime_loglinear=t/10, d_prime_type2=None) for t in range(1, iterations+1)])
    if done: write_json(folder/'summary.json', dict(iterations=iterations))
    return folder

def hostile():
    "Sixty rows, some of which try to be something else than text."
    records = made(60)
    records[0].question = '</article></main></body><script>alert("question")</script>'
    records[1].direct_output = '<script>alert("reply")</script><img src=x onerror=alert(1)><svg onload=alert(2)>'
    records[2].direct_output = 'never ends ' * 909 + '!'
    records[3].direct_output = 'x' * 10_000
    records[4].direct_output = '{{ 7*7 }} {% for %} \ud800 \0 \x1b[31m \u202e backwards'
    records[5].answers = [f'alias {i}' for i in range(300)]
    records[6].meta_output,records[6].yes,records[6].unparsed = '"><script>alert("claim")</script>',None,True
    records[7].failed,records[7].correct,records[7].yes = f"timeout: {'a'*500}<b>",None,None
    records[8].question = 'q'*10_000
    return records

@pytest.fixture(scope='module')
def ugly(tmp_path_factory):
    folder = run_folder(tmp_path_factory.mktemp('ugly')/'a <b>&"\' $x_1$ 中', dict(before=hostile(), iter000003=hostile()), goal=3, iterations=3)
    report([folder])
    return folder/'report.html'

@pytest.mark.parametrize('width,dark', [(1200, False), (1200, True), (390, False), (390, True)])
def test_in_a_browser(ugly, browse, width, dark):
    b = browse(ugly, width, dark=dark)
    assert b.js("[...document.querySelectorAll('.said')].filter(e => e.textContent.length >= 10000 && !e.closest('.fold, .q')).length")==0
    b.js("document.querySelectorAll('details').forEach(d => d.open = true)")
    b.wait(200)
    assert b.js('document.documentElement.scrollWidth')<=width
    assert b.js("[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth+1).map(e => e.outerHTML.slice(0, 80))")==[]
    assert (b.js("getComputedStyle(document.body).backgroundColor")=='rgb(20, 22, 26)')==dark
    assert b.js("document.querySelectorAll('script').length")==1 and b.js("document.querySelectorAll('img, iframe, object, link[rel=stylesheet]').length")==0
    assert b.js("[...document.querySelectorAll('.said')].some(e => e.textContent.includes('<script>alert(\"reply\")</script>'))")
    assert b.js("[...document.querySelectorAll('.said')].filter(e => e.textContent.length >= 10000).length")==4
    b.js("document.querySelector('#theme').click()")
    assert (b.js("getComputedStyle(document.body).backgroundColor")=='rgb(20, 22, 26)')!=dark
    assert [r['request']['url'] for r in b.seen('Network.requestWillBeSent') if not r['request']['url'].startswith(('file:', 'data:'))]==[]
    assert b.seen('Runtime.consoleAPICalled', 'Runtime.exceptionThrown', 'Log.entryAdded', 'Page.javascriptDialogOpening')==[]

def test_filter_and_search(ugly, browse):
    b = browse(ugly)
    def visible(): return b.js("[...document.querySelectorAll('.row')].filter(e => e.checkVisibility()).length")
    def sift(what): b.js(what); b.wait(250)
    assert visible()==0 and b.js("document.querySelector('#found').textContent")=='120 rows'
    sift("document.querySelector('input[value=failed]').click()")
    assert visible()==2
    sift("document.querySelector('input[value=\"unknown and claimed\"]').click()")
    n = visible()
    assert n==sum(bool(r.yes and r.correct is False) for r in hostile())*2
    sift("document.querySelector('input[name=set][value=\"1\"]').click()")
    assert visible()==n/2
    sift("document.querySelectorAll('#tools input[value=\"\"]').forEach(e => e.click())")
    sift("document.querySelector('#search').value = 'COUNTRY 12?'; document.querySelector('#search').dispatchEvent(new Event('input', {bubbles: true}))")
    assert visible()==2 and b.js("document.querySelector('#found').textContent")=='2 of 120 rows'
    sift("document.querySelector('#search').value = 'zzz'; document.querySelector('#search').dispatchEvent(new Event('input', {bubbles: true}))")
    assert visible()==0 and b.js("document.querySelector('#found').textContent")=='0 of 120 rows'

def test_without_javascript(ugly, browse):
    b = browse(ugly, 390, script=False)
    tree = b.call('DOM.getDocument', depth=-1)
    ids = {name: b.call('DOM.querySelectorAll', nodeId=tree['root']['nodeId'], selector=name)['nodeIds'] for name in ('#tools', '#theme', '.row', 'figure svg')}
    assert len(ids['.row'])==120 and len(ids['figure svg'])==12
    for name in ('#tools', '#theme'): # Nothing that cannot work is shown
        assert 'hidden' in b.call('DOM.getAttributes', nodeId=ids[name][0])['attributes']

def test_files_beside_it(ugly):
    beside = ugly.parent/'report_figures'
    svgs = sorted(beside.glob('*.svg'))
    assert len(svgs)==12 and {p.stem for p in svgs}=={p.stem for p in beside.glob('*.png')}
    for p in svgs: ElementTree.parse(p)
    for p in beside.glob('*.png'): assert p.read_bytes().startswith(b'\x89PNG')
    html = ugly.read_text(encoding='utf-8')
    assert re.findall(r'(?:src|href)="(?!#|data:)[^"]*"|url\((?!#)|@import', html)==[]
    ids = re.findall(r'<(?!clipPath|path)\w+ [^>]*\bid="([^"]*)"', html)
    assert len(ids)==len(set(ids))

def test_unfinished(tmp_path):
    folder = run_folder(tmp_path/'going', dict(before=made(40)), goal=12, iterations=5, done=False)
    torn = folder/'records'/'before.jsonl'
    with torn.open('a') as f: f.write('{"question_id": "to')
    shutil.copy(torn, folder/'records'/'.iter000005.0of2.jsonl') # What one of two processes has measured so far
    report([folder])
    html = (folder/'report.html').read_text(encoding='utf-8')
    assert '5 of 12 iterations' in html and '.iter000005' not in html and torn.read_text().endswith('{"question_id": "to')
    half = run_folder(tmp_path/'half', dict(meta=made(40)), done=False)
    assert '40 of 40 questions' in page(read_runs([half]), [], {})

def test_claims_without_confidence(tmp_path):
    records = made(30)
    for r in records: r.log_odds = r.p_yes = r.meta_output = None
    folder = run_folder(tmp_path/'idk', dict(idk=records))
    report([folder])
    html = (folder/'report.html').read_text(encoding='utf-8')
    assert 'No log-odds were recorded' in html and 'read from the answer' in html
    assert sorted(p.stem for p in (folder/'report_figures').glob('*.svg'))==['counts_1', 'dprime']

@pytest.mark.parametrize('records', [made(1), [r for r in made(50) if r.correct], [Record(str(i), 'Who?', ['x'], '', failed='429') for i in range(3)]])
def test_next_to_nothing(tmp_path, records):
    run = run_folder(tmp_path/'little', dict(meta=records))
    report([run])
    assert not re.search(r'\bnan\b', (run/'report.html').read_text(encoding='utf-8'), re.I)

def test_old_or_new_but_never_half(tmp_path, monkeypatch):
    folder = run_folder(tmp_path/'run', dict(meta=made(40)))
    report([folder])
    before = {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}
    import esma_nb.reports.figures as figures
    def full(*_, **__): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(figures.Picture, 'png', full)
    with pytest.raises(OSError, match='could not write'): report([folder])
    assert {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}==before

def test_command(tmp_path):
    def run(*words): return subprocess.run([sys.executable, '-m', 'esma_nb.reports.report', *map(str, words)], capture_output=True, text=True, cwd=tmp_path)
    folder = run_folder(tmp_path/'run', dict(meta=made(40)))
    shutil.copy(folder/'records'/'meta.jsonl', tmp_path/'mine.jsonl')
    odd = shutil.copytree(folder, tmp_path/('_중 $x' + 'long'*20))
    done = run(folder, odd, 'mine.jsonl', '--output-dir', 'side')
    assert (done.returncode, done.stderr)==(0, '') and '120 records' in done.stdout, done.stderr
    assert '_중 $x' in (tmp_path/'side'/'report_figures'/'roc.svg').read_text(encoding='utf-8')
    (tmp_path/'broken.jsonl').write_text('{"no": "record"}\n')
    for words,says in [(['nowhere'], 'no folder or file nowhere'), ([tmp_path/'side'], 'holds no records'),
            ([folder, '--output-dir', 'mine.jsonl'], 'mine.jsonl is a file'), (['mine.jsonl', 'mine.jsonl'], 'named twice'),
            (['broken.jsonl'], 'broken.jsonl holds no records')]:
        bad = run(*words)
        assert bad.returncode==2 and says in bad.stderr and bad.stderr.count('\n')==1, bad.stderr
    assert 'Folders of runs' in run('--help').stdout

def test_twenty_thousand_rows(tmp_path):
    folder = run_folder(tmp_path/'large', dict(meta=made(20_000)))
    report([folder])
    assert (folder/'report.html').stat().st_size < 3e6
