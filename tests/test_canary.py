"Nothing of the machine that builds or runs is in what is published: its variables, its user, its folders"
import json,os,re,shutil,subprocess,sys,zipfile
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
CANARY = 'canary0f3b9a'
CHECKOUT = str(ROOT)

def bytes_of(path): # A text, a compressed search index or a wheel, as what a reader would find in it
    if path.suffix=='.whl': return b'\n'.join(zipfile.ZipFile(path).read(n) for n in zipfile.ZipFile(path).namelist())
    return path.read_bytes()

def leaks(paths): # `(file, what)` of each thing of this machine that is found
    wanted = [CANARY.encode()] + ([CHECKOUT.encode()] if len(CHECKOUT)>4 else [])
    return [(str(p), w.decode()) for p in paths if p.is_file() for w in wanted if w in bytes_of(p)]

@pytest.fixture
def env(tmp_path):
    "A user, a home and a variable with a name that nobody else has."
    home = tmp_path/f'{CANARY}-home'
    home.mkdir()
    keep = {k: v for k,v in os.environ.items() if k in ('PATH', 'PYTHONPATH', 'VIRTUAL_ENV', 'LANG', 'LD_LIBRARY_PATH')}
    return keep | dict(ESMA_CANARY=CANARY, HOME=str(home), USER=CANARY, LOGNAME=CANARY, USERNAME=CANARY, HOSTNAME=CANARY,
        OPENAI_API_KEY=f'sk-{CANARY}', HF_HUB_OFFLINE='1', TQDM_DISABLE='1')

def sh(*words, env, cwd=ROOT):
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, env=env, cwd=cwd)
    assert done.returncode==0, done.stdout+done.stderr
    return done.stdout

def checkout(folder, *tops): # A copy of what git knows and what is new, in a folder that has the canary in its name
    for name in sh('git', 'ls-files', '-co', '--exclude-standard', env=dict(os.environ)).splitlines():
        if (ROOT/name).is_file() and (not tops or '/' not in name or name.startswith(tops)):
            (folder/name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT/name, folder/name, follow_symlinks=False)
    return folder

def test_the_site(env, tmp_path):
    "Signatures show default values, so a default that holds the environment would publish the builder's keys."
    pytest.importorskip('smalldocs')
    copy = checkout(tmp_path/f'{CANARY}-checkout')
    sh(sys.executable, 'tools/docs.py', env=env | dict(PYTHONPATH=str(copy)), cwd=copy)
    files = list((copy/'_docs').rglob('*'))
    assert len(files) > 60
    assert leaks(files)==[]

def test_no_default_is_of_the_machine():
    odd = [f'{p.name}: {m[0]}' for p in sorted((ROOT/'esma_nb').glob('**/*.py')) if p.name!='_modidx.py'
        for m in re.finditer(r'^\s+\w+(?::[\w.]+)?=(?:os\.environ|os\.getcwd|Path\.(?:home|cwd)|getpass|platform|socket)\b.*', p.read_text(encoding='utf-8'), re.M)]
    assert odd==[]

def test_readme_and_stored_outputs():
    assert leaks([ROOT/'README.md', ROOT/'CHANGELOG.md', *(ROOT/'nbs').rglob('*.ipynb'), *(ROOT/'runs').rglob('*.*')])==[]
    outputs = [(p.name, l) for p in (ROOT/'nbs').rglob('*.ipynb') for c in json.loads(p.read_text(encoding='utf-8'))['cells']
        for l in json.dumps(c.get('outputs', [])).split('\\n') if re.search(r'(?<![\w.$])/(?:root|work|home|Users)/\w', l)]
    assert outputs==[]

def test_a_run_its_report_and_its_card(env, tmp_path):
    "A person's own file, in a folder that has their name, measured and trained on; the report and the card are what is shown to others."
    home = Path(env['HOME'])
    (home/'mine.jsonl').write_text(''.join(json.dumps(dict(question=f'What is the capital of {c}?', answers=[a]))+'\n'
        for c,a in dict(Peru='Lima', France='Paris', Chad='N’Djamena', Nauru='Yaren', Fiji='Suva', Mali='Bamako', Togo='Lomé', Oman='Muscat').items()))
    train = [sys.executable, '-m', 'esma_nb.evolution.train', '--dataset', home/'mine.jsonl', '--num_iterations', '1', '--population_size', '2',
        '--num_data_per_iteration', '2', '--num_val_samples', '4', '--output_dir', home/'run']
    sh(*train, env=env, cwd=home)
    sh(sys.executable, '-m', 'esma_nb.reports.report', home/'run', env=env, cwd=home)
    assert leaks([home/'run'/'report.html', home/'run'/'model'/'README.md', *(home/'run'/'model').rglob('*')])==[]
    assert (home/'run'/'report.html').stat().st_size > 10_000

@pytest.mark.skipif(not os.environ.get('ESMA_NB_SLOW'), reason='ESMA_NB_SLOW=1 runs the slow ones')
def test_the_wheel(env, tmp_path):
    sh(sys.executable, '-m', 'pip', 'install', '-q', '--target', tmp_path/'tools', 'build', env=dict(os.environ))
    src = checkout(tmp_path/f'{CANARY}-checkout', 'esma_nb/')
    sh(sys.executable, '-m', 'build', '--wheel', '--outdir', tmp_path, src, env=env | {'PYTHONPATH': str(tmp_path/'tools')} | {k: v for k,v in os.environ.items() if k.startswith('PIP_')}, cwd=src)
    assert leaks(tmp_path.glob('*.whl'))==[]
